from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from fedrag.errors import InputError
from fedrag.evaluation import evaluate, evaluate_retriever
from fedrag.types import Answer, Document, Example, Hit, Where

DOCUMENTS = [
    Document("Paris is the capital of France.", "paris"),
    Document("Berlin is the capital of Germany.", "berlin"),
    Document("The Seine flows through Paris.", "seine"),
    Document("Bread is made of flour.", "bread"),
]
EXAMPLES = [
    Example("What is the capital of France?", ["Paris"], ["paris"], metadata={"country": "fr"}),
    Example("What is the capital of Germany?", ["Berlin"], ["berlin"], metadata={"country": "de"}),
    Example("Which river flows through Paris?", ["Seine", "La Seine"], ["seine", "paris"], metadata={"country": "fr"}),
    Example("Who rules the moon?", [], metadata={"country": "none"}),
]


class WordOverlap:
    """Ranks documents by the number of words that they share with the query."""

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        def score(query: str, document: Document) -> int:
            return len({*query.lower().strip("?").split()} & {*document.text.lower().strip(".").split()})

        ranked = [[Hit(d, score(query, d)) for d in DOCUMENTS] for query in queries]
        return [sorted(hits, key=lambda hit: -hit.score)[:k] for hits in ranked]


@dataclass
class FirstWord:
    """Answers with the first word of the best document, or with nothing when it has none or a poor one."""

    retriever: Any
    top_k: int = 1

    def query_batch(
        self, questions: Sequence[str], *, k: int | None = None, batch_size: int = 32, progress: bool = False
    ) -> list[Answer]:
        found = self.retriever.retrieve(questions, self.top_k if k is None else k)
        return [
            Answer(hits[0].document.text.split()[0] if hits and hits[0].score > 1 else "", tuple(hits))
            for hits in found
        ]


def means(report: Any) -> dict[str, float]:
    return {name: metric.mean for name, metric in report.metrics.items()}


