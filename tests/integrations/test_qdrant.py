"""A Qdrant collection as a knowledge store, on the client's own database in memory and in a folder."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
import torch
from haystack import Document as HaystackDocument
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from qdrant_client import QdrantClient, models

from fedrag import Answer, CausalLM, DenseRetriever, Document, SentenceEncoder
from fedrag.errors import InputError, MissingExtraError, StaleIndexError, StoreError
from fedrag.integrations import qdrant_filters
from fedrag.integrations.mirror import UNKNOWN
from fedrag.integrations.qdrant import QdrantStore, from_qdrant
from fedrag.integrations.qdrant_collection import PARTIAL
from fedrag.integrations.qdrant_filters import narrow
from stores.contract import StoreContract, brute_force, ids_and_scores, some
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

TEXTS = [f"clerk {n} holds key {n * 7}" for n in range(20)]
WIDTH = 32
COSINE = models.VectorParams(size=WIDTH, distance=models.Distance.COSINE)


class TestInMemory(StoreContract):
    @pytest.fixture
    def store(self):
        return lambda: QdrantStore(QdrantClient(":memory:"), "handbook")


class TestInAFolder(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path):
        clients: list[QdrantClient] = []

        def make() -> QdrantStore:
            clients.append(QdrantClient(path=str(tmp_path / f"{len(clients)}")))
            return QdrantStore(clients[-1], "handbook")

        yield make
        for client in clients:
            client.close()


def encoder(seed: int = 0) -> SentenceEncoder:
    return SentenceEncoder(tiny_sentence_transformer(kind="static", seed=seed, width=WIDTH))


def embedded(texts: Sequence[str], seed: int = 0) -> list[list[float]]:
    return encoder(seed).encode_documents(texts).tolist()


def langchain(client: QdrantClient) -> list[Document]:
    """What langchain-qdrant writes."""
    client.create_collection("theirs", vectors_config={"": COSINE})
    ids = [str(UUID(int=n)) for n in range(20)]
    points = [
        models.PointStruct(id=id, vector=vector, payload={"page_content": text, "metadata": {"row": n}})
        for n, (id, text, vector) in enumerate(zip(ids, TEXTS, embedded(TEXTS), strict=True))
    ]
    client.upsert("theirs", points)
    return [Document(text, id, {"row": n}) for n, (id, text) in enumerate(zip(ids, TEXTS, strict=True))]


def llama_index(client: QdrantClient) -> list[Document]:
    """What llama-index-vector-stores-qdrant writes: its payloads are made by llama-index-core."""
    client.create_collection("theirs", vectors_config={"text-dense": COSINE})
    metadata = [{"row": n, "file": "a.txt"} for n in range(20)]
    nodes = [
        TextNode(id_=str(UUID(int=n)), text=text, metadata=metadata[n], excluded_embed_metadata_keys=["file"])
        for n, text in enumerate(TEXTS)
    ]
    texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
    points = [
        models.PointStruct(id=node.node_id, vector={"text-dense": vector}, payload=node_to_metadata_dict(node))
        for node, vector in zip(nodes, embedded(texts), strict=True)
    ]
    client.upsert("theirs", points)
    return [Document(texts[n], node.node_id, metadata[n]) for n, node in enumerate(nodes)]


def haystack(client: QdrantClient) -> list[Document]:
    """What qdrant-haystack writes: its payloads are made by haystack, its points' ids are UUIDs of theirs."""
    client.create_collection("theirs", vectors_config=COSINE)
    made = [HaystackDocument(content=text, meta={"row": n}) for n, text in enumerate(TEXTS)]
    points: list[models.PointStruct] = []
    for document, vector in zip(made, embedded(TEXTS), strict=True):
        payload = document.to_dict(flatten=False)
        del payload["embedding"]
        id = uuid5(UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d"), document.id).hex
        points.append(models.PointStruct(id=id, vector=vector, payload=payload))
    client.upsert("theirs", points)
    return [Document(each.content or "", each.id, each.meta) for each in made]


def plain(client: QdrantClient) -> list[Document]:
    """What a person writes: numbers for ids, the text beside everything else."""
    client.create_collection("theirs", vectors_config=COSINE)
    points = [
        models.PointStruct(id=n, vector=vector, payload={"body": TEXTS[n], "row": n})
        for n, vector in enumerate(embedded(TEXTS))
    ]
    client.upsert("theirs", points)
    return [Document(text, str(n), {"row": n}) for n, text in enumerate(TEXTS)]


WRITERS = [langchain, llama_index, haystack, plain]


def payloads(client: QdrantClient, name: str = "theirs") -> dict[Any, Any]:
    return {point.id: point.payload for point in client.scroll(name, limit=1000)[0]}


def taken(client: QdrantClient, seed: int = 0, **settings: Any) -> DenseRetriever:
    if "body" in (client.scroll("theirs", limit=1)[0][0].payload or {}):
        settings["text_key"] = "body"
    return from_qdrant(client, "theirs", encoder=encoder(seed), **settings).dense


@pytest.mark.parametrize("write", WRITERS)
def test_a_collection_of_another_library_is_read_as_that_library_wrote_it(write: Any) -> None:
    client = QdrantClient(":memory:")
    documents = write(client)
    retriever = taken(client)
    assert sorted(retriever.store.documents(), key=lambda each: each.metadata["row"]) == documents
    assert retriever.store.get([documents[7].id]) == [documents[7]]
    (hits,) = retriever.retrieve([documents[3].text], 2, {"field": "row", "operator": ">", "value": 2})
    assert hits[0].document == documents[3]
    assert retriever.store.fingerprint == encoder().fingerprint


@pytest.mark.parametrize("write", WRITERS)
def test_a_refresh_changes_the_vectors_and_nothing_else(write: Any) -> None:
    client = QdrantClient(":memory:")
    documents = write(client)
    before = payloads(client)
    retriever = taken(client, seed=1)
    assert retriever.store.fingerprint == UNKNOWN
    with pytest.raises(StaleIndexError):
        retriever.retrieve(["clerk 3"], 1)
    assert retriever.refresh(progress=False) == 20
    assert payloads(client) == before
    assert [found.name for found in client.get_collections().collections] == ["theirs"]
    wanted = torch.tensor(embedded([each.text for each in documents], seed=1))
    assert torch.allclose(retriever.store.vectors([each.id for each in documents]), wanted, atol=1e-6)
    assert taken(client, seed=1).store.fingerprint == encoder(1).fingerprint


@pytest.mark.parametrize("write", WRITERS)
def test_new_documents_take_the_layout_of_the_collection(write: Any) -> None:
    client = QdrantClient(":memory:")
    documents = write(client)
    there = payloads(client)
    retriever = taken(client)
    retriever.add([Document("a new one", "some id", {"row": 99}), Document("other", documents[4].id)], progress=False)
    assert retriever.store.get(["some id"]) == [Document("a new one", "some id", {"row": 99})]
    assert retriever.store.get([documents[4].id])[0].text == "other"
    assert len(retriever.store) == 21  # the other one took the place of the old
    (new,) = [payload for id, payload in payloads(client).items() if id not in there]
    if write is llama_index:
        node = metadata_dict_to_node(new)
        assert (node.get_content(MetadataMode.EMBED), node.metadata, node.node_id) == (
            "a new one",
            {"row": 99},
            "some id",
        )
    elif write is haystack:
        read = HaystackDocument.from_dict(new)
        assert (read.content, read.meta, read.id) == ("a new one", {"row": 99}, "some id")
    elif write is langchain:
        assert (new["page_content"], new["metadata"]) == ("a new one", {"row": 99})
    else:
        assert (new["body"], new["row"]) == ("a new one", 99)


METADATA: list[dict[str, Any]] = [
    {"v": 1}, {"v": 1.0}, {"v": True}, {"v": "1"}, {"v": [1]}, {"v": ["a", "b"]}, {"v": "a"}, {"v": None}, {"v": []},
    {}, {"v": {"deep": "a"}}, {"v.deep": "a"}, {"v": {"deep": 2}, "v.deep": "b"}, {"v": 2**53 + 1}, {"v": "b"},
    {"v": False}, {"v": 0}, {"v": -3.5}, {"w": 'a"b', 'q"': 1}, {"doc_id": "x"}, {"v": {}}, {"v": 10**400}, {"": 1},
]  # fmt: skip
COMPARISONS: list[tuple[str, Any]] = [
    ("==", 1), ("==", True), ("==", "a"), ("==", None), ("==", ["a", "b"]), ("==", {"deep": "a"}), ("==", 2**53 + 1),
    ("==", 10**400), ("!=", 1), ("!=", "a"), ("in", ["a", 1, None]), ("in", []), ("in", [[1], "b"]), ("not in", ["a"]),
    (">", 0), (">=", 1), ("<", 1), ("<=", -3.5), (">", "a"), ("<=", "a"), (">", 10**400), ("<", float("inf")),
    ("exists", True), ("exists", False), ("==", 2**53),
]  # fmt: skip


@pytest.mark.parametrize("text_key", [None, "body"])
@pytest.mark.parametrize("field", ["v", "meta.v", "v.deep", "w", 'q"', "doc_id", "", "a..b"])
@pytest.mark.capability("Qdrant", "filter")
def test_filters_mean_what_they_mean_everywhere(field: str, text_key: str | None) -> None:
    documents = [Document("", f"d{n}", metadata) for n, metadata in enumerate(METADATA)]
    vectors = torch.randn(len(documents), 4, generator=torch.Generator().manual_seed(0))
    store = QdrantStore(QdrantClient(":memory:"), "c", text_key=text_key)
    store.add(documents, vectors)
    query = torch.ones(1, 4)
    for operator, value in COMPARISONS:
        one = {"field": field, "operator": operator, "value": value}
        other = {"field": "v", "operator": "==", "value": "a"}
        for where in (
            one,
            {"operator": "NOT", "conditions": [one]},
            {"operator": "and", "conditions": [one, {"operator": "NOT", "conditions": [other]}]},
            {"operator": "OR", "conditions": [one, other]},
        ):
            found = ids_and_scores(store.search(query, 3, where)[0])
            assert found == brute_force(documents, vectors, query[0], 3, where), where


def test_llama_index_writes_over_some_keys_of_its_own_metadata() -> None:
    client = QdrantClient(":memory:")
    llama_index(client)
    retriever = taken(client)
    retriever.add([Document("a new one", "new", {"doc_id": "mine"})], progress=False)
    (hits,) = retriever.retrieve(["clerk"], 5, {"field": "doc_id", "operator": "==", "value": "mine"})
    assert [hit.document.id for hit in hits] == ["new"]


@pytest.mark.parametrize(
    "where",
    [
        {"field": "even", "operator": "==", "value": True},
        {"field": "row", "operator": "in", "value": [3, 4.0]},
        {"field": "row", "operator": "<", "value": 4.5},
        {"field": "deep.tag", "operator": "==", "value": "t1"},
        {"operator": "OR", "conditions": [{"field": "row", "operator": "==", "value": n} for n in (1, 8)]},
        {"field": "absent", "operator": "exists", "value": False},
    ],
)
def test_qdrant_itself_narrows_the_search(where: dict[str, Any]) -> None:
    documents, vectors = some(50)
    client = QdrantClient(":memory:")
    store = QdrantStore(client, "c")
    store.add(documents, vectors)
    count = client.count("c", count_filter=narrow(where, store.layout.paths)).count
    assert count == len(brute_force(documents, vectors, vectors[0], 50, where)) > 0


def test_what_qdrant_cannot_narrow_is_looked_for_until_it_is_found() -> None:
    documents, vectors = some(400)
    store = QdrantStore(QdrantClient(":memory:"), "c")
    store.add(documents, vectors)
    worst = [int(id[1:]) for id, _ in brute_force(documents, vectors, torch.ones(8), 400)[-4:]]
    where = {"operator": "NOT", "conditions": [{"field": "row", "operator": "not in", "value": worst}]}
    found = ids_and_scores(store.search(torch.ones(1, 8), 3, where)[0])
    assert found == brute_force(documents, vectors, torch.ones(8), 3, where)
    assert len(found) == 3


@pytest.mark.capability("Qdrant", "save and load")
def test_a_reopened_folder_knows_everything(tmp_path: Path) -> None:
    documents, vectors = some(20)
    client = QdrantClient(path=str(tmp_path))
    store = QdrantStore(client, "handbook")
    store.fingerprint = "encoder"
    store.add(documents, vectors)
    store.rebuild("next").put(["d3", "d4"], torch.ones(2, 5))
    client.close()
    client = QdrantClient(path=str(tmp_path))
    opened = QdrantStore(client, "handbook")
    assert opened.fingerprint == "encoder"
    assert list(opened.documents()) == documents
    assert torch.equal(opened.vectors([document.id for document in documents]), vectors)
    assert [len(batch) for batch in opened.rebuild("next").missing(99)] == [18]  # it goes on where it stopped
    client.close()


class Breaks(QdrantClient):
    """A client whose connection breaks after so many more writes."""

    left = 10**9

    def upsert(self, *args: Any, **settings: Any) -> Any:
        return self._unless_broken(super().upsert, *args, **settings)

    def update_vectors(self, *args: Any, **settings: Any) -> Any:
        return self._unless_broken(super().update_vectors, *args, **settings)

    def update_collection_aliases(self, *args: Any, **settings: Any) -> Any:
        return self._unless_broken(super().update_collection_aliases, *args, **settings)

    def _unless_broken(self, write: Any, *args: Any, **settings: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError("the connection broke")
        return write(*args, **settings)


@pytest.mark.parametrize("alias", [True, False])
def test_a_refresh_that_breaks_anywhere_goes_on(alias: bool) -> None:
    texts = [f"clerk {n}" for n in range(600)]
    client = Breaks(":memory:")
    if not alias:
        client.create_collection("c", vectors_config=COSINE)
    DenseRetriever(encoder(), QdrantStore(client, "c")).add([Document(text) for text in texts], progress=False)
    ids = [document.id for document in QdrantStore(client, "c").documents()]
    old, new = (torch.tensor(embedded(texts, seed)) for seed in (0, 1))
    for breaks in range(10):
        store = QdrantStore(client, "c")  # as a new process has it
        retriever = DenseRetriever(encoder(1), store, batch_size=16)  # which gives it 256 vectors at a time
        client.left = 1 if breaks < 9 else 10**9
        try:
            embedded_again = retriever.refresh(progress=False)
            break
        except OSError:
            pass
        vectors, fingerprint = store.vectors(ids), store.fingerprint
        if fingerprint == encoder().fingerprint:
            assert torch.allclose(vectors, old, atol=1e-6)
        else:  # without an alias a part may be written over, which is known
            assert (alias, fingerprint) == (False, PARTIAL)
    assert breaks >= 3
    assert embedded_again == 0  # all were there: they had only to be put in place
    assert store.fingerprint == encoder(1).fingerprint
    assert torch.allclose(store.vectors(ids), new, atol=1e-6)
    assert len(client.get_collections().collections) == 1


@pytest.mark.parametrize("alias", [True, False])
def test_other_vectors_and_settings_of_a_collection_stay(alias: bool) -> None:
    client = QdrantClient(":memory:")
    other = models.VectorParams(size=3, distance=models.Distance.EUCLID)
    name = "first" if alias else "theirs"
    client.create_collection(
        name,
        vectors_config={"text": COSINE, "image": other},
        sparse_vectors_config={"words": models.SparseVectorParams()},
        metadata={"owner": "clinic"},
    )
    if alias:
        create = models.CreateAlias(collection_name=name, alias_name="theirs")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    kept = {"image": [1.0, 2.0, 3.0], "words": models.SparseVector(indices=[4], values=[0.5])}
    points = [
        models.PointStruct(id=n, vector={**kept, "text": vector}, payload={"body": TEXTS[n]})
        for n, vector in enumerate(embedded(TEXTS))
    ]
    client.upsert("theirs", points)
    with pytest.raises(InputError, match=r"\['image', 'text'\].*vector_name=None"):
        taken(client)
    retriever = taken(client, seed=1, vector_name="text")
    assert retriever.refresh(progress=False) == 20
    new = embedded(TEXTS, seed=1)
    for point in client.scroll("theirs", limit=50, with_vectors=True)[0]:
        assert {key: point.vector[key] for key in kept} == kept
        assert torch.allclose(torch.tensor(point.vector["text"]), torch.tensor(new[point.id]), atol=1e-6)
    assert client.get_collection("theirs").config.metadata["owner"] == "clinic"
    names = {found.name for found in client.get_collections().collections}
    assert names == ({"first", "theirs--1"} if alias else {"theirs"})  # what others made is not deleted


def test_a_lone_vector_beside_sparse_ones_is_found_and_replaced() -> None:
    client = QdrantClient(":memory:")
    sparse = {"words": models.SparseVectorParams()}
    client.create_collection("theirs", vectors_config=COSINE, sparse_vectors_config=sparse)
    words = models.SparseVector(indices=[4], values=[0.5])
    points = [
        models.PointStruct(id=n, vector={"": vector, "words": words}, payload={"body": TEXTS[n]})
        for n, vector in enumerate(embedded(TEXTS))
    ]
    client.upsert("theirs", points)
    assert taken(client).retrieve([TEXTS[5]], 1)[0][0].document.text == TEXTS[5]
    retriever = taken(client, seed=1)
    assert retriever.refresh(progress=False) == 20
    new = embedded(TEXTS, seed=1)
    for point in client.scroll("theirs", limit=50, with_vectors=True)[0]:
        assert point.vector["words"] == words
        assert torch.allclose(torch.tensor(point.vector[""]), torch.tensor(new[point.id]), atol=1e-6)


def test_collections_of_others_are_not_deleted() -> None:
    client = QdrantClient(":memory:")
    client.create_collection("handbook--1", vectors_config=COSINE, metadata={"owner": "clinic"})
    add = DenseRetriever(encoder(), QdrantStore(client, "handbook")).add
    add([Document(text) for text in TEXTS], progress=False)  # its own is handbook--2
    rename = models.CreateAlias(collection_name="handbook--2", alias_name="docs")
    forget = models.DeleteAlias(alias_name="handbook")
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=rename), models.DeleteAliasOperation(delete_alias=forget)]
    )
    DenseRetriever(encoder(), QdrantStore(client, "handbook")).add([Document("one more")], progress=False)
    assert client.get_collection("handbook--1").config.metadata == {"owner": "clinic"}
    assert len(QdrantStore(client, "docs")) == 20
    assert len(QdrantStore(client, "handbook")) == 1


