from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrag.errors import DataError, InputError
from fedrag.evaluation import Metric, Record, Report, summarize
from fedrag.types import Example


def record(place: int, values: dict[str, float], **metadata: object) -> Record:
    return Record(Example(f"question {place}", [f"gold {place}"], metadata=metadata), values, f"text {place}", ("d1",))


def test_a_mean_is_the_sum_over_the_number() -> None:
    # a running mean that starts again at 0 makes 1.0 of this
    report = summarize([record(place, {"f1": value}) for place, value in enumerate([0.0, 0.0, 0.0, 1.0])])
    assert report.metrics["f1"].mean == 0.25
    assert report.metrics["f1"].n == 4


def test_examples_without_a_metric_are_left_out_of_it_and_counted() -> None:
    records = [record(0, {"f1": 1.0}), record(1, {"f1": 0.0, "recall@5": 1.0}), record(2, {"f1": 0.0, "recall@5": 0.0})]
    report = summarize(records)
    assert report.metrics["recall@5"].mean == 0.5
    assert report.metrics["recall@5"].n == 2
    assert "3 without labelled documents are left out" in str(report)
    # an interval is that of its own examples, whatever other metrics there are
    assert report.metrics["recall@5"] == summarize(records[1:]).metrics["recall@5"]


def test_answerable_and_unanswerable_questions_are_told_apart_only_where_both_are() -> None:
    answerable = Record(Example("a", ["x"]), {"exact_match": 1.0, "f1": 1.0}, "x")
    silent = Record(Example("b", []), {"exact_match": 0.0, "f1": 0.0}, "y")
    report = summarize([answerable, answerable, silent])
    split = {name: (metric.mean, metric.n) for name, metric in report.metrics.items()}
    assert split["exact_match_answerable"] == split["f1_answerable"] == (1.0, 2)
    assert split["exact_match_unanswerable"] == (0.0, 1)
    assert split["exact_match"] == (pytest.approx(2 / 3), 3)
    assert set(report.subset(lambda r: bool(r.example.answers)).metrics) == {"exact_match", "f1"}
    assert set(report.subset(lambda r: not r.example.answers).metrics) == {"exact_match", "f1"}


def test_table() -> None:
    records = [record(place, {"f1": place / 3, "exact_match": float(place == 3)}) for place in range(4)]
    lines = str(summarize(records)).splitlines()
    assert lines[0] == "metric        mean   95 % interval  n"
    assert lines[1].startswith("f1           0.500  [0.")
    assert lines[2].startswith("exact_match  0.250  [0.000, 0.750]  4")
    assert lines[3] == "4 questions; intervals from 10,000 resamples"
    assert len({len(line) for line in lines[:3]}) == 1


