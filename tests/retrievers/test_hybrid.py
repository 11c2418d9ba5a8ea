"""Hybrid retrieval: fused ranks by hand, ties, filters, depth, and staleness that no wrapper hides."""

import pytest
import torch

from fedrag import DenseRetriever, Document, Hit, LexicalRetriever, MemoryStore, SentenceEncoder
from fedrag.errors import ConfigError, InputError, StaleIndexError
from fedrag.retrievers.hybrid import HybridRetriever
from fedrag.retrievers.nested import every, find, the
from systems import DOCUMENTS, EXAMPLES
from tiny import tiny_sentence_transformer


class Fixed:
    """A retriever that finds the same documents for every question, and notes how many it was asked for."""

    def __init__(self, *ids):
        self.ids = ids
        self.asked = []

    def retrieve(self, queries, k, where=None):
        self.asked.append((k, where))
        return [[Hit(Document(id, id=id), 1.0) for id in self.ids[:k]] for _ in queries]


@pytest.fixture
def dense():
    made = DenseRetriever(SentenceEncoder(tiny_sentence_transformer()), MemoryStore())
    made.add(DOCUMENTS, progress=False)
    return made


def ids(hits):
    return [hit.document.id for hit in hits]


def test_ranks_are_fused_and_scores_are_the_formula():
    hybrid = HybridRetriever([Fixed("a", "b", "c"), Fixed("c", "d")], constant=10, weights=[1, 3])
    first, second = hybrid.retrieve(["x", "y"], 4)
    assert first == second
    expected = {"a": 1 / 11, "b": 1 / 12, "c": 1 / 13 + 3 / 11, "d": 3 / 12}
    assert {hit.document.id: hit.score for hit in first} == pytest.approx(expected)
    assert ids(first) == ["c", "d", "a", "b"]
    assert ids(hybrid.retrieve(["x"], 1)[0]) == ["c"]
    assert hybrid.retrieve([], 3) == []


def test_ties_go_to_the_retriever_that_is_named_first():
    assert ids(HybridRetriever([Fixed("b", "z"), Fixed("a", "y")]).retrieve(["x"], 4)[0]) == ["b", "a", "z", "y"]


def test_each_is_asked_for_depth_or_more():
    parts = [Fixed("a"), Fixed("b")]
    where = {"field": "even", "operator": "==", "value": True}
    hybrid = HybridRetriever(parts, depth=7)
    hybrid.retrieve(["x"], 3)
    hybrid.retrieve(["x"], 9, where)
    assert [part.asked for part in parts] == [[(7, None), (9, where)]] * 2


def test_a_filter_holds_for_all(dense):
    hybrid = HybridRetriever([dense, LexicalRetriever(dense.store)])
    found = hybrid.retrieve([EXAMPLES[3].question], 20, {"field": "even", "operator": "==", "value": True})[0]
    assert len(found) == 12
    assert all(hit.document.metadata["even"] for hit in found)


def test_words_that_no_document_has_leave_the_vectors_ranking(dense):
    hybrid = HybridRetriever([dense, LexicalRetriever(dense.store)])
    assert ids(hybrid.retrieve(["zzz"], 5)[0]) == ids(dense.retrieve(["zzz"], 5)[0])


def test_fusion_equals_a_slow_one(dense):
    bm25 = LexicalRetriever(dense.store)
    hybrid = HybridRetriever([dense, bm25], depth=24)
    for example in EXAMPLES[:6]:
        rankings = [ids(dense.retrieve([example.question], 24)[0]), ids(bm25.matches([example.question], 24)[0])]
        scores = {
            document.id: sum(1 / (60 + r.index(document.id) + 1) for r in rankings if document.id in r)
            for document in DOCUMENTS
        }
        found = hybrid.retrieve([example.question], 24)[0]
        assert {hit.document.id: hit.score for hit in found} == pytest.approx(scores)


def test_a_stale_index_is_stale_inside_too(dense):
    hybrid = HybridRetriever([LexicalRetriever(dense.store), dense])
    with torch.no_grad():
        next(dense.encoder.parameters()).add_(0.1)
    with pytest.raises(StaleIndexError, match=r"refresh\(\)"):
        hybrid.retrieve(["key"], 1)


@pytest.mark.parametrize(
    "settings", [{"depth": 0}, {"constant": -1}, {"constant": float("inf")}, {"weights": [1]}, {"weights": [1, 0]}]
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        HybridRetriever([Fixed("a"), Fixed("b")], **settings)
    with pytest.raises(ConfigError, match="two retrievers or more"):
        HybridRetriever([Fixed("a")])


def test_what_is_no_retriever_and_no_number_of_hits_is_named(dense):
    with pytest.raises(ConfigError, match="a MemoryStore has no retrieve"):
        HybridRetriever([dense, dense.store])
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k must be at least 1, got {k}"):
            HybridRetriever([dense, Fixed("a")]).retrieve(["key"], k)


def test_what_is_inside_is_found_at_any_depth(dense):
    bm25 = LexicalRetriever(dense.store)
    nested = HybridRetriever([bm25, HybridRetriever([dense, Fixed("a")])])
    assert the(nested, DenseRetriever) is dense
    assert find(nested, LexicalRetriever) is bm25
    assert find(Fixed("a"), DenseRetriever) is None
    assert len(list(every(nested))) == 5
    assert the(HybridRetriever([dense, dense]), DenseRetriever) is dense
    with pytest.raises(InputError, match="needs a DenseRetriever, the system has a Fixed"):
        the(Fixed("a"), DenseRetriever)
    other = DenseRetriever(dense.encoder, dense.store)
    with pytest.raises(InputError, match="2 DenseRetrievers inside"):
        find(HybridRetriever([dense, other]), DenseRetriever)