def test_a_wrong_encoder_does_not_brand_a_collection() -> None:
    client = QdrantClient(":memory:")
    langchain(client)
    assert taken(client, seed=1).store.fingerprint == UNKNOWN
    assert taken(client).store.fingerprint == encoder().fingerprint


def test_a_collection_without_an_alias_keeps_its_width() -> None:
    client = QdrantClient(":memory:")
    langchain(client)
    store = taken(client).store
    with pytest.raises(InputError, match="5 wide, those of the store 32"):
        store.rebuild("new").put([str(UUID(int=0))], torch.ones(1, 5))


def test_an_emptied_collection_of_another_width_ends_its_rebuild() -> None:
    documents, vectors = some(4)
    store = QdrantStore(QdrantClient(":memory:"), "c")
    store.add(documents, vectors)
    rebuild = store.rebuild("new")
    rebuild.put(["d0"], torch.ones(1, 3))
    store.remove([document.id for document in documents])
    store.add(documents, torch.eye(4))
    with pytest.raises(StoreError, match="finished or replaced"):
        rebuild.put(["d0"], torch.ones(1, 3))
    store.rebuild("new").put(["d0", "d1", "d2", "d3"], torch.ones(4, 3))
    store.rebuild("new").commit()
    assert store.vectors(["d2"]).tolist() == [[1, 1, 1]]