def test_clusters_are_resampled_whole() -> None:
    records = [record(place, {"f1": float(place % 10 < 5)}, source=place // 5) for place in range(40)]
    plain, clustered = summarize(records), summarize(records, cluster="source")
    assert plain.metrics["f1"].mean == clustered.metrics["f1"].mean == 0.5
    width = {report.cluster: report.metrics["f1"].high - report.metrics["f1"].low for report in (plain, clustered)}
    assert width["source"] > 1.8 * width[None]
    assert "of the 8 values of 'source'" in str(clustered)
    assert clustered.subset(lambda r: r.example.metadata["source"] < 4).cluster == "source"


def test_differences_are_resampled_and_flipped_by_whole_clusters() -> None:
    rows = {}
    for cluster in (None, "source"):
        before, after = (
            summarize([record(p, {"f1": value}, source=p // 6) for p in range(24)], cluster=cluster) for value in (0, 1)
        )
        rows[cluster] = after.compare(before).differences["f1"]
    assert rows[None].p == 1 / 10_001
    assert rows["source"].p == 2 / 2**4
    assert rows["source"].low < rows[None].low


def test_cluster_values_may_be_any_plain_value() -> None:
    records = [record(place, {"f1": 0.0}, source=source) for place, source in enumerate([["a"], {"b": 1}, None, 1])]
    assert summarize(records, cluster="source").metrics["f1"].n == 4


def test_what_cannot_be_summarised() -> None:
    with pytest.raises(InputError, match="no examples"):
        summarize([])
    with pytest.raises(InputError, match="anything to measure"):
        summarize([record(0, {})])
    with pytest.raises(InputError, match="example 1 has no such metadata"):
        summarize([record(0, {"f1": 1.0}, source=1), record(1, {"f1": 1.0})], cluster="source")
    with pytest.raises(InputError, match="none of the 1 records"):
        summarize([record(0, {"f1": 1.0})]).subset(lambda _: False)


def test_compare_pairs_by_question() -> None:
    before = summarize([record(place, {"f1": value}) for place, value in enumerate([0.0, 0.5, 0.0, 0.25])])
    after = summarize([record(place, {"f1": value}) for place, value in enumerate([0.5, 1.0, 0.5, 0.75])])
    row = after.compare(before).differences["f1"]
    assert (row.before, row.after, row.difference, row.n) == (0.1875, 0.6875, 0.5, 4)
    assert row.low < 0.5 < row.high  # every question gained the same; four of them prove little
    assert row.p == 2 / 16
    back = before.compare(after).differences["f1"]
    assert (back.difference, back.p) == (-0.5, row.p)
    assert (back.low, back.high) == pytest.approx((-row.high, -row.low))


def test_compare_takes_the_questions_that_have_the_metric_in_both() -> None:
    before = summarize([record(0, {"support": 0.0}), record(1, {}), record(2, {"support": 0.5, "rouge_l": 1.0})])
    after = summarize([record(0, {"support": 1.0}), record(1, {"support": 1.0}), record(2, {"f1": 1.0, "map@5": 1.0})])
    compared = after.compare(before)
    assert list(compared.differences) == ["support"]
    row = compared.differences["support"]
    assert (row.before, row.after, row.n) == (0.0, 1.0, 1)
    assert set(compared.left_out) == {"rouge_l", "f1", "map@5"}
    assert "not in both: " in str(compared)


def test_compare_adjusts_p_for_the_number_of_metrics() -> None:
    before = summarize([record(place, dict.fromkeys("abc", 0.0)) for place in range(9)])
    after = summarize([record(p, {"a": 1.0, "b": float(p < 7), "c": float(p < 5)}) for p in range(9)])
    rows = after.compare(before).differences
    assert [rows[name].p for name in "abc"] == [2 / 512, 2 / 128, 2 / 32]
    assert [rows[name].p_holm for name in "abc"] == [6 / 512, 4 / 128, 2 / 32]


def test_comparison_table() -> None:
    before = summarize([record(place, {"f1": 0.0}) for place in range(30)])
    after = summarize([record(place, {"f1": float(place % 10 > 0)}) for place in range(30)])
    lines = str(after.compare(before)).splitlines()
    assert lines[0].split("  ")[0] == "metric"
    assert " ".join(lines[1].split()).startswith("f1 0.000 0.900 +0.900 [+0.")
    assert lines[1].endswith("<0.001    <0.001  30")


def test_repeated_questions_are_fine() -> None:
    report = summarize([record(0, {"f1": 1.0}), record(0, {"f1": 0.0})])
    assert report.compare(report).differences["f1"].n == 2


def test_compare_refuses_other_examples_and_says_which() -> None:
    base = [record(place, {"f1": 0.0}) for place in range(3)]
    report = summarize(base)
    with pytest.raises(InputError, match="3 examples and the one before 2"):
        report.compare(summarize(base[:2]))
    with pytest.raises(InputError, match="example 1 has another question"):
        report.compare(summarize([base[0], base[2], base[1]]))
    other = replace(base[2], example=Example("question 2", ["another gold"]))
    with pytest.raises(InputError, match="example 2 has another question, or other gold answers"):
        report.compare(summarize([*base[:2], other]))


def test_compare_refuses_different_clusters() -> None:
    records = [record(place, {"f1": 0.0}, source=place) for place in range(3)]
    with pytest.raises(InputError, match=r"cluster=None.*cluster='source'"):
        summarize(records).compare(summarize(records, cluster="source"))


texts = st.text(st.characters(), max_size=8)  # lone surrogates and control characters included
plain = st.dictionaries(texts, st.one_of(st.none(), st.booleans(), st.integers(), texts), max_size=3)
examples = st.builds(Example, texts, st.lists(texts), st.lists(texts), st.lists(texts), plain)
records = st.builds(
    Record,
    examples,
    st.dictionaries(texts, st.floats(0, 1), min_size=1, max_size=3),
    st.none() | texts,
    st.lists(texts, max_size=3).map(tuple),
)


@given(st.lists(records, min_size=1, max_size=4), st.integers(0, 5))
def test_save_then_load_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, kept: list[Record], seed: int
) -> None:
    report = summarize(kept, seed=seed)
    path = tmp_path_factory.getbasetemp() / "saved" / "report.json"
    report.save(path)
    assert Report.load(path) == report
    assert Report.load(path).compare(report).left_out == ()


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    summarize([record(0, {"f1": 1.0}, source="s")]).save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["metrics"]["f1"] == {"mean": 1.0, "low": pytest.approx(0.025), "high": 1.0, "n": 1}
    assert content["records"][0]["question"] == "question 0"
    assert content["version"] == 1


def test_saving_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    summarize([record(0, {"f1": 1.0})]).save(path)
    old = path.read_bytes()
    for value in (object(), float("nan")):
        with pytest.raises(InputError, match=r"plain values in Example\.metadata"):
            summarize([record(0, {"f1": 1.0}, source=value)]).save(path)
    assert path.read_bytes() == old


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "{}", '{"format": "other"}', '{"format": "fedrag evaluation report", "version": 1}'],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"odd\.json"):
        Report.load(path)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("records", 0, "values", "f1"), "good", "records.0.values.f1"),
        (("records", 0, "values", "f1"), float("nan"), "records.0.values.f1"),
        (("records", 0, "answer"), 3, "records.0.answer"),
        (("records", 0, "hits"), ["d1", None], "records.0.hits.1"),
        (("records", 0, "metadata"), [], "records.0.metadata"),
        (("records",), [], "records"),
        (("metrics", "f1", "mean"), "0.5", "metrics.f1.mean"),
        (("metrics", "f1", "low"), None, "metrics.f1.low"),
        (("seed",), "a", "seed"),
        (("cluster",), 5, "cluster"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_place(
    tmp_path: Path, place: tuple[str | int, ...], value: object, told: str
) -> None:
    path = tmp_path / "edited.json"
    summarize([record(0, {"f1": 1.0})]).save(path)
    content = json.loads(path.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"edited\.json .*\({told}"):
        Report.load(path)


@given(st.data())
def test_a_damaged_file_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    summarize([record(0, {"f1": 1.0}, source="s")]).save(path)
    text = path.read_text()
    cut = data.draw(st.integers(0, len(text) - 1))
    path.write_text(text[:cut] + data.draw(st.sampled_from(["", "0", '"', "{", "\ufeff", "null"])))
    with suppress(DataError):
        Report.load(path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    summarize([record(0, {"f1": 1.0})]).save(path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="report version 2, this fedrag reads 1"):
        Report.load(path)


def test_a_report_prints_short() -> None:
    report = summarize([record(place, {"f1": 0.0}) for place in range(50)])
    assert "question 49" not in repr(report)
    assert report.metrics["f1"] == Metric(0.0, 0.0, pytest.approx(0.0711, abs=1e-4), 50)


def test_examples_whose_answers_are_not_known_count_in_no_answer_metric() -> None:
    known = Record(Example("a", ["x"]), {"exact_match": 1.0, "f1": 1.0}, "x")
    labelled = Record(Example("b", positives=["d1"]), {"recall@1": 1.0}, "y", ("d1",))
    report = summarize([known, labelled])
    assert report.metrics["exact_match"].n == 1
    assert "exact_match_unanswerable" not in report.metrics
