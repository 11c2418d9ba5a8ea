"""`fedrag report` as a person would use it: files in, one page out, mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedrag.cli import app
from fedrag.errors import ConfigError, DataError, FedRAGError, InputError
from fedrag.evaluation import Record, Report, summarize
from fedrag.federated.history import History, Round, SiteRound
from systems import DOCUMENTS, EXAMPLES, tiny_system


def report(right: int) -> Report:
    """The first `right` questions are answered, from the first two documents."""
    return summarize(
        [
            Record(example, {"f1": float(place < right)}, "12" if place < right else "no", ("d0", "d1"))
            for place, example in enumerate(EXAMPLES)
        ]
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, right in (("before", 4), ("after", 20), ("half", 10)):
        report(right).save(f"rag.run/{name}.json")
    rows = [{"time": 1.5, "stage": 1, "objective": "lsr", "step": step, "loss": 1 / step} for step in (1, 2, 3)]
    Path("rag.run/log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"objective": "lsr", "settings": {"k": 4}, "training": {"max_steps": 3, "hub_token": "hf_secret"}}
    Path("rag.run/run.json").write_text(json.dumps({"recipe": {"stages": [stage]}}))
    sites = {name: SiteRound(2, {"loss": 0.5}) for name in ("north", "harbour")}
    rounds = [Round(number, sites, {}, (), {"loss": 0.5}, 10, 10, 0.1) for number in range(2)]
    Path("history.json").write_text(json.dumps(History(rounds).to_json()))
    return tmp_path


def fedrag(*words: str) -> Result:
    return CliRunner().invoke(app, ["report", *words])


def test_a_run_and_its_system_become_a_page(place: Path) -> None:
    tiny_system().save(place / "rag")
    result = fedrag("out/page.html", "--run", "rag.run", "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    html = Path("out/page.html").read_text(encoding="utf-8")
    assert told == {
        "path": "out/page.html",
        "bytes": len(html.encode()),
        "became_right": 16,
        "became_wrong": 0,
        "shown": 16,
    }
    assert DOCUMENTS[1].text in html
    assert ">loss</figcaption>" in html
    assert ">time</figcaption>" not in html
    assert "lsr, k 4, max_steps 3" in html
    assert "hf_secret" not in html
    assert str(place) not in html
    Path("rag.run/run.json").write_text('{"recipe": {"stages": [1]}}')
    assert isinstance(fedrag("page.html", "--run", "rag.run").exception, DataError)


def test_every_option(place: Path) -> None:
    reports = [
        "--before",
        "rag.run/before.json",
        "--after",
        "rag.run/after.json",
        "--more",
        "half way=rag.run/half.json",
    ]
    result = fedrag(
        "page.html", *reports, "--history", "history.json", "--shown", "3", "--metric", "f1", "--title", "T!"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("page.html: ")
    assert result.stdout.endswith("kB; 16 became right, 0 wrong\n")
    html = Path("page.html").read_text(encoding="utf-8")
    for words in ("<title>T!</title>", "half way", "loss, by site", "This page holds 3 of them"):
        assert words in html
    assert DOCUMENTS[1].text not in html
    alone = fedrag("alone.html", "--after", "rag.run/after.json")
    assert alone.stdout.endswith("kB\n")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], ConfigError, "a page wants a report: got none; name one by --after"),
        (["--run", "empty"], ConfigError, "empty holds no after.json"),
        (["--after", "rag.run/after.json", "--more", "half"], InputError, "--more takes name=report.json"),
        (["--after", "rag.run/log.jsonl"], DataError, "log.jsonl is not a report"),
        (["--after", "rag.run/after.json", "--log", "history.json"], DataError, "history.json is no training log"),
        (["--after", "rag.run/after.json", "--history", "rag.run/after.json"], DataError, "no federated history"),
        (["--after", "rag.run/after.json", "--system", "empty"], FedRAGError, "empty holds nothing saved"),
        (["--after", "rag.run/after.json", "--metric", "bleu"], ConfigError, "metric 'bleu' is not in the reports"),
        (["--after", "rag.run/after.json", "--by", "hall"], ConfigError, "no example has 'hall' in its metadata"),
    ],
)
def test_mistakes_are_named(place: Path, words: list[str], error: type[Exception], message: str) -> None:
    (place / "empty").mkdir()
    result = fedrag("page.html", *words)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert not Path("page.html").exists()


@pytest.mark.parametrize("words", [["--after", "missing.json"], ["--after", "rag.run", "--shown", "-1"]])
def test_wrong_usage_is_said(place: Path, words: list[str]) -> None:
    assert fedrag("page.html", *words).exit_code == 2
