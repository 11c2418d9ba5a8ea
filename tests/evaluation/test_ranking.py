from __future__ import annotations

import pytest

from fedrag.errors import InputError
from fedrag.evaluation.ranking import answer_recall, cutoffs, label_metrics


@pytest.mark.parametrize(
    ("depth", "wanted"), [(1, [1]), (4, [1, 4]), (5, [1, 5]), (10, [1, 5, 10]), (50, [1, 5, 10, 20, 50])]
)
def test_cutoffs_end_with_the_depth(depth: int, wanted: list[int]) -> None:
    assert cutoffs(depth) == wanted


def test_no_depth_is_no_ranking() -> None:
    for call in (label_metrics, answer_recall):
        with pytest.raises(InputError, match="at least 1, got 0"):
            call([["a"]], [["a"]], 0)


def test_by_hand() -> None:
    row = label_metrics([["x", "a", "y", "b"]], [["a", "b", "c"]], depth=4)[0]
    assert row["recall@1"] == 0.0
    assert row["recall@4"] == pytest.approx(2 / 3)
    assert (row["hit@1"], row["hit@4"]) == (0.0, 1.0)
    assert row["mrr@4"] == 0.5
    assert row["map@4"] == pytest.approx((1 / 2 + 2 / 4) / 3)


def test_queries_without_labels_have_no_metrics_and_those_without_hits_have_zeros() -> None:
    none, empty, full = label_metrics([["a"], [], ["a"]], [[], ["a"], ["a"]], depth=5)
    assert none == {}
    assert set(empty.values()) == {0.0}
    assert set(full.values()) == {1.0}
    assert empty.keys() == full.keys()


def test_no_labels_at_all() -> None:
    assert label_metrics([["a"], []], [[], []], depth=5) == [{}, {}]


def test_hits_are_told_from_recall_only_where_several_documents_are_relevant() -> None:
    assert "hit@5" not in label_metrics([["a"]], [["a"]], 5)[0]
    assert "hit@5" in label_metrics([["a"], ["a"]], [["a"], ["a", "b"]], 5)[0]


def test_ranks_beyond_the_depth_do_not_count() -> None:
    row = label_metrics([["x", "y", "a"]], [["a"]], depth=2)[0]
    assert set(row.values()) == {0.0}


def test_a_repeated_id_counts_once_and_wastes_its_other_places() -> None:
    row = label_metrics([["a", "a", "b"]], [["a", "b"]], depth=3)[0]
    assert row["recall@3"] == 1.0
    assert row["map@3"] == pytest.approx((1 + 2 / 3) / 2)
    assert label_metrics([["a"]], [["a", "a"]], depth=3) == label_metrics([["a"]], [["a"]], depth=3)


def test_answer_recall_matches_whole_tokens_without_regard_to_case_or_composition() -> None:
    passages = [["A business in Zürich.", "He lives in the U.S.-based café."]]

    def found(answer: str) -> list[float]:
        return list(answer_recall(passages, [[answer]], depth=2)[0].values())

    assert found("us") == [0.0, 0.0]
    assert found("zu\u0308rich") == [1.0, 1.0]
    assert found("CAFÉ") == [0.0, 1.0]
    assert found("cafe") == [0.0, 0.0]
    assert found("u.s.") == [0.0, 1.0]


def test_answer_recall_needs_a_gold_to_look_for() -> None:
    assert answer_recall([["x"], ["x"]], [[], ["", " "]], depth=1) == [{}, {}]


def test_any_gold_in_any_passage_down_to_the_depth() -> None:
    rows = answer_recall([["x", "y", "z"]] * 2, [["nothing", "y"], ["z"]], depth=2)
    assert [row["answer_recall@2"] for row in rows] == [1.0, 0.0]
