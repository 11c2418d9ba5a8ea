"""LlamaIndex's nodes, filters and stores in the terms of this package, and the other way round.

A node becomes a `Document` of the same id whose text is what LlamaIndex embeds, metadata included, and whose metadata
carry the whole node, as LlamaIndex's own vector stores carry it; so it comes back as it was, after saving too.

>>> from llama_index.core.schema import TextNode
>>> document = to_document(TextNode(id_="p", text="Paris", metadata={"kind": "city"}))
>>> document.id, document.text, document.metadata["kind"], to_node(document).metadata
('p', 'kind: city\\n\\nParis', 'city', {'kind': 'city'})
"""

# ruff: noqa: E402  (imports after `require`)

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fedrag.errors import InputError
from fedrag.filters import compile_filter
from fedrag.optional import require
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.types import Document, Where

require("llama_index.core", extra="llamaindex")

from llama_index.core import VectorStoreIndex
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

_WHOLE = ("_node_content", "_node_type")  # where LlamaIndex keeps the whole node among its metadata
_PLACE = ("document_id", "doc_id", "ref_doc_id")  # and the document that it is a part of
_ALL = 10**9
_PAGE = 256  # nodes written at a time
_SAME = ("==", "!=", ">", ">=", "<", "<=", "in")


def to_document(node: BaseNode) -> Document:
    """Return a node as a document: the text is what LlamaIndex embeds, the id is the node's."""
    return Document(node.get_content(metadata_mode=MetadataMode.EMBED), node.node_id, node_to_metadata_dict(node))


def to_node(document: Document) -> BaseNode:
    """Return the node that a document was, or a new one, its own source, embedded and read by its text alone."""
    if _WHOLE[0] in document.metadata:
        node = metadata_dict_to_node(dict(document.metadata))
        again = to_document(node)
        if (again.text, again.id, _own(again, _WHOLE)) == (document.text, document.id, _own(document, _WHOLE)):
            return node  # else somebody changed the document since
        metadata = _own(document, _WHOLE + _PLACE)
    else:
        metadata = dict(document.metadata)
    return TextNode(
        id_=document.id,
        text=document.text,
        metadata=metadata,
        excluded_embed_metadata_keys=list(metadata),
        excluded_llm_metadata_keys=list(metadata),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=_source(document))},
    )


def to_where(filters: MetadataFilters | None) -> Where | None:
    """Return LlamaIndex's filters in the shape of `fedrag.filters`; they mean what they mean to `SimpleVectorStore`.

    Nested ones are taken too. Raises `InputError` for the operators `any`, `all`, `contains` and the text matches.
    """
    if filters is None or not filters.filters:
        return None
    conditions = [to_where(one) if isinstance(one, MetadataFilters) else _comparison(one) for one in filters.filters]
    if filters.condition == FilterCondition.NOT:  # none of them matches
        return {"operator": "NOT", "conditions": [{"operator": "OR", "conditions": conditions}]}
    return {"operator": "OR" if filters.condition == FilterCondition.OR else "AND", "conditions": conditions}


class VectorStore(BasePydanticVectorStore):
    """The knowledge of a RAG system as a vector store of LlamaIndex; `client` is the system.

    Nodes are embedded here, by the document encoder, whatever vectors they bring: others would not be comparable.
    `persist` writes the whole system into the folder `fedrag` beside LlamaIndex's files, for `RAGSystem.load`.
    """

    stores_text: bool = True
    _rag: RAGSystem = PrivateAttr()

    def __init__(self, rag: RAGSystem) -> None:
        dense = isinstance(rag.retriever, DenseRetriever)
        super().__init__(stores_text=True, is_embedding_query=dense)  # others are asked with the question's words
        self._rag = rag

    @property
    def client(self) -> RAGSystem:
        """The RAG system."""
        return self._rag

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Insert or replace nodes; return their ids."""
        if nodes:
            self._rag.dense.add([to_document(node) for node in nodes], progress=False)
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """`add`, off the event loop."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a source document."""
        self._remove(document for document in self._documents() if _source(document) == ref_doc_id)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete the nodes that are among these ids, where given, and match the filters, where given."""
        if node_ids is None and filters is None:
            raise InputError("delete_nodes() got neither node_ids nor filters; to delete all nodes, call clear()")
        self._remove(self._documents(node_ids, filters))

    def clear(self) -> None:
        """Delete all nodes."""
        self._remove(self._documents())

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes that are among these ids, where given, and match the filters, with their vectors."""
        documents = list(self._documents(node_ids, filters))
        vectors = self._rag.dense.store.vectors([document.id for document in documents]).tolist() if documents else []
        nodes = [to_node(document) for document in documents]
        for node, vector in zip(nodes, vectors, strict=True):
            node.embedding = vector
        return nodes

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nearest nodes among those that match the filters, best first, with their scores.

        Raises `InputError` for another mode than the default one, `StaleIndexError` after an unfinished tuning.
        """
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise InputError(f"the query mode is {query.mode.value!r}, only 'default' is there; leave it out")
        where, k = to_where(query.filters), query.similarity_top_k
        some = query.node_ids is not None or query.doc_ids is not None
        if some:
            k = max(1, len(self._rag.dense.store))  # all of them, to choose from
        if query.query_embedding is None:
            hits = self._rag.retrieve(query.query_str or "", k=k, where=where)
        else:
            self._rag.dense.check_fresh()
            (hits,) = self._rag.dense.store.search(torch.tensor([query.query_embedding]), k, where)
        if query.node_ids is not None:
            hits = [hit for hit in hits if hit.document.id in query.node_ids]
        if query.doc_ids is not None:
            hits = [hit for hit in hits if _source(hit.document) in query.doc_ids]
        hits = hits[: query.similarity_top_k]
        return VectorStoreQueryResult(
            nodes=[to_node(hit.document) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.document.id for hit in hits],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """`query`, off the event loop."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Write the system into the folder `fedrag` beside `persist_path`."""
        if fs is not None:
            raise InputError(
                f"got the file system {type(fs).__name__}, a system is saved on a local disk only: omit fs"
            )
        self._rag.save(Path(persist_path).parent / "fedrag")

    def _documents(self, ids: list[str] | None = None, filters: MetadataFilters | None = None) -> Iterator[Document]:
        where = to_where(filters)
        keep = compile_filter(where) if where is not None else None
        wanted = None if ids is None else set(ids)
        for document in self._rag.dense.store.documents():
            if (wanted is None or document.id in wanted) and (keep is None or keep(document.metadata)):
                yield document

    def _remove(self, documents: Iterable[Document]) -> None:
        self._rag.dense.store.remove([document.id for document in documents])