def test_answers_and_rankings_are_measured() -> None:
    report = evaluate(FirstWord(WordOverlap()), EXAMPLES, progress=False)
    values = means(report)
    assert values["exact_match"] == 0.75  # Paris, Berlin, and nothing about the moon; "The" is not the Seine
    assert values["exact_match_unanswerable"] == 1.0
    assert values["exact_match_answerable"] == pytest.approx(2 / 3)
    assert report.metrics["support"].n == 2  # "The" normalises to nothing, and so does the empty answer
    assert values["support"] == 1.0
    assert values["recall@1"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert values["hit@1"] == 1.0
    assert values["answer_recall@1"] == 1.0
    assert report.metrics["recall@1"].n == 3
    assert [record.answer for record in report.records] == ["Paris", "Berlin", "The", ""]
    assert report.records[0].hits == ("paris",)


def test_depth_judges_more_than_the_generator_sees() -> None:
    system = FirstWord(WordOverlap())
    shown, deep = (evaluate(system, EXAMPLES, depth=depth, progress=False) for depth in (None, 3))
    assert "recall@3" not in shown.metrics
    assert deep.metrics["recall@1"] == shown.metrics["recall@1"]
    assert deep.metrics["recall@3"].mean == 1.0
    assert [len(record.hits) for record in deep.records] == [3] * 4
    for name in ("exact_match", "f1", "support"):
        assert deep.metrics[name] == shown.metrics[name]


def test_k_reaches_the_system_and_names_the_metrics() -> None:
    report = evaluate(FirstWord(WordOverlap()), EXAMPLES, k=2, progress=False)
    assert {"recall@2", "mrr@2", "ndcg@2", "map@2", "answer_recall@2"} <= set(report.metrics)
    assert "recall@1" in report.metrics


def test_closed_book_has_answer_metrics_only() -> None:
    report = evaluate(FirstWord(WordOverlap()), EXAMPLES, k=0, progress=False)
    assert {name.split("_")[0] for name in report.metrics} == {"exact", "f1", "rouge", "contains"}


class Guesses(FirstWord):
    def query_batch(self, questions: Sequence[str], **settings: Any) -> list[Answer]:
        return [Answer("Paris", answer.hits) for answer in super().query_batch(questions, **settings)]


def test_support_is_measured_where_documents_are_shown() -> None:
    system = Guesses(WordOverlap())
    assert "support" not in evaluate(system, EXAMPLES, k=0, depth=3, progress=False).metrics
    assert evaluate(system, EXAMPLES, k=1, progress=False).metrics["support"].mean == 0.75  # not by Berlin


def test_the_retriever_alone_has_the_systems_ranking_metrics() -> None:
    alone = evaluate_retriever(WordOverlap(), EXAMPLES, k=3, progress=False)
    system = evaluate(FirstWord(WordOverlap()), EXAMPLES, depth=3, progress=False)
    assert alone.metrics == {name: system.metrics[name] for name in alone.metrics}
    assert {name.split("@")[0] for name in alone.metrics} == {"recall", "hit", "mrr", "ndcg", "map", "answer_recall"}
    assert {record.answer for record in alone.records} == {None}


def test_batches_change_nothing() -> None:
    whole = evaluate_retriever(WordOverlap(), EXAMPLES, progress=False)
    parts = evaluate_retriever(WordOverlap(), EXAMPLES, batch_size=3, progress=False)
    assert whole == parts


def test_fewer_documents_than_asked_for() -> None:
    report = evaluate_retriever(WordOverlap(), EXAMPLES, k=50, progress=False)
    assert report.metrics["recall@50"].mean == 1.0


def test_before_and_after_can_be_compared() -> None:
    before = evaluate(FirstWord(WordOverlap()), EXAMPLES, k=0, progress=False, cluster="country")
    after = evaluate(FirstWord(WordOverlap()), EXAMPLES, progress=False, cluster="country")
    compared = after.compare(before)
    assert compared.differences["exact_match"].difference == 0.5
    assert "recall@1" in compared.left_out


def test_importing_leaves_the_programs_logging_alone() -> None:
    program = "import logging, fedrag.evaluation; assert not logging.getLogger().handlers, logging.getLogger().handlers"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_progress_goes_to_the_error_stream_only(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_retriever(WordOverlap(), EXAMPLES)
    out, err = capsys.readouterr()
    assert out == ""
    assert "retrieving" in err


class Short(FirstWord):
    def query_batch(self, questions: Sequence[str], **settings: Any) -> list[Answer]:
        return super().query_batch(questions, **settings)[:-1]


class Forgetful(WordOverlap):
    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        return super().retrieve(queries, k, where)[1:]


class Untouched:
    """Must not be asked: the input is wrong already."""

    def query_batch(self, questions: Sequence[str], **settings: Any) -> list[Answer]:
        raise AssertionError("asked in vain")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": []}, "no examples"),
        ({"cluster": "town"}, "example 0 .*has no such metadata"),
        ({"depth": 5}, "Untouched has no retriever"),
        ({"depth": 0}, "depth is .* at least 1, got 0"),
        ({"batch_size": 0}, "batch_size is .* at least 1, got 0"),
    ],
)
def test_faults_are_found_before_anything_is_generated(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(Untouched(), **{"examples": EXAMPLES, "progress": False, **settings})


def test_systems_that_lose_questions_are_refused() -> None:
    with pytest.raises(InputError, match="3 answers to 4 questions"):
        evaluate(Short(WordOverlap()), EXAMPLES, progress=False)
    with pytest.raises(InputError, match="3 rankings for 4 queries"):
        evaluate_retriever(Forgetful(), EXAMPLES, progress=False)


def test_retrieval_needs_something_to_look_for() -> None:
    with pytest.raises(InputError, match=r"Example\.answers or Example\.positives"):
        evaluate_retriever(WordOverlap(), [Example("What?")], progress=False)
    with pytest.raises(InputError, match="at least 1, got 0"):
        evaluate_retriever(WordOverlap(), EXAMPLES, k=0, progress=False)
