"""LangChain and LangGraph: a vector store of theirs becomes a system to tune, a system becomes objects of theirs.

    from fedrag.integrations.langchain import from_langchain, to_langchain

    rag = from_langchain(vectorstore, llm)                      # same documents, same ids, same vectors
    RAGTrainer(Contrastive(rag), train_dataset=train).train()   # the new vectors are in the vector store when it ends
    vectorstore.similarity_search("How do I rotate the key?")

    parts = to_langchain(rag)
    parts.chain.invoke("How do I rotate the key?", k=3)                # {"input", "context": documents, "answer"}
    agent = {"context": parts.retriever, "input": RunnablePassthrough()} | my_prompt | parts.chat_model

Relations: `fedrag.integrations.langchain_store` has the retriever, the embeddings and the vector store,
`fedrag.integrations.langchain_model` the chat model.
"""

# ruff: noqa: E402  (imports after `require`)
from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from fedrag.errors import ConfigError, InputError
from fedrag.integrations.langchain_index import IdsIndex, InMemoryIndex, encoder_inside, where
from fedrag.integrations.langchain_model import ChatFedRAG, LangChainGenerator
from fedrag.integrations.langchain_store import FedRAGEmbeddings, FedRAGRetriever, FedRAGVectorStore, Saved
from fedrag.integrations.mirror import mirror
from fedrag.optional import require
from fedrag.prompts import Prompt
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.types import Document, Encoder, Generator

require("langchain_core", extra="langchain")

from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSerializable,
)
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

Found = dict[str, Any]
"""What the chain gives: the question as "input", the documents as "context", and the "answer"."""


def from_langchain(
    vectorstore: VectorStore,
    llm: BaseLanguageModel[Any] | None = None,
    *,
    encoder: Encoder | None = None,
    generator: Generator | None = None,
    prompt: Prompt | None = None,
    top_k: int = 5,
    ids: Sequence[str] | None = None,
) -> RAGSystem:
    """Return a system over the documents of a vector store, which then follows every change of the system's.

    Args:
        vectorstore: an `InMemoryVectorStore`, or with `ids` any other that has `get_by_ids`. LangChain has no way to
            list a store's documents or to read their vectors. So for another store its `ids` are wanted
            (`chroma.get()["ids"]`, say), the documents are embedded again by `rag.retriever.refresh()`, and written
            back by the store's own `add_documents`, which embeds: set its embedder to `to_langchain(rag).embeddings`
            before, unless it holds the very model that is trained. That must replace documents of ids that are there,
            which FAISS's refuses to.
        llm: the model of LangChain that answers; as `generator`, to be trained, give a `CausalLM`.
        encoder: what is to be trained; by default the sentence-transformers model inside the store's embedder.
        ids: the documents to take.

    An `InMemoryVectorStore` asks the encoder itself from when its vectors are the encoder's: at once where the encoder
    made them, after the first `refresh()` otherwise.

    Raises:
        InputError: without an encoder to train, or without ids where they are wanted.
        ConfigError: for both an `llm` and a `generator`.
    """
    if llm is not None and generator is not None:
        raise ConfigError("from_langchain() got both an llm and a generator: pass the one that shall answer")
    encoder = encoder_inside(vectorstore.embeddings) if encoder is None else encoder
    if isinstance(vectorstore, InMemoryVectorStore):
        outside = InMemoryIndex(vectorstore)
    elif ids is None:
        raise InputError(
            f"a {type(vectorstore).__name__} cannot be asked for all its documents: pass ids=, those of the documents"
        )
    else:
        outside = IdsIndex(vectorstore, ids)
    store = mirror(outside, encoder)
    rag = RAGSystem(
        retriever=DenseRetriever(cast(Any, encoder), store),
        generator=LangChainGenerator(llm) if llm is not None else generator,
        prompt=prompt,
        top_k=top_k,
    )
    if isinstance(outside, InMemoryIndex):
        outside.embeddings = FedRAGEmbeddings(rag=rag)
        if store.fingerprint == encoder.fingerprint:
            outside.index.embedding = outside.embeddings
    return rag


