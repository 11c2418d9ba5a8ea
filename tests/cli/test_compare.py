"""`fedrag compare` and `fedrag evaluate --json`: reports in, differences with intervals and p-values out."""

import json

import pytest
from typer.testing import CliRunner

from fedrag import Example
from fedrag.cli import app
from fedrag.evaluation.report import Record, summarize
from fedrag.evaluation.statistics import holm
from systems import EXAMPLES, tiny_system


def report(path, right, *, questions=20):
    records = [
        Record(Example(f"q{n}", ["a"]), {"f1": float(n < right), "exact_match": float(n < right // 2)})
        for n in range(questions)
    ]
    summarize(records).save(path)
    return str(path)


def fedrag(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_several_reports_are_adjusted_together(tmp_path):
    before = report(tmp_path / "before.json", 4)
    after = [report(tmp_path / f"after{right}.json", right) for right in (12, 18)]
    alone = json.loads(fedrag("compare", before, after[0], "--json").stdout)["comparisons"][0]["differences"]
    told = json.loads(fedrag("compare", before, *after, "--json").stdout)
    rows = [row for comparison in told["comparisons"] for row in comparison["differences"].values()]
    assert [row["p_holm"] for row in rows] == list(holm([row["p"] for row in rows]))
    assert [comparison["after"] for comparison in told["comparisons"]] == after
    assert alone["f1"]["p"] == rows[0]["p"]
    assert alone["f1"]["p_holm"] < rows[0]["p_holm"] or alone["f1"]["p_holm"] == 1.0
    assert rows[0]["difference"] == pytest.approx(0.4)


def test_markdown_is_a_table(tmp_path):
    before, after = report(tmp_path / "before.json", 4), report(tmp_path / "after.json", 12)
    lines = fedrag("compare", before, after, "--markdown").stdout.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| f1 | 0.200 | 0.600 | +0.400 [")
    assert "+0.400" in fedrag("compare", before, after).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["before.json", "absent.json"], "absent.json is not there"),
        (["before.json", "."], "is a folder"),
        (["before.json", "short.json"], "short.json: this report has 5 examples"),
        (["before.json", "text.json"], "is not a report"),
        (["before.json", "before.json", "--json", "--markdown"], "two forms"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    report(tmp_path / "before.json", 4)
    report(tmp_path / "short.json", 4, questions=5)
    (tmp_path / "text.json").write_text("no report")
    done = fedrag("compare", *words)
    assert done.exit_code == 1
    assert told in str(done.exception)


def test_evaluate_prints_one_object(tmp_path):
    tiny_system().save(tmp_path / "rag")
    rows = [{"question": e.question, "answers": e.answers, "positives": e.positives} for e in EXAMPLES[:4]]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["evaluate", tmp_path / "rag", tmp_path / "dev.jsonl", "--json"]
    done = fedrag(*words, "--save", tmp_path / "before.json")
    told = json.loads(done.stdout)
    assert told["questions"] == 4
    assert set(told["metrics"]["f1"]) == {"mean", "low", "high", "n"}
    again = json.loads(fedrag(*words, "--compare", tmp_path / "before.json").stdout)
    assert again["comparison"]["differences"]["f1"]["difference"] == 0.0
