"""An index that Haystack wrote, tuned here and asked by Haystack: more questions find their document."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is first imported

import numpy as np
import pytest
from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from sentence_transformers import SentenceTransformer

from fedrag import Contrastive, RAGTrainer
from fedrag.evaluation.statistics import sign_flip
from fedrag.integrations.haystack import from_haystack, swap_embedders, to_haystack
from fedrag.quickstart.world import make_world, world_retriever
from systems import arguments

WORLD = make_world(seed=1, train=60, dev=40, test=0)
ASKED = WORLD.dev[::3]  # 160 questions


@component
class Queries:
    """Laid out as Haystack's SentenceTransformersTextEmbedder, around a model that is there already."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.embedding_backend = SimpleNamespace(model=model)
        self.prefix, self.suffix = "", ""

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        return {"embedding": self.embedding_backend.model.encode([text])[0].tolist()}


@component
class Passages:
    """Laid out as Haystack's SentenceTransformersDocumentEmbedder."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.embedding_backend = SimpleNamespace(model=model)
        self.meta_fields_to_embed = ["domain"]
        self.embedding_separator, self.prefix, self.suffix = " : ", "", " ."

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        texts = [f"{document.meta['domain']} : {document.content} ." for document in documents]
        vectors = self.embedding_backend.model.encode(texts).tolist()
        return {"documents": [replace(d, embedding=vector) for d, vector in zip(documents, vectors, strict=True)]}


def hits(pipeline: Pipeline) -> np.ndarray:
    """Per question, whether Haystack's five documents hold the right one: `[n, 1]`."""
    found: list[float] = []
    for example in ASKED:
        documents = pipeline.run({"query": {"text": example.question}})["retriever"]["documents"]
        assert len(documents) == 5
        found.append(float(example.positives[0] in {document.id for document in documents}))
    return np.array(found)[:, None]


@pytest.mark.capability("Haystack", "take, tune")
def test_an_index_of_haystack_is_taken_tuned_and_given_back_better(tmp_path: Any) -> None:
    store, model = InMemoryDocumentStore(), world_retriever()
    indexing = Pipeline()
    indexing.add_component("embedder", Passages(model))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder", "writer")
    given = [Document(id=d.id, content=d.text, meta={**d.metadata}) for d in WORLD.documents]
    indexing.run({"embedder": {"documents": given}})
    asking = Pipeline()
    asking.add_component("query", Queries(model))
    asking.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=5))
    asking.connect("query.embedding", "retriever.query_embedding")
    before = hits(asking)

    rag = from_haystack(indexing, asking)
    args = arguments(tmp_path, max_steps=30, per_device_train_batch_size=32, learning_rate=0.1)
    RAGTrainer(Contrastive(rag), train_dataset=WORLD.train, args=args).train()

    after = hits(asking)
    assert sign_flip(after - before)[0] < 0.01
    assert after.mean() > before.mean() + 0.2, (before.mean(), after.mean())
    written = store.filter_documents()
    assert [replace(d, embedding=None) for d in written] == given  # ids, content and metadata as they were

    # the embedder that was there holds the tuned model; ours in its place, and our own pipeline, find the same
    tuned = [asking.run({"query": {"text": example.question}})["retriever"]["documents"] for example in ASKED[:20]]
    assert swap_embedders(asking, rag) == ["query"]
    ours = to_haystack(rag)
    for example, theirs in zip(ASKED[:20], tuned, strict=True):
        swapped = asking.run({"query": {"text": example.question}})["retriever"]["documents"]
        found = ours.run({"retriever": {"query": example.question}})["retriever"]["documents"]
        for documents in (swapped, found):
            assert [(d.id, d.content, d.meta) for d in documents] == [(d.id, d.content, d.meta) for d in theirs]
