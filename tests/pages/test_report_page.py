"""The page's numbers are the reports' own, its texts are only texts, and it stays small."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrag.errors import ConfigError, DataError, InputError
from fedrag.evaluation import Record, summarize
from fedrag.evaluation.ranking import label_metrics
from fedrag.pages import read_history, read_log, write_page
from fedrag.pages.charts import lines, ticks
from fedrag.pages.curves import learning, recall, rounds
from fedrag.types import Example

TAGS = """html head meta title link style body a header h1 p nav ul li main dl div dt dd section h2 figure figcaption
svg g line circle text desc path details summary span table caption thead tbody tr th td data bdi h3 h4 ol label input
output button footer script"""


class Reader(HTMLParser):
    """The tables of a page, as rows of cells with the exact values where the page has them; tags, ids and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self._cell = self._exact = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.tags.append(tag)
        self.ids += [about["id"] or ""] if "id" in about else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        elif tag == "data" and self._cell:
            self.tables[-1][-1][-1] += f"{about['value']} "
            self._exact = True

    def handle_endtag(self, tag: str) -> None:
        self._exact = self._exact and tag != "data"
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell and not self._exact:
            self.tables[-1][-1][-1] += data


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "page.html", **run).path


def numbers(cell: str) -> list[float]:
    return [float(word) for word in cell.replace(" to ", " ").split()]


def test_the_numbers_are_the_reports(page: Path, run: dict[str, Any]) -> None:
    reader = read(page)
    head, *rows = reader.tables[0]
    names = {"before": run["before"], "after": run["after"], **run["more"]}
    assert head[1::3] == [*names]
    assert [row[0] for row in rows] == [*run["after"].metrics]
    for metric, *cells in rows:
        for place, report in enumerate(names.values()):
            want, (mean, ends, n) = report.metrics[metric], cells[3 * place : 3 * place + 3]
            assert [*numbers(mean), *numbers(ends), int(n)] == [want.mean, want.low, want.high, want.n]
    for table, name in ((reader.tables[1], "after"), (reader.tables[2], "half way")):
        wanted = names[name].compare(run["before"]).differences
        for metric, *cells in table[1:]:
            row = wanted[metric]
            shown = [number for cell in cells[:7] for number in numbers(cell)]
            assert shown == [row.before, row.after, row.difference, row.low, row.high, row.p, row.p_holm, row.n]
            clear = row.p_holm < 0.05
            word = "not clear" if not clear else "▲\xa0better" if row.difference > 0 else "▼\xa0worse"
            assert cells[7].strip() == word
        assert len(table) == len(wanted) + 1


def test_recall_at_the_cut_offs_is_the_reports(page: Path, run: dict[str, Any]) -> None:
    table = next(table for table in read(page).tables if table[0][0] == "k")
    curve = {int(row[0]): float(row[1 + table[0][1:].index("after")]) for row in table[1:]}
    assert [*curve] == [*range(1, 10)]
    cut_offs = [name for name in run["after"].metrics if name.startswith("recall@")]
    assert len(cut_offs) == 3
    for name in cut_offs:
        assert curve[int(name.partition("@")[2])] == pytest.approx(run["after"].metrics[name].mean, abs=1e-12)


def test_recall_of_rankings_with_several_golds_and_repeated_ids() -> None:
    rankings, golds = [["a", "a", "b", "c", "x", "d"], ["x"], ["c"]], [["a", "d", "d"], ["y", "x"], []]
    records = [Record(Example("q", positives=g), {}, hits=tuple(r)) for r, g in zip(rankings, golds, strict=True)]
    values = label_metrics(rankings[:2], golds[:2], 6)
    curve = dict(recall(records))
    for k in (1, 5, 6):
        assert curve[k] == pytest.approx(sum(row[f"recall@{k}"] for row in values) / 2)


def test_texts_are_texts(page: Path, run: dict[str, Any]) -> None:
    reader, html = read(page), page.read_text(encoding="utf-8")
    assert reader.tags.count("script") == 1
    assert not {"img", "em", "i", "b", "measured"} & {*reader.tags}
    assert len(reader.ids) == len(set(reader.ids))
    assert not re.search("[\x00-\x08\ud800-\udfff]", html)
    text = "".join(reader.text)
    for odd in ("<script>document.title = 'taken over'</script> & \"quotes\"", "<b>bold</b>", "is <em>old</em>."):
        assert odd in text
    assert "style=" not in html  # the policy would refuse it


def test_characters_that_no_page_may_hold_are_replaced(run: dict[str, Any], tmp_path: Path) -> None:
    written = write_page(
        tmp_path / "page.html", after=run["after"], title="half \ud800, nothing \x00", about={"\x1b": "\x7f"}
    )
    assert "".join(read(written.path).text).count("\ufffd") == 6  # the title comes twice


