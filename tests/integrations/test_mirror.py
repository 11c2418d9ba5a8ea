"""An index of another library as a knowledge store: all that a store promises, and the index follows every change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from fedrag import DenseRetriever, Document, SentenceEncoder
from fedrag.errors import InputError, StaleIndexError
from fedrag.integrations.mirror import UNKNOWN, Mirror, mirror
from stores.contract import StoreContract
from tiny import tiny_sentence_transformer

DOCUMENTS = [Document(f"clerk {n} holds key {n * 7}", f"d{n}", {"row": n}) for n in range(20)]


class Shelf:
    """An index in a dict; `full` after so many more writes."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Document, list[float] | None]] = {}
        self.writes = 0
        self.full: int | None = None

    def read(self) -> Iterator[tuple[Document, list[float] | None]]:
        yield from self.kept.values()

    def insert(self, documents: Sequence[Document], vectors: Tensor) -> None:
        for document, vector in zip(documents, vectors.tolist(), strict=True):
            self._write()
            self.kept[document.id] = (document, vector)

    def update(self, documents: Sequence[Document], vectors: Tensor) -> int:
        passed = 0
        for document, vector in zip(documents, vectors.tolist(), strict=True):
            held, _ = self.kept.get(document.id, (None, None))
            if held is None or held.text != document.text:
                passed += 1
                continue
            self._write()
            self.kept[document.id] = (held, vector)
        return passed

    def _write(self) -> None:
        if self.full is not None and self.writes >= self.full:
            self.full = None  # the one who asks again is served
            raise OSError("the shelf is full")
        self.writes += 1

    def remove(self, ids: Sequence[str]) -> None:
        assert ids
        for id in ids:
            self.kept.pop(id, None)


class TestMirror(StoreContract):
    @pytest.fixture
    def store(self):
        return lambda: Mirror(Shelf())


def encoder(seed: int = 0) -> SentenceEncoder:
    return SentenceEncoder(tiny_sentence_transformer(kind="static", seed=seed))


def shelf(written_by: SentenceEncoder, documents: Sequence[Document] = DOCUMENTS) -> Shelf:
    filled = Shelf()
    filled.insert(documents, written_by.encode_documents([document.text for document in documents]).detach())
    filled.writes = 0
    return filled


def same(index: Shelf, store: Mirror) -> bool:
    """Whether the index holds what the store holds."""
    ids = [document.id for document in store.documents()]
    held = torch.tensor([index.kept[id][1] for id in ids])
    return set(ids) == set(index.kept) and torch.allclose(held, store.vectors(ids), atol=1e-6)


def test_the_encoder_that_wrote_the_index_may_search_it_at_once() -> None:
    store = mirror(shelf(encoder()), encoder())
    assert list(store.documents()) == DOCUMENTS
    (hits,) = DenseRetriever(encoder(), store).retrieve([DOCUMENTS[3].text], 1)
    assert hits[0].document == DOCUMENTS[3]


def test_vectors_of_half_precision_are_the_encoders_own() -> None:
    index = shelf(encoder())
    for id, (document, vector) in index.kept.items():
        index.kept[id] = (document, torch.tensor(vector).half().tolist())
    assert mirror(index, encoder()).fingerprint == encoder().fingerprint


@pytest.mark.parametrize("lacking", [False, True])
def test_vectors_of_another_encoder_or_none_are_stale_until_a_refresh(lacking: bool) -> None:
    index = shelf(encoder(seed=1))
    if lacking:
        index.kept["d7"] = (DOCUMENTS[7], None)
    store = mirror(index, encoder())
    assert store.fingerprint == UNKNOWN
    retriever = DenseRetriever(encoder(), store)
    with pytest.raises(StaleIndexError):
        retriever.retrieve(["clerk 3"], 1)
    assert retriever.refresh(progress=False) == 20
    assert same(index, store)
    assert mirror(index, encoder()).fingerprint == encoder().fingerprint


def test_the_index_follows_every_change() -> None:
    index = shelf(encoder())
    store = mirror(index, encoder())
    retriever = DenseRetriever(encoder(), store)
    retriever.add([Document("a new one", "new"), Document("another text", "d4")], progress=False)
    assert same(index, store)
    assert index.kept["d4"][0].text == "another text"
    assert store.remove(["d1", "not there", "d1"]) == 1
    store.update_vectors(["d2"], torch.ones(1, store.vectors(["d2"]).shape[1]))
    assert same(index, store)
    assert len(index.kept) == 20


def test_a_refresh_that_the_index_interrupts_goes_on() -> None:
    many = [Document(f"clerk {n}", f"m{n}") for n in range(600)]
    index = shelf(encoder(seed=1), many)
    store = mirror(index, encoder())
    retriever = DenseRetriever(encoder(), store)
    index.full = 599
    with pytest.raises(OSError, match="full"):
        retriever.refresh(progress=False)
    assert store.fingerprint == UNKNOWN
    # one document has its old vector: taken anew, the index is still stale, whichever end it is at
    assert mirror(index, encoder()).fingerprint == UNKNOWN
    index.kept = dict(reversed(index.kept.items()))
    assert mirror(index, encoder()).fingerprint == UNKNOWN
    assert retriever.refresh(progress=False) == 0  # all vectors were made: they had only to be written
    assert store.fingerprint == encoder().fingerprint
    assert same(index, store)


def test_what_the_index_refuses_is_not_kept() -> None:
    index = shelf(encoder())
    store = mirror(index, encoder())
    before = store.vectors(["d2"])
    index.full = 0
    other = [Document("a new one", "new"), Document("another text", "d4"), Document("a third", "d5")]
    index.full = index.writes + 1
    with pytest.raises(OSError, match="full"):
        store.add(other, before.expand(3, -1))
    index.full = index.writes
    with pytest.raises(OSError, match="full"):
        store.update_vectors(["d2"], torch.ones_like(before))
    assert torch.equal(store.vectors(["d2"]), before)
    assert {document.id: document for document in store.documents()} == {d.id: d for d in DOCUMENTS}
    assert {id: document for id, (document, _) in index.kept.items()} == {d.id: d for d in DOCUMENTS}
    assert same(index, store)


def test_what_others_changed_or_deleted_meanwhile_stays_so(caplog: pytest.LogCaptureFixture) -> None:
    index = shelf(encoder(seed=1))
    store = mirror(index, encoder())
    old = index.kept["d4"][1]
    index.kept["d4"] = (Document("edited", "d4"), old)
    del index.kept["d5"]
    assert DenseRetriever(encoder(), store).refresh(progress=False) == 20
    assert index.kept["d4"] == (Document("edited", "d4"), old)
    assert "d5" not in index.kept
    assert "2 of 20 documents have changed in the index or left it" in caplog.text
    assert index.kept["d6"][1] == pytest.approx(store.vectors(["d6"])[0].tolist())


def test_an_id_that_is_there_twice_is_refused() -> None:
    class Twice(Shelf):
        def read(self) -> Iterator[tuple[Document, list[float] | None]]:
            for _ in range(2):
                yield from super().read()

    index = Twice()
    index.kept = shelf(encoder()).kept
    with pytest.raises(InputError, match="holds the id 'd0' twice"):
        mirror(index, encoder())


def test_an_empty_index_is_an_empty_store() -> None:
    store = mirror(Shelf(), encoder())
    assert (len(store), store.fingerprint) == (0, "")