def test_collections_that_cannot_serve_say_why() -> None:
    client = QdrantClient(":memory:")
    with pytest.raises(InputError, match="no collection 'theirs'; there are \\[\\]"):
        from_qdrant(client, "theirs", encoder=encoder())
    client.create_collection("far", vectors_config=models.VectorParams(size=2, distance=models.Distance.EUCLID))
    with pytest.raises(InputError, match="compares by Euclid"):
        QdrantStore(client, "far").add([Document("x")], torch.ones(1, 2))
    client.create_collection("near", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    with pytest.raises(InputError, match=r"got one of norm 1\.414"):
        QdrantStore(client, "near").add([Document("x")], torch.ones(1, 2))
    client.upsert("near", [models.PointStruct(id=1, vector=[1.0, 0.0], payload={"words": "x", "year": 1})])
    with pytest.raises(InputError, match=r"\['words', 'year'\].*text_key"):
        list(QdrantStore(client, "near").documents())
    store = QdrantStore(client, "near", text_key="words")
    assert list(store.documents()) == [Document("x", "1", {"year": 1})]
    with pytest.raises(InputError, match="has the key 'words'"):
        store.add([Document("y", metadata={"words": 1})], torch.eye(2)[:1])
    client.upsert("near", [models.PointStruct(id=2, vector=[1.0, 0.0], payload={"page_content": "x"})])
    with pytest.raises(StoreError, match="point 2 has the keys"):
        store.get(["2"])


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrag.optional.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"fedrag\[qdrant\]"):
        importlib.reload(qdrant_filters)