def test_flips_are_counted_and_shown_with_both_sides(run: dict[str, Any], tmp_path: Path) -> None:
    pairs = [
        (old.values["exact_match"], new.values["exact_match"])
        for old, new in zip(run["before"].records, run["after"].records, strict=True)
    ]
    right, wrong = pairs.count((0.0, 1.0)), pairs.count((1.0, 0.0))
    assert right > 5
    assert wrong > 0
    written = write_page(tmp_path / "page.html", **run)
    assert (written.became_right, written.became_wrong, written.shown) == (right, wrong, right + wrong)
    few = write_page(tmp_path / "few.html", **run, shown=2)
    assert (few.became_right, few.shown) == (right, min(2, right) + min(2, wrong))
    text = "".join(read(few.path).text)
    assert f"{right} became right" in text
    assert "This page holds 2 of them" in text
    without = write_page(tmp_path / "ids.html", **{**run, "store": None})
    assert "old</em>" not in "".join(read(without.path).text)
    assert without.bytes < written.bytes


def test_a_report_alone_has_a_page(run: dict[str, Any], tmp_path: Path) -> None:
    written = write_page(tmp_path / "deep" / "down" / "page.html", after=run["after"])
    reader = read(written.path)
    assert written.bytes == written.path.stat().st_size
    assert not written.shown
    assert "script" not in reader.tags
    assert len(reader.tables) == 2


def test_a_metric_that_stayed_does_not_decide(tmp_path: Path) -> None:
    example = Example("q", ["a"], positives=["d1"])
    values = {"exact_match": 0.0, "recall@1": 0.0, "recall@5": 1.0}
    before = summarize([Record(example, {**values, "recall@5": 0.0}, hits=("d2",))])
    after = summarize([Record(example, values, hits=("d2", "d1"))])
    assert write_page(tmp_path / "a.html", before=before, after=after).became_right == 1
    assert write_page(tmp_path / "b.html", before=before, after=after, metric="exact_match").became_right == 0
    assert "Right is exact_match of" in "".join(
        read(write_page(tmp_path / "c.html", before=after, after=after).path).text
    )


def test_long_texts_and_many_questions_stay_small(tmp_path: Path) -> None:
    golds = [f"d{n}" for n in range(300)]
    example = [Example(f"{n} " + "<" * 5000, ["&" * 3000] * 50, positives=golds) for n in range(200)]
    before, after = (
        summarize([Record(e, {"exact_match": v}, '"' * 9000, tuple(golds[:40])) for e in example]) for v in (0.0, 1.0)
    )
    written = write_page(tmp_path / "page.html", before=before, after=after, shown=200)
    assert written.became_right == 200
    assert 20 < written.shown < 200
    assert written.bytes < 3_000_000
    assert f"This page holds {written.shown} of them" in "".join(read(written.path).text)


def test_mistakes_are_named(run: dict[str, Any], tmp_path: Path) -> None:
    page, after = tmp_path / "page.html", run["after"]
    with pytest.raises(ConfigError, match=r"'bleu' is not in the reports; they have exact_match, f1"):
        write_page(page, after=after, metric="bleu")
    with pytest.raises(ConfigError, match=r"no example has 'colour' in its metadata; they have hall"):
        write_page(page, after=after, by="colour")
    with pytest.raises(InputError, match=r"report 'other': this report has 1 examples and the one before 60"):
        write_page(page, after=after, before=run["before"], more={"other": summarize(after.records[:1])})
    with pytest.raises(InputError, match="named 'before' or 'after'"):
        write_page(page, after=after, more={"after": after})
    with pytest.raises(InputError, match="shown is a number of questions, at least 0, got -1"):
        write_page(page, after=after, shown=-1)
    (tmp_path / "file").write_text("")
    for impossible in (tmp_path, tmp_path / "file" / "page.html"):
        with pytest.raises(InputError, match="cannot be written"):
            write_page(impossible, after=after)
    assert not page.exists()


def test_logs_are_read(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0, "epoch": 1}]
    again = [{"step": 1, "loss": 0.5, "total_flos": 9}, {"step": 2, "loss": 0.4, "eval_runtime": 1}]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, rows + again)) + "\n")
    (chart,) = learning(read_log(tmp_path / "run.jsonl"))
    assert {line.name: line.points for line in chart.series} == {
        "stage 1": ((1, 2.0), (3, 1.0)),
        "stage 2": ((1, 0.5), (2, 0.4)),
    }
    assert chart.note == "1 values that are not finite are not drawn."
    state = tmp_path / "1-lsr" / "checkpoint-2" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"log_history": again, "epoch": 1.0}))
    assert [line.name for line in learning(read_log(state))[0].series] == ["1-lsr"]
    for bad in ("[]", '{"step": "3"}', "{", "3"):
        (tmp_path / "bad.jsonl").write_text('{"step": 1}\n' + bad)
        with pytest.raises(DataError, match=r"bad\.jsonl"):
            read_log(tmp_path / "bad.jsonl")