class IndexOutside:
    """A `VectorStoreIndex`, as `fedrag.integrations.mirror` reads and writes it."""

    def __init__(self, index: VectorStoreIndex) -> None:
        self._index = index

    def read(self) -> Iterator[tuple[Document, Sequence[float] | None]]:
        """Yield every node with its vector. Raises `InputError` for a store that cannot list its nodes."""
        return ((to_document(node), vector) for node, vector in self._nodes())

    def insert(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert documents with their `[n, d]` vectors, in the place of nodes of their ids."""
        nodes = [to_node(document) for document in documents]
        for node, vector in zip(nodes, vectors.tolist(), strict=True):
            node.embedding = vector
        self._put(nodes)

    def update(self, documents: Sequence[Document], vectors: Tensor) -> int:
        """Give nodes that are as they were new `[n, d]` vectors; return how many are not."""
        there = {node.node_id: node for node, _ in self._nodes()}
        nodes: list[BaseNode] = []
        for document, vector in zip(documents, vectors.tolist(), strict=True):
            node = there.get(document.id)
            if node is not None and to_document(node).text == document.text:
                nodes.append(node.model_copy(update={"embedding": vector}))
        for start in range(0, len(nodes), _PAGE):
            self._put(nodes[start : start + _PAGE])
        return len(documents) - len(nodes)

    def remove(self, ids: Sequence[str]) -> None:
        """Delete the nodes of these ids, from the document store too."""
        self._index.delete_nodes(list(ids), delete_from_docstore=True)

    def _put(self, nodes: Sequence[BaseNode]) -> None:
        self._index.delete_nodes([node.node_id for node in nodes])
        self._index.insert_nodes(nodes)  # vectors that are there are kept

    def _nodes(self) -> Iterator[tuple[BaseNode, Sequence[float] | None]]:
        store = self._index.vector_store
        if not store.stores_text:
            for node in self._index.docstore.get_nodes(list(self._index.index_struct.nodes_dict.values())):
                vectors = store.data.embedding_dict if isinstance(store, SimpleVectorStore) else {}
                yield node, vectors.get(node.node_id)
            return
        # some list no more than a number of nodes unless told otherwise
        limited = "limit" in signature(store.get_nodes).parameters
        try:
            nodes = cast(Any, store).get_nodes(**({"limit": _ALL} if limited else {}))
        except NotImplementedError as error:
            raise InputError(
                f"the {type(store).__name__} cannot list its nodes (get_nodes): make a VectorStoreIndex over a store "
                "that can, such as the default one, from the same nodes"
            ) from error
        for node in nodes:
            yield node, node.embedding


def _own(document: Document, others: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in document.metadata.items() if key not in others}


def _source(document: Document) -> str:
    """The id of the document that LlamaIndex cut this one from; its own, if it did not."""
    return document.metadata["ref_doc_id"] if _WHOLE[0] in document.metadata else document.id


def _comparison(one: MetadataFilter) -> Where:
    absent: Where = {"field": one.key, "operator": "exists", "value": False}
    if one.operator == FilterOperator.IS_EMPTY:
        empty = {"field": one.key, "operator": "in", "value": [None, "", []]}
        return {"operator": "OR", "conditions": [absent, empty]}
    name = "not in" if one.operator == FilterOperator.NIN else one.operator.value
    if name not in (*_SAME, "not in"):
        raise InputError(
            f"the filter of {one.key!r} has the operator {name!r}; take one of {', '.join(_SAME)}, nin or is_empty"
        )
    comparison: Where = {"field": one.key, "operator": name, "value": cast(Any, one.value)}
    if one.operator in (FilterOperator.NE, FilterOperator.NIN):  # what has no value has another one, to LlamaIndex
        return {"operator": "OR", "conditions": [absent, comparison]}
    return comparison
