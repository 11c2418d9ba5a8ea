"""Which side of the retriever's encoder an objective trains, and what kind of encoder that needs."""

from __future__ import annotations

from typing import Literal

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import ConfigError
from fedrag.objectives.objective import one_of
from fedrag.rag import RAGSystem
from fedrag.types import Encoder

Side = Literal["query", "both"]


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
