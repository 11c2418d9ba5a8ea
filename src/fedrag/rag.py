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
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from fedrag.bundles import folder, hub
from fedrag.bundles.difference import SystemDifference, difference
from fedrag.bundles.parts import Parts, Settings
from fedrag.errors import ConfigError, InputError
from fedrag.generators.causal import CausalLM
from fedrag.progress import track
from fedrag.prompts import Prompt
from fedrag.reading import Reading, Stream, fitting, mixer, reading
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.nested import find, the
from fedrag.retrievers.reranked import Reranked, Reranker
from fedrag.types import Answer, Document, Generator, Hit, KnowledgeStore, Retriever, Streamer, Where


class RAGSystem:
    """Retrieve, then read.

    Args:
        retriever: finds documents for a question: a `DenseRetriever`, alone or in a `HybridRetriever` or `Reranked`.
        generator: answers a prompt; `None` makes a system that only retrieves, to tune a retriever alone.
        top_k: documents in a prompt; 0 asks the generator alone (closed book).
        prompt: how question and documents become one text, the same when asking and when training.
        reader: "stuff" puts all documents into one prompt; "ensemble" makes a prompt of each, and mixes the next-token
            distributions by p(document | question), as RA-DIT (arXiv 2310.01352) and RAG-Token (2005.11401) do. It
            wants a `MixtureGenerator`, as `CausalLM` is.
        temperature: that of p(document | question) = softmax(score / temperature), which the ensemble reader and
            marginals over documents weigh them by. `None` becomes 0.05 for an encoder that compares by cosine, else 1:
            right for a reranker's scores; those of a hybrid retriever become nearly uniform by it.

    Raises `ConfigError` for settings that are impossible, alone or together.
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
        self.reader: Literal["stuff", "ensemble"] = reader
        scale = retriever.temperature if isinstance(retriever, DenseRetriever) else 1.0
        self.temperature = scale if temperature is None else _positive(temperature)
        if reader not in ("stuff", "ensemble"):
            raise ConfigError(f"reader={reader!r}: it must be 'stuff' or 'ensemble'")
        if reader == "ensemble" and generator is not None:
            mixer(generator)  # say now what this reader cannot do, not when the first question comes

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
        with track(total=len(questions), desc="answer", unit="q", disable=not progress) as bar:
            for start in range(0, len(questions), batch_size):
                batch = questions[start : start + batch_size]
                hits = self._retrieve(batch, k, where)
                readings = [self._reading(question, row) for question, row in zip(batch, hits, strict=True)]
                if self.reader == "ensemble":
                    texts = mixer(self.generator).generate_mixture(
                        [r.prompts for r in readings], [r.weights for r in readings]
                    )
                else:
                    texts = self.generator.generate([reading.prompts[0] for reading in readings])
                answers += [
                    Answer(text, tuple(row), reading.prompts[0], reading.read)
                    for text, row, reading in zip(texts, hits, readings, strict=True)
                ]
                bar.update(len(batch))
        return answers

    async def aquery(self, question: str, *, k: int | None = None, where: Where | None = None) -> Answer:
        """`query`, off the event loop."""
        return await asyncio.to_thread(self.query, question, k=k, where=where)

    def stream(
        self,
        question: str,
        *,
        k: int | None = None,
        where: Where | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | None = None,
    ) -> Stream:
        """Answer a question piece by piece: `for piece in (answer := rag.stream(q)): ...`; sources in `answer.hits`.

        `max_new_tokens` and `stop` take the place of the generator's own settings; a longer answer shortens documents.
        """
        alone = self.reader == "stuff"
        if alone and not isinstance(self.generator, Streamer):
            raise InputError(f"{type(self.generator).__name__} cannot stream: it has no stream(prompt); use query()")
        hits = self.retrieve(question, k=k, where=where)
        reading = self._reading(question, hits, max_new_tokens or 0)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop": stop}
        if alone and isinstance(self.generator, Streamer):
            pieces = self.generator.stream(reading.prompts[0], **settings)
        else:
            pieces = mixer(self.generator).stream_mixture(reading.prompts, reading.weights, **settings)
        return Stream(tuple(hits), pieces)

    def prompt_for(self, question: str, documents: Sequence[Document], *, answer_tokens: int = 0) -> str:
        """The prompt for a question over documents, which are shortened so that the answer fits after it.

        `answer_tokens` is the length of the answer to come, where it is known (training); room is kept for it and
        for what the generator may write, so that asking and training shorten alike.
        """
        return self.prompt.render(question, fitting(self.prompt, self.generator, question, documents, answer_tokens))

    def add(self, documents: Iterable[Document], *, progress: bool = True) -> None:
        """Embed and store documents, a list or any stream; what is there already is skipped."""
        self.dense.add(documents, progress=progress)

    @property
    def dense(self) -> DenseRetriever:
        """The dense retriever, alone or inside another. Raises `InputError` where there is none, or two."""
        return the(self.retriever, DenseRetriever)

    @property
    def reranker(self) -> Reranker:
        """What reranks. Raises `InputError` where nothing does."""
        return the(self.retriever, Reranked).reranker

    def parts(self) -> dict[str, nn.Module]:
        """The disjoint modules that hold all weights, by canonical name: `retriever/query`, `reranker`, ...

        A parameter's canonical name is its part's name, a slash, and its name in the part. Whatever is trained,
        saved as a checkpoint or exchanged is named so.
        """
        parts: dict[str, nn.Module] = {}
        if (dense := find(self.retriever, DenseRetriever)) is not None:
            parts |= {f"retriever/{name}": part for name, part in dense.encoder.parts().items()}
        if (reranked := find(self.retriever, Reranked)) and isinstance(reranked.reranker, nn.Module):
            parts["reranker"] = reranked.reranker
        if isinstance(self.generator, CausalLM):
            parts["generator"] = self.generator.model
        return parts

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by its canonical name."""
        return {f"{place}/{name}": p for place, part in self.parts().items() for name, p in part.named_parameters()}

    def save(self, path: str | Path) -> None:
        """Write the system into a folder, in one atomic step.

        `encoder/` and `reranker/` load with sentence-transformers, `generator/` with transformers and peft, without
        fedrag. A store that is a database, and a generator or a reranker of another kind than fedrag's own, stay where
        they are: `load` wants them passed.

        Raises:
            InputError: if the encoder is not a `SentenceEncoder`, or for a retriever of another kind.
        """
        settings = Settings(top_k=self.top_k, prompt=self.prompt, reader=self.reader, temperature=self.temperature)
        dense, reranked = self.dense, find(self.retriever, Reranked)
        reranker = reranked.reranker if reranked else None
        parts = Parts(dense.encoder, dense.store, self.generator, self.retriever, reranker)
        folder.save(Path(path), settings, parts)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        store: KnowledgeStore | None = None,
        generator: Generator | None = None,
        reranker: Reranker | None = None,
        device: str | None = None,
    ) -> RAGSystem:
        """Read what `save` wrote; `store`, `generator` and `reranker` take the place of the saved ones.

        Raises:
            StoreError: if there is no saved system, or a newer fedrag wrote it.
            InputError: if a part that stayed elsewhere is not passed.
        """
        settings, parts = folder.load(Path(path), store=store, generator=generator, reranker=reranker, device=device)
        return cls(retriever=parts.retriever, generator=parts.generator, **settings)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, token: str | None = None, **given: Any
    ) -> RAGSystem:
        """Read a system from a model hub, "user/name", or from a folder; `given` is what else `load` takes.

        Raises what `load` raises, and `HubError` where the hub cannot be reached or refuses.
        """
        path = Path(name) if Path(name).exists() else hub.pull(str(name), revision=revision, token=token)
        return cls.load(path, **given)

    def push_to_hub(self, name: str, **settings: Any) -> str:
        """Put the system into the repository "user/name" of a model hub; return the commit's address.

        `settings` and errors are those of `hub.push`: `private=True, token=None, include_store=False`.
        """
        return hub.saved_and_pushed(self.save, name, **settings)

    def diff(self, other: RAGSystem) -> SystemDifference:
        """What `other` has another way than this system: settings, fingerprints, weights, documents; `print` it."""
        return difference(self, other)

    def _reading(self, question: str, hits: Sequence[Hit], answer_tokens: int = 0) -> Reading:
        alone = self.reader == "ensemble"
        return reading(self.prompt, self.generator, question, hits, alone, self.temperature, answer_tokens)

    def _retrieve(self, questions: Sequence[str], k: int | None, where: Where | None) -> list[list[Hit]]:
        depth = self.top_k if k is None else _depth(k)
        return self.retriever.retrieve(questions, depth, where) if depth else [[] for _ in questions]


def _depth(k: int) -> int:
    if k < 0:
        raise InputError(f"top_k must be 0 (closed book) or more, got {k}")
    return k


def _positive(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature={temperature}: it must be a number above 0")
    return float(temperature)