def test_points_without_a_vector_get_one_by_a_refresh() -> None:
    client = QdrantClient(":memory:")
    llama_index(client)
    client.delete_vectors("theirs", ["text-dense"], [str(UUID(int=3))])
    retriever = taken(client)
    assert retriever.store.fingerprint == UNKNOWN
    with pytest.raises(StoreError, match="has no vector"):
        retriever.store.vectors([str(UUID(int=3))])
    assert retriever.refresh(progress=False) == 20
    assert taken(client).store.fingerprint == encoder().fingerprint


@pytest.mark.capability("Qdrant", "sync", "async", "stream", "batch")
def test_a_system_over_a_collection_answers_in_every_way() -> None:
    client = QdrantClient(":memory:")
    langchain(client)
    generator = CausalLM(tiny_llama(vocab=len(tiny_tokenizer())), tiny_tokenizer(), max_new_tokens=4)
    rag = from_qdrant(client, "theirs", encoder=encoder(), generator=generator, top_k=2)
    late = {"field": "row", "operator": ">=", "value": 18}
    answer = rag.query(TEXTS[5], where=late)
    assert {hit.document.metadata["row"] for hit in answer.hits} == {18, 19}
    assert asyncio.run(rag.aquery(TEXTS[5], where=late)) == answer
    assert "".join(rag.stream(TEXTS[5], where=late)) == answer.text
    questions = TEXTS[:6]
    assert [one.hits for one in rag.query_batch(questions)] == [rag.query(question).hits for question in questions]
    assert len(rag.query(TEXTS[5], k=4).hits) == 4


