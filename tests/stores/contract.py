"""What every knowledge store promises. A store's test file subclasses `StoreContract` and gives the fixture `store`,
a function that makes an empty one:

    class TestMemoryStore(StoreContract):
        @pytest.fixture
        def store(self):
            return MemoryStore
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fedrag.errors import InputError, StoreError
from fedrag.filters import compile_filter
from fedrag.types import Document, KnowledgeStore, Media

Make = Callable[[], KnowledgeStore]


def some(count: int, width: int = 8, seed: int = 0) -> tuple[list[Document], torch.Tensor]:
    """Documents with varied metadata, and vectors."""
    documents = [
        Document(f"text {i} äöü", f"d{i}", {"row": i, "even": i % 2 == 0, "deep": {"tag": f"t{i % 3}"}})
        for i in range(count)
    ]
    return documents, torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def brute_force(
    documents: list[Document], vectors: torch.Tensor, query: torch.Tensor, k: int, where: dict | None = None
) -> list[tuple[str, float]]:
    """Ids and scores by the definition: score every match, best first, ties to the smaller id."""
    keep = compile_filter(where) if where is not None else lambda _: True
    scores = (vectors.double() * query.double()).sum(1).float().tolist()
    found = [(d.id, s) for d, s in zip(documents, scores, strict=True) if keep(d.metadata)]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]


def ids_and_scores(hits) -> list[tuple[str, float]]:
    return [(hit.document.id, hit.score) for hit in hits]


class StoreContract:
    """The tests; exact stores run them as they are."""

    def test_is_a_knowledge_store(self, store: Make) -> None:
        assert isinstance(store(), KnowledgeStore)

    def test_starts_empty(self, store: Make) -> None:
        empty = store()
        assert len(empty) == 0
        assert "d0" not in empty
        assert list(empty.documents()) == []
        assert empty.get([]) == []
        assert empty.remove(["d0"]) == 0
        assert empty.fingerprint == ""
        assert empty.search(torch.ones(3, 8), 4) == [[], [], []]

    def test_returns_documents_as_they_were(self, store: Make) -> None:
        documents = [
            Document("plain"),
            Document("", "empty text"),
            Document(
                "Grüße \U0001f600 \0 {braces}\n", "../../etc/passwd", {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
            ),
            Document("with media", "m", media=(Media(b"\x00\xff", "image/png"), Media(b"", "audio/wav"))),
        ]
        filled = store()
        filled.add(documents, torch.eye(4))
        assert filled.get([d.id for d in documents]) == documents
        assert list(filled.documents()) == documents
        for document, hits in zip(documents, filled.search(torch.eye(4), 1), strict=True):
            assert hits[0].document == document
        assert "m" in filled
        assert 3 not in filled

    @pytest.mark.parametrize("k", [1, 3, 40, 100])
    def test_search_is_brute_force(self, store: Make, k: int) -> None:
        documents, vectors = some(50)
        filled = store()
        filled.add(documents[:20], vectors[:20])
        filled.add(documents[20:], vectors[20:])
        queries = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
        for query, hits in zip(queries, filled.search(queries, k), strict=True):
            assert ids_and_scores(hits) == brute_force(documents, vectors, query, k)

    def test_filter_comes_before_the_search(self, store: Make) -> None:
        documents, vectors = some(50)
        filled = store()
        filled.add(documents, vectors)
        query = torch.ones(1, 8)
        for where in (
            {"field": "even", "operator": "==", "value": True},
            {"field": "meta.deep.tag", "operator": "in", "value": ["t1"]},
            {"operator": "NOT", "conditions": [{"field": "row", "operator": ">=", "value": 3}]},
        ):
            found = ids_and_scores(filled.search(query, 3, where)[0])
            assert found == brute_force(documents, vectors, query[0], 3, where)
            assert len(found) == 3  # k hits whenever k documents match, however far down they are
        assert filled.search(query, 3, {"field": "absent", "operator": "==", "value": 1}) == [[]]

    def test_ties_go_to_the_smaller_id(self, store: Make) -> None:
        filled = store()
        ids = [f"{i:03}" for i in range(200)]
        shuffled = [ids[i] for i in torch.randperm(200, generator=torch.Generator().manual_seed(3))]
        vector = torch.randn(1, 8, generator=torch.Generator().manual_seed(4))
        filled.add([Document("same", id) for id in shuffled], vector.expand(200, 8))
        hits = filled.search(torch.cat([vector, torch.zeros(1, 8)]), 5)
        assert [[hit.document.id for hit in row] for row in hits] == [ids[:5]] * 2

    def test_batch_is_single(self, store: Make) -> None:
        documents, vectors = some(300, 33)
        filled = store()
        filled.add(documents, vectors)
        queries = torch.randn(40, 33, generator=torch.Generator().manual_seed(1))
        assert filled.search(queries, 7) == [filled.search(queries[i : i + 1], 7)[0] for i in range(40)]

    def test_order_of_documents_does_not_matter(self, store: Make) -> None:
        documents, vectors = some(100)
        order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
        one, other = store(), store()
        one.add(documents, vectors)
        other.add([documents[i] for i in order], vectors[order])
        queries = vectors[:10] + 0.1
        assert one.search(queries, 9) == other.search(queries, 9)

    def test_upsert_replaces(self, store: Make) -> None:
        documents, vectors = some(6)
        filled = store()
        filled.add(documents, vectors)
        filled.add([Document("new text", "d2", {"row": -1})], 100 * torch.ones(1, 8))
        assert len(filled) == 6
        assert filled.get(["d2"]) == [Document("new text", "d2", {"row": -1})]
        hits = filled.search(torch.ones(1, 8), 10)[0]
        assert (hits[0].document.text, hits[0].score, len(hits)) == ("new text", 800.0, 6)
        assert filled.search(torch.ones(1, 8), 5, {"field": "row", "operator": "==", "value": 2}) == [[]]

    def test_remove_counts_and_forgets(self, store: Make) -> None:
        documents, vectors = some(6)
        filled = store()
        filled.add(documents, vectors)
        assert filled.remove(["d1", "unknown", "d4", "d1"]) == 2
        assert len(filled) == 4
        assert "d1" not in filled
        assert [d.id for d in filled.documents()] == ["d0", "d2", "d3", "d5"]
        assert {hit.document.id for hit in filled.search(torch.ones(1, 8), 10)[0]} == {"d0", "d2", "d3", "d5"}
        assert filled.remove([d.id for d in documents]) == 4
        assert filled.search(torch.ones(1, 8), 10) == [[]]
        filled.add([Document("other width", "w")], torch.ones(1, 3))  # an emptied store takes any width
        assert filled.search(torch.ones(1, 3), 1)[0][0].score == 3.0

    def test_update_vectors(self, store: Make) -> None:
        documents, vectors = some(6)
        filled = store()
        filled.add(documents, vectors)
        filled.update_vectors(["d5", "d0"], torch.stack([vectors[0], vectors[5]]))
        expected = vectors.clone()
        expected[0], expected[5] = vectors[5], vectors[0]
        assert torch.equal(filled.vectors([d.id for d in documents]), expected)
        assert ids_and_scores(filled.search(vectors[:1], 6)[0]) == brute_force(documents, expected, vectors[0], 6)
        assert [d.id for d in filled.documents()] == [d.id for d in documents]

    def test_vectors_are_copies_without_gradient(self, store: Make) -> None:
        documents, vectors = some(3)
        given = vectors.clone().requires_grad_()
        filled = store()
        filled.add(documents, given)
        with torch.no_grad():
            given.zero_()
        kept = filled.vectors(["d0", "d1", "d2"])
        assert torch.equal(kept, vectors)
        assert not kept.requires_grad
        kept.zero_()
        assert torch.equal(filled.vectors(["d2", "d0"]), vectors[[2, 0]])
        assert filled.vectors(["d2"]).dtype == torch.float32
        assert len(filled.search(vectors[:1].clone().requires_grad_(), 1)[0]) == 1

    def test_documents_stream_what_was_there(self, store: Make) -> None:
        documents, vectors = some(5)
        filled = store()
        filled.add(documents, vectors)
        stream = filled.documents()
        first = next(stream)
        filled.remove(["d3"])
        filled.add([Document("late", "late")], torch.ones(1, 8))
        assert [first, *stream] == documents

    def test_rebuild_swaps_in_one_step(self, store: Make) -> None:
        documents, vectors = some(10)
        filled = store()
        filled.add(documents, vectors)
        filled.fingerprint = "old"
        new = torch.randn(10, 3, generator=torch.Generator().manual_seed(5))
        rows = {document.id: i for i, document in enumerate(documents)}
        for batch in filled.rebuild("new").missing(4):
            assert filled.fingerprint == "old"
            assert torch.equal(filled.vectors(["d0"]), vectors[:1])
            filled.rebuild("new").put([d.id for d in batch], new[[rows[d.id] for d in batch]])
            if len(batch) < 4:
                break
        filled.rebuild("new").commit()
        assert filled.fingerprint == "new"
        assert torch.equal(filled.vectors([d.id for d in documents]), new)
        assert ids_and_scores(filled.search(new[:1], 4)[0]) == brute_force(documents, new, new[0], 4)

    def test_rebuild_goes_on_and_notices_changes(self, store: Make) -> None:
        documents, vectors = some(6)
        filled = store()
        filled.add(documents, vectors)
        filled.rebuild("new").put(["d4", "d1", "d2"], torch.eye(3))
        filled.remove(["d0"])
        filled.add([Document("another text", "d1"), Document("later", "d9")], torch.ones(2, 8))
        with pytest.raises(StoreError, match="4 of 6"):
            filled.rebuild("new").commit()
        waiting = [d.id for batch in filled.rebuild("new").missing(100) for d in batch]
        assert waiting == ["d3", "d5", "d1", "d9"]  # d1 has another text now
        filled.rebuild("new").put(waiting, 2 * torch.ones(4, 3))
        filled.rebuild("new").commit()
        assert filled.vectors(["d4", "d2", "d1"]).tolist() == [[1, 0, 0], [0, 0, 1], [2, 2, 2]]
        assert [hit.score for hit in filled.search(torch.ones(1, 3), 9)[0]] == [6.0] * 4 + [1.0] * 2

    def test_another_rebuild_takes_the_place(self, store: Make) -> None:
        documents, vectors = some(2)
        filled = store()
        filled.add(documents, vectors)
        first = filled.rebuild("one")
        first.put(["d0"], torch.ones(1, 3))
        second = filled.rebuild("two")
        assert [len(batch) for batch in second.missing(9)] == [2]
        with pytest.raises(StoreError, match="rebuild"):
            first.put(["d1"], torch.ones(1, 3))
        second.put(["d0", "d1"], torch.ones(2, 4))
        second.commit()
        with pytest.raises(StoreError, match="rebuild"):
            second.commit()

    def test_rebuild_of_an_empty_store(self, store: Make) -> None:
        empty = store()
        empty.rebuild("new").commit()
        assert empty.fingerprint == "new"
        with pytest.raises(InputError, match="fingerprint"):
            empty.rebuild("")

    def test_bad_input_changes_nothing(self, store: Make) -> None:
        documents, vectors = some(4)
        filled = store()
        filled.add(documents, vectors)
        fresh, two = Document("fresh", "fresh"), Document("again", "fresh")
        nan, infinite = torch.full((1, 8), math.nan), torch.full((1, 8), math.inf)
        rebuild = filled.rebuild("new")
        rebuild.put(["d0"], torch.ones(1, 3))
        for message, call in [
            ("5 wide.*store 8", lambda: filled.add([fresh], torch.ones(1, 5))),
            ("5 wide.*store 8", lambda: filled.search(torch.ones(1, 5), 1)),
            ("5 wide.*store 8", lambda: filled.update_vectors(["d0"], torch.ones(1, 5))),
            ("5 wide.*store 3", lambda: rebuild.put(["d1"], torch.ones(1, 5))),
            (r"shape \[8\]", lambda: filled.add([fresh], torch.ones(8))),
            (r"shape \[8\]", lambda: filled.search(torch.ones(8), 1)),
            ("norm nan", lambda: filled.add([fresh], nan)),
            ("norm inf", lambda: filled.add([fresh], infinite)),
            ("row 1 has norm", lambda: filled.search(torch.cat([vectors[:1], nan]), 1)),
            ("norm nan", lambda: filled.update_vectors(["d0"], nan)),
            ("norm nan", lambda: rebuild.put(["d0"], nan)),
            ("'fresh' comes 2 times", lambda: filled.add([fresh, two], torch.ones(2, 8))),
            ("'d0' comes 2 times", lambda: filled.update_vectors(["d0", "d0"], torch.ones(2, 8))),
            ("2 vectors for 1", lambda: filled.add([fresh], torch.ones(2, 8))),
            ("1 vectors for 2", lambda: filled.update_vectors(["d0", "d1"], torch.ones(1, 8))),
            ("k is 0", lambda: filled.search(vectors, 0)),
            ("operator", lambda: filled.search(vectors, 1, {"field": "row", "operator": "~", "value": 1})),
            ("the id 'nobody'", lambda: filled.get(["d0", "nobody"])),
            ("the id 'nobody'", lambda: filled.vectors(["nobody"])),
            ("the id 'nobody'", lambda: filled.update_vectors(["d0", "nobody"], torch.ones(2, 8))),
            ("the id 'nobody'", lambda: rebuild.put(["nobody"], torch.ones(1, 3))),
            ("metadata key 'when'", lambda: filled.add([Document("x", "x", {"when": object()})], torch.ones(1, 8))),
        ]:
            with pytest.raises(InputError, match=message):
                call()
            assert list(filled.documents()) == documents
            assert torch.equal(filled.vectors([d.id for d in documents]), vectors)
            assert [d.id for batch in rebuild.missing(9) for d in batch] == ["d1", "d2", "d3"]

    @pytest.mark.parametrize(
        "value", [{1: "key"}, (1, 2), math.nan, b"bytes", {"deep": [{1, 2}]}, 1j, {"deep": [math.inf]}]
    )
    def test_metadata_that_json_cannot_keep(self, store: Make, value: object) -> None:
        with pytest.raises(InputError, match="metadata key 'bad' of document 'x'"):
            store().add([Document("x", "x", {"fine": 1, "bad": value})], torch.ones(1, 2))

    def test_text_that_is_not_unicode(self, store: Make) -> None:
        with pytest.raises(InputError, match=r"text of document 'x'.*position 1"):
            store().add([Document("a\ud800", "x")], torch.ones(1, 2))

    def test_no_documents_and_no_queries(self, store: Make) -> None:
        documents, vectors = some(2)
        filled = store()
        filled.add([], torch.empty(0, 0))
        filled.add(documents, vectors)
        filled.add([], torch.empty(0, 8))
        filled.update_vectors([], torch.empty(0, 8))
        filled.rebuild("new").put([], torch.empty(0, 8))
        assert filled.search(torch.empty(0, 8), 3) == []
        assert len(filled) == 2
