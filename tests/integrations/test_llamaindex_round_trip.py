"""An index that LlamaIndex wrote, taken, tuned and asked by LlamaIndex again: it finds more than before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import TextNode

from embeddings import OwnEmbedding
from fedrag import Contrastive, Example, RAGTrainer
from fedrag.evaluation.statistics import sign_flip
from fedrag.integrations.llamaindex import from_llamaindex
from fedrag.quickstart.world import make_world, world_retriever
from systems import arguments


def hits(index: Any, questions: tuple[Example, ...], k: int = 5) -> np.ndarray:
    """Whether each question's passage is among the k that the index finds, `[n, 1]`."""
    retriever = index.as_retriever(similarity_top_k=k)
    found = [{node.node_id for node in retriever.retrieve(e.question)} for e in questions]
    return np.array([[float(e.positives[0] in ids)] for e, ids in zip(questions, found, strict=True)])


@pytest.mark.capability("LlamaIndex", "take, tune")
def test_a_tuned_index_finds_more_in_llamaindex_itself(tmp_path: Any) -> None:
    world = make_world(seed=1, train=60, dev=40, test=0)
    questions = world.dev[::2]  # the default store takes its time
    nodes = [
        TextNode(id_=d.id, text=d.text, metadata=dict(d.metadata), excluded_embed_metadata_keys=list(d.metadata))
        for d in world.documents
    ]
    index = VectorStoreIndex(nodes, embed_model=OwnEmbedding(world_retriever()))
    before = hits(index, questions)

    rag = from_llamaindex(index)
    training = arguments(tmp_path / "run", max_steps=30, per_device_train_batch_size=32, learning_rate=0.1)
    RAGTrainer(Contrastive(rag), train_dataset=list(world.train), args=training).train()
    after = hits(index, questions)
    print(f"recall@5 {before.mean():.3f} -> {after.mean():.3f}, n={len(before)}")
    assert after.mean() > before.mean()
    assert sign_flip(after - before).item() < 0.01

    index.storage_context.persist(str(tmp_path / "storage"))
    storage = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"))
    again: Any = load_index_from_storage(storage, embed_model=index._embed_model)
    np.testing.assert_array_equal(hits(again, questions[:50]), after[:50])
    node = again.docstore.get_node(nodes[0].node_id)
    assert (node.text, node.metadata) == (nodes[0].text, nodes[0].metadata)
