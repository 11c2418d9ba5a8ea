"""A RAG system: a retriever, a generator, and the prompt between them. Ask it, tune its parts, save it whole.

rag = RAGSystem(
    retriever=DenseRetriever(SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2"), MemoryStore()),
    generator=CausalLM("Qwen/Qwen3-0.6B", lora=16),
    top_k=5,
)
rag.add(read_documents("docs/"))
print(rag.query("How do I rotate the key?"))
rag.save("my-rag")
rag = RAGSystem.load("my-rag")
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from tqdm.auto import tqdm

from fedrag import durable
from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import ConfigError, InputError, StoreError
from fedrag.generators.causal import CausalLM
from fedrag.prompts import Prompt, Tokens
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Answer, Document, Generator, Hit, KnowledgeStore, Retriever, Streamer, Where

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer on its way: the hits are known at once, iterating yields the text piece by piece."""

    hits: tuple[Hit, ...]
    pieces: Iterator[str]

    def __iter__(self) -> Iterator[str]:
        return self.pieces


class RAGSystem:
    """Retrieve, then read.

    Args:
        retriever: finds documents for a question.
        generator: answers a prompt; `None` makes a system that only retrieves, to tune a retriever alone.
        top_k: documents in a prompt; 0 asks the generator alone (closed book).
        prompt: how question and documents become one text, the same when asking and when training.
        reader: "stuff" puts all documents into one prompt.
        temperature: that of p(document | question) = softmax(score / temperature), which marginals over documents
            weigh them by. `None` becomes 0.05 for an encoder that compares by cosine, else 1.
    """

    def __init__(
        self,
        *,
        retriever: Retriever,
        generator: Generator | None = None,
        top_k: int = 5,
        prompt: Prompt | None = None,
        reader: Literal["stuff", "ensemble"] = "stuff",
        temperature: float | None = None,
    ) -> None:
        self.retriever = retriever
        self.generator = generator
        self.top_k = _depth(top_k)
        self.prompt = prompt or Prompt()
        self.reader = _reader(reader)
        self.temperature = _scale(retriever) if temperature is None else _positive(temperature)

    def retrieve(self, question: str, *, k: int | None = None, where: Where | None = None) -> list[Hit]:
        """Return the hits for a question, best first."""
        return self._retrieve([question], k, where)[0]

    def query(self, question: str, *, k: int | None = None, where: Where | None = None) -> Answer:
        """Answer a question from the k best documents among those that match `where`."""
        return self.query_batch([question], k=k, where=where)[0]

    def query_batch(
        self,
        questions: Sequence[str],
        *,
        k: int | None = None,
        where: Where | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> list[Answer]:
        """Answer many questions, in order; the same answers as one at a time, sooner."""
        if isinstance(questions, str):
            raise InputError("query_batch() takes a list of questions, got one string: use query()")
        if self.generator is None:
            raise InputError("this system has no generator, so it cannot answer; use retrieve(), or give it one")
        answers: list[Answer] = []
        with tqdm(total=len(questions), desc="answer", unit="q", disable=not progress) as bar:
            for start in range(0, len(questions), batch_size):
                batch = questions[start : start + batch_size]
                hits = self._retrieve(batch, k, where)
                read = [self._fitting(q, [hit.document for hit in row], 0) for q, row in zip(batch, hits, strict=True)]
                prompts = [self.prompt.render(q, documents) for q, documents in zip(batch, read, strict=True)]
                texts = self.generator.generate(prompts)
                answers += [
                    Answer(text, tuple(row), prompt, tuple(document.text for document in documents))
                    for text, row, prompt, documents in zip(texts, hits, prompts, read, strict=True)
                ]
                bar.update(len(batch))
        return answers

    async def aquery(self, question: str, *, k: int | None = None, where: Where | None = None) -> Answer:
        """`query`, off the event loop."""
        return await asyncio.to_thread(self.query, question, k=k, where=where)

    def stream(self, question: str, *, k: int | None = None, where: Where | None = None) -> Stream:
        """Answer a question piece by piece: `for piece in (answer := rag.stream(q)): ...`; sources in `answer.hits`."""
        if not isinstance(self.generator, Streamer):
            raise InputError(f"{type(self.generator).__name__} cannot stream: it has no stream(prompt); use query()")
        hits = self.retrieve(question, k=k, where=where)
        prompt = self.prompt_for(question, [hit.document for hit in hits])
        return Stream(tuple(hits), self.generator.stream(prompt))

    def prompt_for(self, question: str, documents: Sequence[Document], *, answer_tokens: int = 0) -> str:
        """The prompt for a question over documents, which are shortened so that the answer fits after it.

        `answer_tokens` is the length of the answer to come, where it is known (training); room is kept for it and
        for what the generator may write, so that asking and training shorten alike.
        """
        return self.prompt.render(question, self._fitting(question, documents, answer_tokens))

    def add(self, documents: Sequence[Document], *, progress: bool = True) -> None:
        """Embed and store documents; what is there already is skipped."""
        self.dense.add(documents, progress=progress)

    @property
    def dense(self) -> DenseRetriever:
        """The retriever, where it is a dense one. Raises `InputError` where it is not."""
        if not isinstance(self.retriever, DenseRetriever):
            raise InputError(f"this needs a DenseRetriever, the system has a {type(self.retriever).__name__}")
        return self.retriever

    def parts(self) -> dict[str, nn.Module]:
        """The disjoint modules that hold all weights, by canonical name: `retriever/query`, `generator`, ...

        A parameter's canonical name is its part's name, a slash, and its name in the part. Whatever is trained,
        saved as a checkpoint or exchanged is named so.
        """
        parts: dict[str, nn.Module] = {}
        if isinstance(self.retriever, DenseRetriever):
            parts |= {f"retriever/{name}": part for name, part in self.retriever.encoder.parts().items()}
        if isinstance(self.generator, CausalLM):
            parts["generator"] = self.generator.model
        return parts

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by its canonical name."""
        return {f"{place}/{name}": p for place, part in self.parts().items() for name, p in part.named_parameters()}

    def save(self, path: str | Path) -> None:
        """Write the whole system into a folder, in one atomic step.

        `encoder/` loads with sentence-transformers, `generator/` with transformers and peft, without fedrag.

        Raises:
            InputError: if a part is not one that fedrag can write (an encoder, a `CausalLM`, a `MemoryStore`).
        """
        encoder, store, generator = self.dense.encoder, self.dense.store, self.generator
        if not isinstance(store, MemoryStore) or not isinstance(generator, CausalLM):
            raise InputError(
                f"save() writes a MemoryStore and a CausalLM, the system has a {type(store).__name__} and a "
                f"{type(generator).__name__}; save those with their own libraries"
            )
        settings = {
            "format": _FORMAT,
            "top_k": self.top_k,
            "prompt": asdict(self.prompt),
            "reader": self.reader,
            "temperature": self.temperature,
        }

        def write(folder: Path) -> None:
            encoder.save(folder / "encoder")
            generator.save(folder / "generator")
            store.save(folder / "store")
            (folder / "fedrag.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
            (folder / "README.md").write_text(self._card(), encoding="utf-8")

        durable.publish(Path(path), write)

    @classmethod
    def load(cls, path: str | Path, *, store: KnowledgeStore | None = None, device: str | None = None) -> RAGSystem:
        """Read what `save` wrote; `store` takes the place of the saved knowledge store.

        Raises:
            StoreError: if there is no saved system, or a newer fedrag wrote it.
        """
        folder = durable.current(Path(path))
        settings = _settings(folder / "fedrag.json")
        encoder = SentenceEncoder.load(folder / "encoder", device=device)
        return cls(
            retriever=DenseRetriever(encoder, MemoryStore.open(folder / "store") if store is None else store),
            generator=CausalLM.load(folder / "generator", device=device),
            top_k=settings["top_k"],
            prompt=Prompt(**settings["prompt"]),
            reader=settings["reader"],
            temperature=settings["temperature"],
        )

    def _fitting(self, question: str, documents: Sequence[Document], answer_tokens: int) -> Sequence[Document]:
        if not isinstance(self.generator, Tokens):
            return documents
        reserve = max(answer_tokens, self.generator.max_new_tokens)
        return self.prompt.fit_documents(question, documents, self.generator, reserve=reserve)

    def _retrieve(self, questions: Sequence[str], k: int | None, where: Where | None) -> list[list[Hit]]:
        depth = self.top_k if k is None else _depth(k)
        return self.retriever.retrieve(questions, depth, where) if depth else [[] for _ in questions]

    def _card(self) -> str:
        return (
            "---\nlibrary_name: fedrag\ntags:\n- rag\n---\n\n# A RAG system\n\n"
            f"{len(self.dense.store)} documents, the best {self.top_k} of them in each prompt. Document encoder "
            f"`{self.dense.encoder.fingerprint}`.\n\n"
            '```python\nfrom fedrag import RAGSystem\n\nrag = RAGSystem.load("path/to/the/folder/above")\n```\n\n'
            "`encoder/` is a sentence-transformers model, `generator/` a transformers model or a peft adapter.\n"
        )


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings["format"] > _FORMAT:
            raise StoreError(f"{file} has format {settings['format']}, this fedrag reads {_FORMAT}: upgrade fedrag")
        temperature = settings.get("temperature")  # absent, as the reader is, from what the first fedrag wrote
        return {
            "top_k": int(settings["top_k"]),
            "prompt": dict(settings["prompt"]),
            "reader": str(settings.get("reader", "stuff")),
            "temperature": None if temperature is None else float(temperature),
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{file} is missing or damaged; restore the folder from a copy") from None


def _depth(k: int) -> int:
    if k < 0:
        raise InputError(f"top_k must be 0 (closed book) or more, got {k}")
    return k


def _reader(reader: Literal["stuff", "ensemble"]) -> Literal["stuff", "ensemble"]:
    if reader not in ("stuff", "ensemble"):
        raise ConfigError(f"reader={reader!r}: it must be 'stuff' or 'ensemble'")
    return reader


def _positive(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature={temperature}: it must be a number above 0")
    return float(temperature)


def _scale(retriever: Retriever) -> float:
    """The temperature that scores of this kind want: cosines differ by little, inner products by much."""
    encoder = retriever.encoder if isinstance(retriever, DenseRetriever) else None
    return 0.05 if isinstance(encoder, SentenceEncoder) and encoder.model.similarity_fn_name == "cosine" else 1.0
