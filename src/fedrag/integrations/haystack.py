"""Haystack: take a pipeline's document store, embedder and generator; give back components of Haystack.

    rag = from_haystack(indexing, querying)         # the store stays theirs: same ids, content and metadata
    RAGTrainer(Contrastive(rag), train_dataset=examples).train()    # its end writes the new vectors into their store
    rag.dense.encoder.save("tuned")
    swap_embedders(querying, "tuned")               # their pipeline, now with the tuned encoder, which `dumps()` writes
    answering = to_haystack(rag)                    # or a pipeline of our own components

Haystack's own sentence-transformers embedders hold the very model that is tuned, so a pipeline in the same process asks
with the tuned one even before the swap. The components are in `haystack_integrations.components`, which is where
Haystack lets YAML name classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError
from fedrag.integrations.mirror import mirror
from fedrag.optional import require
from fedrag.prompts import Prompt
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.types import Document, Encoder, Generator

require("haystack", extra="haystack")

import haystack  # noqa: E402
from haystack.dataclasses import ChatMessage  # noqa: E402
from haystack.document_stores.types import DocumentStore, DuplicatePolicy  # noqa: E402

from haystack_integrations.common.fedrag import embedded_text, from_haystack_document, to_haystack_document  # noqa: E402
from haystack_integrations.components.builders.fedrag import FedRAGPromptBuilder  # noqa: E402
from haystack_integrations.components.embedders.fedrag import FedRAGDocumentEmbedder, FedRAGTextEmbedder  # noqa: E402
from haystack_integrations.components.generators.fedrag import FedRAGChatGenerator  # noqa: E402
from haystack_integrations.components.retrievers.fedrag import FedRAGRetriever  # noqa: E402


def from_haystack(
    *pipelines: haystack.Pipeline,
    encoder: Encoder | None = None,
    generator: Generator | None = None,
    prompt: Prompt | None = None,
    top_k: int = 5,
) -> RAGSystem:
    """Make a system of what the pipelines hold: pass the one that indexes together with the one that asks.

    A document's text is what the document embedder embeds (`meta_fields_to_embed`, prefix and suffix); without one in
    the pipelines it is the content alone. Where nothing else is given, the encoder is the sentence-transformers model
    of the embedders, with the text embedder's prefix as its prompt for queries; the generator is the chat generator,
    which answers and is not trained. Vectors of another encoder are stale until `rag.dense.refresh()`.

    Raises:
        InputError: unless the pipelines have one document store among them; without a usable encoder.
    """
    parts = [part for pipeline in pipelines for _, part in pipeline.walk()]
    stores = {id(store): store for part in parts if (store := getattr(part, "document_store", None)) is not None}
    if len(stores) != 1:
        found = [type(store).__name__ for store in stores.values()]
        raise InputError(f"the pipelines hold {len(stores)} document stores {found}; pass pipelines that share one")
    texts = next((part for part in parts if _puts(part, "embedding")), None)
    documents = next((part for part in parts if _embeds_documents(part)), None)
    chat = next((part for part in parts if _puts(part, "replies") and _takes(part, "messages")), None)
    if encoder is None:
        encoder = _encoder(texts, documents)
    store = mirror(_Index(next(iter(stores.values())), documents), encoder)
    generator = _Chat(chat) if generator is None and chat is not None else generator
    return RAGSystem(retriever=DenseRetriever(encoder, store), generator=generator, prompt=prompt, top_k=top_k)


def to_haystack(system: RAGSystem | str | Path) -> haystack.Pipeline:
    """Return a pipeline with a "retriever" and, where the system has a generator, "prompt_builder" and "llm".

    Run it by `run({"retriever": {"query": q}, "prompt_builder": {"query": q}})`: the reply is `rag.query(q).text`.
    From the folder of a saved system it can be written as YAML; from a live one it cannot.
    """
    pipeline = haystack.Pipeline()
    pipeline.add_component("retriever", retriever := FedRAGRetriever(system))
    if retriever.source.rag.generator is not None:
        pipeline.add_component("prompt_builder", FedRAGPromptBuilder(system))
        pipeline.add_component("llm", FedRAGChatGenerator(system))
        pipeline.connect("retriever.documents", "prompt_builder.documents")
        pipeline.connect("prompt_builder.messages", "llm.messages")
    return pipeline


def swap_embedders(pipeline: haystack.Pipeline, system: RAGSystem | str | Path) -> list[str]:
    """Put the system's encoder in place of a pipeline's embedders, name by name, as connected; return the names.

    `system` is a live one, or the folder of a saved system or of a saved encoder.
    What a document embedder puts around the content (metadata fields, prefix, suffix) its successor does, too.
    """
    swapped: list[str] = []
    for name, part in list(pipeline.walk()):
        if _puts(part, "embedding"):
            ours: Any = FedRAGTextEmbedder(system)
        elif _embeds_documents(part):
            around = ("meta_fields_to_embed", "embedding_separator", "prefix", "suffix")
            ours = FedRAGDocumentEmbedder(system, **{key: getattr(part, key) for key in around if hasattr(part, key)})
        else:
            continue
        edges = [
            (f"{start}.{ends['from_socket'].name}", f"{end}.{ends['to_socket'].name}")
            for start, end, ends in pipeline.graph.edges(data=True)
            if name in (start, end)
        ]
        pipeline.remove_component(name)
        pipeline.add_component(name, ours)
        for start, end in edges:
            pipeline.connect(start, end)
        swapped.append(name)
    return swapped


class _Index:
    """A document store of Haystack as `mirror` reads and writes it."""

    def __init__(self, store: DocumentStore, embedder: Any) -> None:
        self.store = store
        self.embedder = embedder

    def read(self) -> Iterator[tuple[Document, Sequence[float] | None]]:
        for document in self.store.filter_documents():
            yield from_haystack_document(document, self._text(document)), document.embedding

    def insert(self, documents: Sequence[Document], vectors: Tensor) -> None:
        pairs = zip(map(to_haystack_document, documents), vectors.tolist(), strict=True)
        self._write([replace(document, embedding=vector) for document, vector in pairs])

    def update(self, documents: Sequence[Document], vectors: Tensor) -> int:
        made = {document.id: (document.text, row) for row, document in enumerate(documents)}
        there = [one for one in self.store.filter_documents() if one.id in made]
        same = [one for one in there if made[one.id][0] == self._text(one)]
        self._write([replace(one, embedding=vectors[made[one.id][1]].tolist()) for one in same])
        return len(documents) - len(same)

    def remove(self, ids: Sequence[str]) -> None:
        self.store.delete_documents(list(ids))

    def _text(self, document: haystack.Document) -> str:
        return embedded_text(self.embedder, document)

    def _write(self, documents: list[haystack.Document]) -> None:
        if documents:
            self.store.write_documents(documents, policy=DuplicatePolicy.OVERWRITE)


class _Chat:
    """A chat generator of Haystack as a `Generator`: its own settings hold."""

    def __init__(self, component: Any) -> None:
        self.component = component

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> list[str]:
        if max_new_tokens is not None or stop is not None:
            raise InputError(f"set the length and the stop strings on the pipeline's {type(self.component).__name__}")
        asked = [self.component.run(messages=[ChatMessage.from_user(prompt)]) for prompt in prompts]
        return [answer["replies"][0].text or "" for answer in asked]


def _puts(part: Any, output: str) -> bool:
    """Whether the component has an output of this name."""
    return output in part.__haystack_output__


def _embeds_documents(part: Any) -> bool:
    # a ranker may have such fields too, and takes a query
    return _puts(part, "documents") and hasattr(part, "meta_fields_to_embed") and not _takes(part, "query")


def _takes(part: Any, input: str) -> bool:
    return input in part.__haystack_input__


def _encoder(texts: Any, documents: Any) -> SentenceEncoder:
    """The sentence-transformers model of the embedders: one tower where they share it, else two."""
    models = [model for part in (texts, documents) if (model := _model(part)) is not None]
    if not models or len(models) < sum(part is not None for part in (texts, documents)):
        names = [type(part).__name__ for part in (texts, documents) if part is not None]
        raise InputError(
            f"the pipelines' embedders {names} hold no sentence-transformers model to tune; pass encoder=, "
            "such as SentenceEncoder(name), and rag.dense.refresh() if another one wrote the index"
        )
    if suffix := getattr(texts, "suffix", ""):
        raise InputError(f"the text embedder puts {suffix!r} after a query, which no encoder does; pass encoder=")
    query, document = models[0], models[-1]
    # their embedders write prefixes into the text themselves; these names say what an encoder puts before it
    for model in models:
        model.prompts = {**model.prompts, "document": "", "passage": "", "corpus": ""}
    query.prompts = {**query.prompts, "query": getattr(texts, "prefix", "")}
    return SentenceEncoder(query, document_model=None if query is document else document)


def _model(part: Any) -> SentenceTransformer | None:
    if part is not None and hasattr(part, "embedding_backend") and part.embedding_backend is None:
        part.warm_up()
    model = getattr(getattr(part, "embedding_backend", None), "model", None)
    return model if isinstance(model, SentenceTransformer) else None
