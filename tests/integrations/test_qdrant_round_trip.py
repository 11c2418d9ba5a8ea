"""A collection that Qdrant's own client wrote is taken, the retriever tuned, and Qdrant's own queries find more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from sentence_transformers import SentenceTransformer

from fedrag import Contrastive, Example, RAGTrainer, SentenceEncoder
from fedrag.evaluation.statistics import sign_flip
from fedrag.integrations.qdrant import from_qdrant
from fedrag.quickstart.world import make_world, world_retriever
from systems import arguments

WORLD = make_world(seed=1, train=60, dev=40, test=0)
NUMBER = {document.id: number for number, document in enumerate(WORLD.documents)}


def written(client: QdrantClient, model: SentenceTransformer, *, alias: bool) -> None:
    """The collection "facts", as a person makes it: numbers for ids, text and metadata side by side, by cosine."""
    name = "facts-2026" if alias else "facts"
    vectors = model.encode([document.text for document in WORLD.documents])
    size = vectors.shape[1]
    client.create_collection(name, vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE))
    payloads = [{"passage": document.text, **document.metadata} for document in WORLD.documents]
    client.upload_collection(name, vectors, payloads, ids=range(len(payloads)))
    if alias:
        create = models.CreateAlias(collection_name=name, alias_name="facts")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])


def found(client: QdrantClient, model: SentenceTransformer) -> np.ndarray:
    """Whether each dev question's passage is among the first three that Qdrant gives: `[n, 1]`."""
    vectors = model.encode([example.question for example in WORLD.dev])
    requests = [models.QueryRequest(query=vector, limit=3) for vector in vectors.tolist()]
    answers = client.query_batch_points("facts", requests)
    wanted = [NUMBER[example.positives[0]] for example in WORLD.dev]
    pairs = zip(wanted, answers, strict=True)
    return np.array([[want in [point.id for point in answer.points]] for want, answer in pairs], dtype=np.float64)


@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.capability("Qdrant", "take, tune")
def test_qdrants_own_queries_find_more_after_tuning(tmp_path: Path, alias: bool) -> None:
    client, model = QdrantClient(":memory:"), world_retriever()
    written(client, model, alias=alias)
    payloads: dict[Any, Any] = {point.id: point.payload for point in client.scroll("facts", limit=2000)[0]}
    before = found(client, model)

    rag = from_qdrant(client, "facts", encoder=SentenceEncoder(model), text_key="passage")
    train = [Example(e.question, e.answers, [str(NUMBER[e.positives[0]])]) for e in WORLD.train]
    args = arguments(tmp_path, max_steps=30, per_device_train_batch_size=32, learning_rate=0.1)
    RAGTrainer(Contrastive(rag), train_dataset=train, args=args).train()

    after = found(client, model)
    assert after.mean() > before.mean() + 0.1
    assert sign_flip(after - before)[0] < 0.01
    assert {point.id: point.payload for point in client.scroll("facts", limit=2000)[0]} == payloads
    again = from_qdrant(client, "facts", encoder=SentenceEncoder(model), text_key="passage")
    assert again.dense.store.fingerprint == again.dense.encoder.fingerprint  # a later process may ask at once
    (hit,) = again.retrieve(WORLD.dev[0].question, k=1, where={"field": "domain", "operator": "==", "value": "clinic"})
    assert hit.document.metadata["domain"] == "clinic"
    print(f"recall@3 {before.mean():.3f} -> {after.mean():.3f}")
