from __future__ import annotations

import pytest

from fedrag.evaluation.text import answer_metrics, contains, exact_match, f1, normalize, rouge_l, support


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("U.S.", "us"),
        ("A-B", "ab"),
        ("a theatre", "theatre"),
        ("west–the–east", "west– –east"),
        ("en–dash “quoted”", "en–dash “quoted”"),
        ("a.", ""),
        (" \n\t", ""),
    ],
)
def test_normal_form(text: str, wanted: str) -> None:
    assert normalize(text) == wanted


def test_every_gold_counts_not_the_first_alone() -> None:
    golds = ["New York City", "NYC", "Big Apple"]
    for metric in (exact_match, f1, rouge_l, contains):
        assert metric("big apple!", golds) == pytest.approx(1.0), metric.__name__
    assert exact_match("Boston", golds) == 0.0


def test_case_punctuation_and_articles_do_not_matter() -> None:
    assert exact_match(" Paris. ", ["paris"]) == 1.0


def test_f1_counts_repeated_tokens_as_often_as_both_have_them() -> None:
    assert f1("x x x y", ["x y y"]) == pytest.approx(2 * 2 / (4 + 3))
    assert f1("x x x y", ["x x y"]) == pytest.approx(2 * 3 / (4 + 3))


def test_the_empty_answer_is_right_only_where_there_is_none() -> None:
    assert set(answer_metrics("", []).values()) == {1.0}
    assert set(answer_metrics("Paris", []).values()) == {0.0}
    assert set(answer_metrics("", ["Paris"]).values()) == {0.0}


def test_a_gold_that_normalises_to_nothing_is_dropped_beside_others() -> None:
    assert exact_match("", ["the", "Paris"]) == 0.0
    assert exact_match("", ["the"]) == 1.0


def test_containment_is_by_whole_tokens() -> None:
    assert contains("a business trip", ["us"]) == 0.0
    assert contains("to the US, by plane", ["us"]) == 1.0
    assert contains("York New", ["New York"]) == 0.0


def test_rouge_l_stems_and_takes_the_best_gold() -> None:
    assert rouge_l("running dogs", ["nothing here", "runs to a dog"]) == pytest.approx(2 * 2 / (2 + 4))


def test_rouge_l_is_on_raw_text_where_articles_count() -> None:
    assert rouge_l("the big apple", ["big apple"]) == pytest.approx(0.8)
    assert f1("the big apple", ["big apple"]) == 1.0


def test_support_needs_each_token_as_often_as_it_is_said() -> None:
    assert support("Paris Paris", ["Paris is a city."]) == 0.5
    assert support("Paris Paris", ["Paris is a city.", "Paris again"]) == 1.0


def test_support_of_nothing_said_is_undefined_and_of_no_documents_zero() -> None:
    assert support("the", ["the"]) is None
    assert support("Paris", []) == 0.0
