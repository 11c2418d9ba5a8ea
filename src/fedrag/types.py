"""Plain data: the records that cross every floor, and the protocols that parts fulfil.

Records are frozen dataclasses; protocols are structural, so any object with these members serves.
Dimension letters, package-wide: n queries, m documents of a store, k candidates, t tokens, d width, v vocabulary.

>>> Document("Paris is the capital of France.").id
'557be7eca214f188'
>>> Example("What is the capital of France?", ["Paris"]).answers
('Paris',)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fedrag.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

Where = Mapping[str, Any]
"""A metadata filter in Haystack's dict shape; see `fedrag.filters`."""


@dataclass(frozen=True, slots=True)
class Media:
    """An image, a sound or any other non-text part of a document: its bytes and their MIME type."""

    data: bytes
    mime: str


@dataclass(frozen=True, slots=True)
class Document:
    """A passage of knowledge. Without an `id` it gets one from the hash of its text and media.

    `metadata` holds plain JSON values, which filters test and stores keep.
    """

    text: str
    id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    media: tuple[Media, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            digest = hashlib.sha256(self.text.encode("utf-8", "surrogatepass"))
            for item in self.media:
                digest.update(b"\0" + item.mime.encode() + b"\0" + item.data)
            object.__setattr__(self, "id", digest.hexdigest()[:16])


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved document and the score its retriever gave it; lists of hits are best first."""

    document: Document
    score: float


@dataclass(frozen=True, slots=True, init=False)
class Example:
    """A question with one or more gold answers, and the ids of documents known to hold the answer or not to.

    Answers that are `None` are not known: the example serves to train and measure retrieval by its positives. An empty
    tuple says that there is no answer, and that the right reaction is the empty text. Lists are kept as tuples.
    """

    question: str
    answers: tuple[str, ...] | None
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    metadata: Mapping[str, Any]

    def __init__(
        self,
        question: str,
        answers: Sequence[str] | None = None,
        positives: Sequence[str] = (),
        negatives: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("answers", answers), ("positives", positives), ("negatives", negatives)):
            if isinstance(value, str):
                raise InputError(f"Example.{name} takes a list of strings, got the string {value!r}: wrap it in a list")
            object.__setattr__(self, name, None if value is None else tuple(value))
        object.__setattr__(self, "question", question)
        object.__setattr__(self, "metadata", dict(metadata or {}))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a RAG system returns: the text, the hits it was generated from, and the prompt.

    `read` holds the texts of the hits as the prompt held them, where its budget may have shortened some or left some
    out; `None` when that is not known. The ensemble reader has a prompt for each hit: `prompt` is the best hit's, and
    `read` holds the texts of them all.
    """

    text: str
    hits: tuple[Hit, ...]
    prompt: str = ""
    read: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return self.text


@runtime_checkable
class Encoder(Protocol):
    """Texts to vectors whose inner product is the retriever's score; differentiable in the current grad mode."""

    def encode_queries(self, texts: Sequence[str]) -> Tensor:
        """Return `[n, d]` vectors of queries."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> Tensor:
        """Return `[n, d]` vectors of documents."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides a document's vector: weights, prompt, pooling, maximum length."""
        ...

    def parts(self) -> Mapping[str, nn.Module]:
        """Return the disjoint modules that hold all weights; what queries alone pass through is named "query"."""
        ...


class Rebuild(Protocol):
    """The vectors of a store, built anew beside the ones in use, and put in their place in one step.

    An interrupted rebuild for the same fingerprint goes on where it stopped.
    """

    def missing(self, batch_size: int) -> Iterator[list[Document]]:
        """Yield, in batches, the documents that have no new vector yet."""
        ...

    def put(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Keep the new `[n, d]` vectors of these documents; searches still see the old ones."""
        ...

    def commit(self) -> None:
        """Swap the new vectors and their fingerprint in, atomically. Raises `StoreError` while any is missing."""
        ...


@runtime_checkable
class KnowledgeStore(Protocol):
    """Documents and their vectors. Scores are inner products; higher is better; ties go to the smaller id."""

    def add(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert or replace documents with their `[n, d]` vectors. Repeated ids in one call are an `InputError`."""
        ...

    def search(self, vectors: Tensor, k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return, per row of `[n, d]`, the k best hits among the documents that match `where`, best first."""
        ...

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents of these ids, in order. An unknown id is an `InputError`."""
        ...

    def vectors(self, ids: Sequence[str]) -> Tensor:
        """Return the `[n, d]` float32 vectors of these ids, in order."""
        ...

    def remove(self, ids: Sequence[str]) -> int:
        """Delete these documents; return how many were there."""
        ...

    def documents(self) -> Iterator[Document]:
        """Stream every document, in the order in which they came."""
        ...

    def update_vectors(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Replace the vectors of documents that are there already."""
        ...

    def rebuild(self, fingerprint: str) -> Rebuild:
        """Start, or go on with, new vectors for all documents under a new fingerprint."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the document encoder that wrote the vectors; empty when nothing was written."""
        ...

    @fingerprint.setter
    def fingerprint(self, value: str) -> None: ...

    def __len__(self) -> int: ...

    def __contains__(self, id: object) -> bool: ...


@runtime_checkable
class Fillable(KnowledgeStore, Protocol):
    """A knowledge store that others may put documents into without a vector."""

    def lacking(self, batch_size: int) -> Iterator[list[Document]]:
        """Yield, in batches, the documents that have no vector, which no search finds."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """Anything that finds documents for queries: dense, lexical, hybrid, remote."""

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return up to k hits per query, best first."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Prompts to texts."""

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> list[str]:
        """Return one continuation per prompt; `None` takes the generator's own setting."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """A generator that tells how likely a target text is after a prompt."""

    def logprobs(self, prompts: Sequence[str], targets: Sequence[str], *, group: int = 1) -> Tensor:
        """Return `[n]` float32 sums of log p(target, EOS | prompt), differentiable in the current grad mode.

        `group` consecutive prompts (a query's candidates) share a prefix, which is then computed once.
        """
        ...


@runtime_checkable
class Streamer(Protocol):
    """A generator that yields its text while it is being made."""

    def stream(
        self, prompt: str, *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> Iterator[str]:
        """Yield pieces whose concatenation is what `generate` returns."""
        ...


@runtime_checkable
class MixtureGenerator(Protocol):
    """A generator that reads several prompts for one answer, and mixes their next-token distributions by weights."""

    def generate_mixture(
        self,
        prompts: Sequence[Sequence[str]],
        weights: Sequence[Sequence[float]],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | None = None,
    ) -> list[str]:
        """Return one text per group of prompts; a group of one is what `generate` gives for its prompt."""
        ...

    def stream_mixture(
        self,
        prompts: Sequence[str],
        weights: Sequence[float],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | None = None,
    ) -> Iterator[str]:
        """Yield pieces whose concatenation is what `generate_mixture` returns for this one group."""
        ...