@dataclass(frozen=True)
class LangChainParts:
    """A system as objects of LangChain, each made when it is first asked for. `path`: see `to_langchain`."""

    rag: RAGSystem
    path: str = ""

    @cached_property
    def retriever(self) -> FedRAGRetriever:
        """The retriever."""
        return FedRAGRetriever(rag=self.rag, path=self.path)

    @cached_property
    def vectorstore(self) -> FedRAGVectorStore:
        """The knowledge store. Raises `InputError` for a system that is not dense."""
        return FedRAGVectorStore(self.rag)

    @cached_property
    def embeddings(self) -> FedRAGEmbeddings:
        """The encoder."""
        return FedRAGEmbeddings(rag=self.rag, path=self.path)

    @cached_property
    def chat_model(self) -> BaseLanguageModel[Any]:
        """The generator; where that is a model of LangChain, this very model."""
        generator = self.rag.generator
        return generator.llm if isinstance(generator, LangChainGenerator) else ChatFedRAG(rag=self.rag, path=self.path)

    @cached_property
    def chain(self) -> FedRAGChain:
        """The whole system, question to answer with its sources."""
        return FedRAGChain(rag=self.rag, path=self.path)


def to_langchain(rag: RAGSystem, *, path: str = "") -> LangChainParts:
    """Return the system as objects of LangChain, which see every later change of the system.

    `path` is the folder that `rag.save(path)` wrote: with it, LangChain's `dumps` can write them (not a vector store,
    which LangChain never writes).
    """
    return LangChainParts(rag, path)


class FedRAGChain(Saved, RunnableSerializable[str, Found]):
    """Ask the whole system: a question in, `{"input", "context", "answer"}` out, what `rag.query` answers.

    Streams give the question and the documents first and then the answer piece by piece. Inside are the retriever and
    the chat model, as runs of their own in a trace; the ensemble reader, which reads several prompts at once, asks no
    chat model and answers in one piece. `k` and `filter` stand here or come with a call.
    """

    k: int | None = None
    filter: dict[str, Any] | None = None

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> Found:
        """Answer a question; `k` and `filter` are those of `FedRAGRetriever`."""
        return self._steps(**kwargs).invoke(input, config)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> Found:
        """Answer a question, off the event loop."""
        return await self._steps(**kwargs).ainvoke(input, config)

    def stream(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Found]:
        """Yield the documents, and then the answer as it is made."""
        yield from self._steps(**kwargs).stream(input, config)

    async def astream(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Found]:
        """Yield the documents, and then the answer as it is made, off the event loop."""
        async for piece in self._steps(**kwargs).astream(input, config):
            yield piece

    def _steps(self, k: int | None = None, filter: Mapping[str, Any] | None = None) -> Runnable[str, Found]:
        rag, depth, chosen = self.rag, self.k if k is None else k, self.filter if filter is None else filter
        retriever = FedRAGRetriever(rag=rag, k=depth, filter=cast(Any, chosen))

        def prompt(found: Found) -> str:
            documents = [Document(page.page_content, page.id, page.metadata) for page in found["context"]]
            return rag.prompt_for(found["input"], documents)

        def mixed(found: Found) -> str:
            return rag.query(found["input"], k=depth, where=where(chosen)).text

        answer: Any = RunnableLambda(prompt) | cast(Any, LangChainParts(rag).chat_model) | StrOutputParser()
        if rag.reader == "ensemble":  # it reads several prompts at once, which is more than a chat model takes
            answer = RunnableLambda(mixed)
        found = RunnableParallel(input=RunnablePassthrough(), context=retriever)
        steps = found | RunnablePassthrough.assign(answer=answer)
        return cast(Any, steps.with_config(run_name=self.get_name()))
