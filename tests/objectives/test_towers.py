"""Encoders of other kinds: any `Encoder` trains where its parts allow it, and what cannot be is named."""

import pytest
import torch
from torch import nn

from fedrag import LSR, Contrastive, DenseRetriever, Document, Example, MemoryStore, RAGSystem, SentenceLoss
from fedrag.errors import ConfigError
from fedrag.objectives.distillation import Distillation
from judges import Opinion
from systems import tiny_system

WORDS = ["clerk", "key", "room", "one", "two", "three"]
DOCUMENTS = [Document(f"key {word}", id=word) for word in WORDS[3:]]
BATCH = [Example(f"room {word}", [word], positives=[word]) for word in WORDS[3:]]


class Bag:
    """An encoder that is nothing of sentence-transformers: the mean of word vectors, from one table or two."""

    def __init__(self, towers=1):
        self.tables = {
            name: nn.EmbeddingBag(len(WORDS), 8) for name in (["query", "document"] if towers == 2 else ["table"])
        }

    def _encode(self, texts, name):
        rows = [torch.tensor([[WORDS.index(word) for word in text.split()]]) for text in texts]
        return torch.cat([self.tables.get(name, self.tables.get("table"))(row) for row in rows])

    def encode_queries(self, texts):
        return self._encode(texts, "query")

    def encode_documents(self, texts):
        return self._encode(texts, "document")

    @property
    def fingerprint(self):
        return str(self.tables.get("document", self.tables.get("table")).weight.sum().item())

    def parts(self):
        return self.tables


def system(towers):
    rag = RAGSystem(retriever=DenseRetriever(Bag(towers), MemoryStore()), generator=tiny_system().generator)
    rag.add(DOCUMENTS, progress=False)
    return rag


OBJECTIVES = {
    "LSR": lambda rag, train: LSR(rag, k=3, train=train),
    "Contrastive": lambda rag, train: Contrastive(rag, train=train),
    "Distillation": lambda rag, train: Distillation(rag, Opinion(lambda q, d: float(q[-1] == d[-1])), k=3, train=train),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("towers", "train", "moved"), [(1, "both", {"table"}), (2, "query", {"query"})])
def test_an_encoder_of_another_kind_trains(name, towers, train, moved):
    objective = OBJECTIVES[name](system(towers), train)
    assert {place.split("/")[1] for place in objective.trainable()} == moved
    objective(BATCH)["loss"].backward()
    assert all(parameter.grad.any() for parameter in objective.trainable().values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_query_tower_cannot_be_made_for_it(name):
    with pytest.raises(ConfigError, match=rf"^{name}\(train='query'\).* a Bag has \['table'\]: use train='both'"):
        OBJECTIVES[name](system(1), "query")


def test_losses_of_sentence_transformers_want_its_encoder():
    with pytest.raises(ConfigError, match=r"SentenceLoss works on a SentenceTransformer, .* is a Bag: use a Sentence"):
        SentenceLoss(system(1), lambda model: model)
