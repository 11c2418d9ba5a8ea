"""An index that LangChain wrote is taken, the retriever tuned, and LangChain's own search finds more than before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document as Page
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from sentence_transformers import SentenceTransformer

from fedrag import Contrastive, RAGTrainer
from fedrag.evaluation.statistics import interval, sign_flip
from fedrag.integrations.langchain import from_langchain
from fedrag.quickstart.world import World, make_world, world_retriever
from systems import arguments


class Sentences(Embeddings):
    """An embedder over sentence-transformers, which keeps the model where LangChain's own package keeps it."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._client = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._client.encode(texts, show_progress_bar=False).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def written(world: World) -> InMemoryVectorStore:
    index = InMemoryVectorStore(Sentences(world_retriever()))
    pages = [Page(page_content=d.text, metadata=dict(d.metadata), id=d.id) for d in world.documents]
    index.add_documents(pages)
    return index


def hits(index: InMemoryVectorStore, world: World, k: int = 1) -> Any:
    """Whether LangChain's own search finds the gold document of each dev question: `[n, 1]`."""
    found = [index.similarity_search(example.question, k=k) for example in world.dev[::2]]
    return np.array(
        [[e.positives[0] in {p.id for p in pages}] for e, pages in zip(world.dev[::2], found, strict=True)], float
    )


@pytest.mark.parametrize("train", ["both", "query"])
@pytest.mark.capability("LangChain", "take, tune")
def test_langchains_own_search_is_better_after_tuning(tmp_path: Any, train: Any) -> None:
    world = make_world(seed=1, train=60, dev=40, test=0)
    index = written(world)
    before, about = hits(index, world), {id: (row["text"], row["metadata"]) for id, row in index.store.items()}
    rag = from_langchain(index)
    settings = {"max_steps": 30, "per_device_train_batch_size": 32, "learning_rate": 0.1}
    RAGTrainer(Contrastive(rag, train=train), train_dataset=world.train, args=arguments(tmp_path, **settings)).train()
    after = hits(index, world)
    low, _ = interval(after - before, bounds=(-1.0, 1.0))
    print(f"recall@1 {before.mean():.3f} -> {after.mean():.3f}, gain at least {low[0]:.3f}")
    assert sign_flip(after - before)[0] < 0.01
    assert low[0] > 0.1
    assert {id: (row["text"], row["metadata"]) for id, row in index.store.items()} == about
    asked = world.dev[0].question
    (mine,) = rag.retriever.retrieve([asked], 5)
    assert [hit.document.id for hit in mine] == [page.id for page in index.similarity_search(asked, k=5)]