ORDERED = [{"step": step, "a": 1, "eval_b": 1, "eval_f1": 1, "eval_loss": 1, "loss": 1} for step in (1, 2)]


def test_a_long_log_is_thinned_and_keeps_its_ends() -> None:
    (chart,) = learning({"step": step, "loss": 1.0 / (1 + step)} for step in range(5000))
    assert [one.title for one in learning(ORDERED, "eval_f1")] == ["loss", "eval_loss", "eval_f1", "eval_b", "a"]
    (line,) = chart.series
    assert len(line.points) <= 202
    assert (line.points[0][0], line.points[-1][0]) == (0, 4999)
    assert "one point of 25" in chart.note


def test_a_federation_has_its_measures_where_the_state_is(run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"history": run["history"].to_json(), "token": "0"}))
    charts = {chart.title: chart for chart in rounds(read_history(path))}
    assert charts["loss"].series[0].points == tuple((number + 1, 1 / (number + 1)) for number in range(4))
    assert [x for x, _ in charts["eval_loss"].series[0].points] == [0, 1, 2, 3, 4]
    clinic = next(line for line in charts["loss, by site"].series if line.name == "clinic")
    assert [x for x, _ in clinic.points] == [1, 3, 4]
    assert charts["Megabytes that travelled in each round"].series[0].points[0] == (1.0, 2.0)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"history\.json is no federated history"):
        read_history(path)


@given(st.floats(-1e299, 1e299), st.floats(-1e299, 1e299))
def test_an_axis_holds_what_it_is_for(one: float, two: float) -> None:
    low, high = min(one, two), max(one, two)
    axis = ticks(low, high)
    assert 2 <= len(axis) <= 14
    assert all(before < after for before, after in itertools.pairwise(axis))
    slack = 1e-6 * max(abs(low), abs(high), 1e-9)
    assert axis[0] <= low + slack
    assert axis[-1] >= high - slack


@settings(max_examples=60)
@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from([0.0, 1.0]), st.text(min_size=1, max_size=9))
def test_any_text_comes_out_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, question: str, answer: str, value: float, name: str
) -> None:
    example = Example(question, [answer], positives=[answer])
    before, after = (summarize([Record(example, {name: v}, answer, (answer,))]) for v in (value, 1 - value))
    path = tmp_path_factory.getbasetemp() / "any.html"
    written = write_page(path, before=before, after=after, log=[{"step": s, name: 1.0} for s in (1, 2)], title=question)
    assert written.became_right + written.became_wrong == written.shown == 1
    reader = read(path)
    text = "".join(reader.text).replace("\n", " ")
    seen = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", answer)
    seen = seen.replace("\r\n", "\n").replace("\r", "\n").replace("\n", " ")
    assert seen in text
    assert {*reader.tags} <= {*TAGS.split()}


KEYS = st.sampled_from(["step", "loss", "eval_loss", "stage", "objective", "epoch", "rounds", "closing", "history"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5) | KEYS, inside, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(KEYS, JSON, max_size=6) | JSON, max_size=6), st.sampled_from(["jsonl", "json"]))
def test_any_log_is_drawn_or_named(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], ending: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"log.{ending}"
    whole = {"log_history": rows}
    path.write_text("\n".join(map(json.dumps, rows)) if ending == "jsonl" else json.dumps(whole), encoding="utf-8")
    try:
        charts = learning(read_log(path))
    except DataError as error:
        named, charts = str(error), []
    else:
        named = path.name
    assert path.name in named
    for chart in charts:
        assert "<svg" in lines(chart, "c1")


@given(st.data())
def test_any_history_is_drawn_or_named(
    run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = run["history"].to_json()
    part: Any = content
    while isinstance(part, dict | list | tuple) and part:
        key = data.draw(st.sampled_from([*part] if isinstance(part, dict) else [*range(len(part))]))
        if isinstance(part, tuple) or data.draw(st.integers(0, 3)) == 0:
            break
        below = part[key]
        if not isinstance(below, dict | list):
            part[key] = data.draw(JSON)
            break
        part = below
    path = tmp_path_factory.getbasetemp() / "history.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        charts = rounds(read_history(path))
    except DataError as error:
        named, charts = str(error), []
    else:
        named = "history.json is no federated history"
    assert "history.json is no federated history" in named
    for chart in charts:
        assert "<svg" in lines(chart, "c1")
