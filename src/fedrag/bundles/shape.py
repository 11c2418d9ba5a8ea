"""How retrievers are put together, as plain JSON: what a saved system says of its retriever beside the parts.

{"kind": "reranked", "depth": 50, "retriever": {"kind": "hybrid", ..., "retrievers": [{"kind": "dense"}, ...]}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.hybrid import HybridRetriever
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.retrievers.reranked import Reranked, Reranker
from fedrag.types import KnowledgeStore, Retriever


def shape_of(retriever: Retriever, store: KnowledgeStore) -> dict[str, Any]:
    """What `build` makes the retriever of again, over the system's store.

    Raises:
        InputError: for a retriever that is none of fedrag's own, or words of other documents than the store's.
    """
    if isinstance(retriever, DenseRetriever):
        return {"kind": "dense"}
    if isinstance(retriever, LexicalRetriever) and retriever.store is store:
        return {"kind": "lexical", "variant": retriever.variant, "k1": retriever.k1, "b": retriever.b}
    if isinstance(retriever, HybridRetriever):
        inner = [shape_of(part, store) for part in retriever.inside]
        settings = {"depth": retriever.depth, "constant": retriever.constant, "weights": retriever.weights}
        return {"kind": "hybrid", "retrievers": inner, **settings}
    if isinstance(retriever, Reranked):
        return {"kind": "reranked", "retriever": shape_of(retriever.retriever, store), "depth": retriever.depth}
    if isinstance(retriever, LexicalRetriever):
        raise InputError(
            "save() keeps one store, the LexicalRetriever has documents of its own: make it over that store"
        )
    raise InputError(
        f"save() writes dense, lexical, hybrid and reranked retrievers, the system has a {type(retriever).__name__} "
        "inside: save the system without it"
    )


def build(
    shape: Mapping[str, Any], encoder: SentenceEncoder, store: KnowledgeStore, reranker: Reranker | None
) -> Retriever:
    """The retriever of a shape. Raises `KeyError`, `TypeError` or `ConfigError` for what `shape_of` never gives."""
    settings = {name: value for name, value in shape.items() if name not in ("kind", "retriever", "retrievers")}
    match shape["kind"], reranker:
        case "dense", _:
            return DenseRetriever(encoder, store)
        case "lexical", _:
            return LexicalRetriever(store, **settings)
        case "hybrid", _:
            return HybridRetriever([build(part, encoder, store, reranker) for part in shape["retrievers"]], **settings)
        case "reranked", Reranker():
            return Reranked(build(shape["retriever"], encoder, store, reranker), reranker, **settings)
        case _:
            raise KeyError(shape["kind"])