@pytest.fixture(params=["memory", "folder"])
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:") if request.param == "memory" else QdrantClient(path=str(tmp_path / "database"))
    yield client
    client.close()


@pytest.mark.capability("Qdrant", "async")
def test_many_ask_at_once(local: QdrantClient) -> None:
    langchain(local)
    generator = CausalLM(tiny_llama(vocab=len(tiny_tokenizer())), tiny_tokenizer(), max_new_tokens=1)
    rag = from_qdrant(local, "theirs", encoder=encoder(), generator=generator, top_k=2)
    asked = [(TEXTS[n % 20], {"field": "row", "operator": ">=", "value": n % 7}) for n in range(32)]
    one_by_one = [rag.retrieve(question, where=where) for question, where in asked]

    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(*(rag.aquery(question, where=where) for question, where in asked))

    assert [list(answer.hits) for answer in asyncio.run(all_at_once())] == one_by_one


def test_who_asks_sees_a_collection_that_is_being_written_whole(local: QdrantClient) -> None:
    store = QdrantStore(local, "handbook")
    documents, vectors = some(200)
    store.add(documents, vectors)
    everything = {"field": "row", "operator": ">=", "value": 0}  # looks at every payload, so it takes a while
    writing = threading.Event()

    def write() -> None:  # by a second store over the same client
        writing.set()
        for n in range(40):
            QdrantStore(local, "handbook").add([Document(f"later {n}", f"later{n}", {"row": n})], 1e-3 * vectors[:1])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns in the middle of everything
    try:
        with ThreadPoolExecutor(3) as threads:
            written = threads.submit(write)
            assert writing.wait(10)
            found = list(threads.map(lambda n: store.search(vectors[n][None], 1, everything)[0][0], range(40)))
            written.result()
    finally:
        sys.setswitchinterval(interval)
    assert found == [store.search(vectors[n][None], 1, everything)[0][0] for n in range(40)]
    assert len(store) == 200 + 40
