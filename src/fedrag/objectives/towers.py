"""Which side of the retriever's encoder an objective trains, or its reranker, and what that needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import ConfigError
from fedrag.objectives.objective import one_of
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.nested import find
from fedrag.retrievers.reranked import Reranked
from fedrag.types import Document, Encoder

Side = Literal["query", "both"]
Learner = Literal["query", "both", "reranker"]


@dataclass(frozen=True, slots=True)
class Student:
    """What learns to score documents: the prefix of its parts, and the temperature that its scores want."""

    rag: RAGSystem
    part: str
    temperature: float

    def scores(self, questions: Sequence[str], documents: Sequence[Sequence[Document]]) -> Tensor:
        """Its scores of each question's own candidates, with gradient: `[n, k]`, `-inf` where there are fewer."""
        scorer = self.rag.reranker if self.part == "reranker" else self.rag.dense
        return scorer.scores(questions, documents)


def student(rag: RAGSystem, train: Learner, objective: str) -> Student:
    """The retriever, or the reranker, as a student. Raises `ConfigError` for what cannot learn."""
    one_of("train", train, ("query", "both", "reranker"))
    if train == "reranker":
        return Student(rag, trained_reranker(rag, objective), 1.0)
    side = trained_side(rag, train, objective)
    return Student(rag, side, prior_temperature(rag))


def prior_temperature(rag: RAGSystem) -> float:
    """What the scores of vectors are divided by: the system's own, unless that is meant for scores of another kind."""
    return rag.temperature if isinstance(rag.retriever, DenseRetriever) else rag.dense.temperature


def trained_reranker(rag: RAGSystem, objective: str) -> str:
    """The prefix of the reranker's parts. Raises `ConfigError` where there is none to train."""
    found = find(rag.retriever, Reranked)
    if found is None or not isinstance(found.reranker, nn.Module):
        what = type(rag.retriever).__name__ if found is None else type(found.reranker).__name__
        raise ConfigError(
            f"{objective} trains a reranker, the system has a {what}: make its retriever "
            "Reranked(retriever, CrossEncoderReranker(name))"
        )
    return "reranker"


def trained_side(rag: RAGSystem, train: Side, objective: str) -> str:
    """The prefix of the parts that move; for "query", a one-tower `SentenceEncoder` gets a query tower of its own.

    Raises:
        ConfigError: for another value, or an encoder of another kind without a part named "query".
    """
    one_of("train", train, ("query", "both"))
    if train == "query":
        _separate(rag.dense.encoder, objective)
    return "retriever/query" if train == "query" else "retriever/"


def sentence_encoder(encoder: Encoder, objective: str) -> SentenceEncoder:
    """The encoder, where it is a `SentenceEncoder`. Raises `ConfigError` where it is not."""
    if not isinstance(encoder, SentenceEncoder):
        raise ConfigError(
            f"{objective} works on a SentenceTransformer, the system's encoder is a {type(encoder).__name__}: use a "
            "SentenceEncoder, or an objective that any encoder serves, such as Contrastive(train='both')"
        )
    return encoder


def _separate(encoder: Encoder, objective: str) -> None:
    if isinstance(encoder, SentenceEncoder):
        encoder.untie()
    elif "query" not in encoder.parts():
        raise ConfigError(
            f"{objective}(train='query') moves the part 'query' of the encoder, a {type(encoder).__name__} has "
            f"{sorted(encoder.parts())}: use train='both', or name the part that queries alone pass through 'query'"
        )
