"""The grid: cells that are run once, files that are recognised, figures that are the evaluation's own."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from fedrag import Document, Example, LexicalRetriever, RAGSystem, evaluate
from fedrag.ablations import ablation
from fedrag.ablations.cell import forget_peak, memory
from fedrag.ablations.result import markdown_table
from fedrag.errors import ConfigError, DataError, InputError
from fedrag.evaluation import summarize
from fedrag.evaluation.statistics import holm

DOCUMENTS = [Document(f"The harbour of isle {n} is port{n} .", id=f"d{n}") for n in range(12)]
TEST = [
    Example(f"harbour of isle {n} ?", [f"port{n}"], positives=[f"d{n}"], metadata={"half": n // 2}) for n in range(12)
]


class Copier:
    """Answers with the port of the passage, for the first `reach` isles only."""

    def __init__(self, reach=0):
        self.reach = reach

    def generate(self, prompts, **_):
        words = [next(w for w in prompt.split() if w.startswith("port")) for prompt in prompts]
        return [word if int(word[4:]) < self.reach else "nothing" for word in words]


def make(seed):
    return RAGSystem(retriever=LexicalRetriever(DOCUMENTS), generator=Copier(), top_k=1)


class Teach:
    """Trains by counting: how often it ran, too."""

    def __init__(self, reach):
        self.reach, self.seeds = reach, []

    def __call__(self, rag, seed):
        self.seeds.append(seed)
        rag.generator.reach = self.reach + seed
        deadline = time.process_time() + 0.12
        while time.process_time() < deadline:  # what costs nothing has no gain per minute
            pass


def regimes(**reaches):
    return {"frozen": lambda rag, seed: None} | {name: Teach(reach) for name, reach in reaches.items()}


def grid(out=None, cluster="half", **settings):
    found = regimes(half=6, most=10)
    return ablation(make, found, TEST, seeds=(0, 1), out=out, cluster=cluster, progress=False, **settings), found


def test_a_cell_says_what_evaluate_says_and_seeds_are_pooled():
    made, _ = grid()
    found = LexicalRetriever(DOCUMENTS)
    systems = [RAGSystem(retriever=found, generator=Copier(n), top_k=1) for n in (6, 7)]
    reports = [evaluate(system, TEST, progress=False, cluster="half") for system in systems]
    pooled = summarize([record for report in reports for record in report.records], cluster="half")
    assert made.report("half", "end to end").metrics == pooled.metrics
    assert made.means("half", "end to end", "exact_match") == {0: 6 / 12, 1: 7 / 12}
    by_metric = reports[0].metrics
    assert {name: made.means("half", "end to end", name)[0] for name in by_metric} == pytest.approx(
        {name: metric.mean for name, metric in by_metric.items()}
    )


def test_comparisons_are_paired_by_question_and_adjusted_over_the_family():
    made, _ = grid()
    rows = made.compare()
    assert [(row.after, row.before) for row in rows] == [("half", "frozen"), ("most", "frozen")]
    assert [row.difference.p_holm for row in rows] == holm([row.difference.p for row in rows])
    assert rows[1].difference.p_holm > rows[1].difference.p
    assert rows[1].difference.difference == pytest.approx(21 / 24)
    assert rows[1].by_seed == pytest.approx((10 / 12, 11 / 12))
    (row,) = made.compare([("most", "half")])
    assert row.difference.difference == pytest.approx(8 / 24)
    assert row.difference.p_holm == row.difference.p
    wide = made.compare([("most", "half")])[0].difference
    # the clusters hold two questions of each seed: their interval is not that of single questions
    narrow = grid(cluster=None)[0].compare([("most", "half")])[0].difference
    assert (wide.low, wide.high) != (narrow.low, narrow.high)


def test_what_is_done_is_not_done_again(tmp_path):
    first, _ = grid(tmp_path)
    again, found = grid(tmp_path)
    assert found["half"].seeds == []
    assert str(again) == str(first)
    assert again.content() == first.content()
    (tmp_path / "half-1.json").unlink()
    _, found = grid(tmp_path)
    assert (found["half"].seeds, found["most"].seeds) == ([1], [])


def test_a_cell_of_other_settings_is_refused_by_what_differs(tmp_path):
    grid(tmp_path, settings={"half": {"steps": 3, "rate": 0.1}})
    grid(tmp_path, settings={"half": {"rate": 0.1, "steps": 3}})
    with pytest.raises(ConfigError, match=r"half-0\.json was made with other settings .*: steps\. "):
        grid(tmp_path, settings={"half": {"steps": 4, "rate": 0.1}})
    with pytest.raises(ConfigError, match="cluster"):
        grid(tmp_path, cluster=None)
    with pytest.raises(ConfigError, match="questions"):
        ablation(make, regimes(), TEST[:4], seeds=(0,), out=tmp_path, cluster="half", progress=False)


def test_a_cell_names_no_text_and_tells_what_it_took(tmp_path):
    grid(tmp_path)
    text = (tmp_path / "most-0.json").read_text()
    assert not any(word in text for word in ("isle", "port1", "harbour"))
    cost = json.loads(text)["cost"]
    assert cost["cpu_seconds"] >= 0
    assert cost["peak_gib"] >= cost["start_gib"] > 0


def test_the_peak_is_that_of_the_training():
    forget_peak()
    before, _ = memory()
    hold = np.ones(64 * 2**20 // 8)
    del hold
    _, peak = memory()
    assert peak - before > 0.05


def test_a_damaged_cell_is_named(tmp_path):
    grid(tmp_path)
    (tmp_path / "half-0.json").write_text("{}")
    with pytest.raises(DataError, match=r"half-0\.json is no cell"):
        grid(tmp_path)


def test_a_regime_may_return_another_system_and_measure_several_settings():
    def measure(rag, seed):
        report = evaluate(rag, TEST, progress=False, depth=3, cluster="half")
        return {"all": report, "first": report.subset(lambda record: record.example.metadata["half"] == 0)}

    def other(rag, seed):
        return RAGSystem(retriever=rag.retriever, generator=Copier(12), top_k=1)

    made = ablation(make, regimes() | {"other": other}, seeds=(3,), measure=measure, progress=False)
    assert made.columns == {"all, exact_match": ("all", "exact_match"), "first, exact_match": ("first", "exact_match")}
    assert made.report("other", "first").metrics["exact_match"].n == 2
    shown = replace(made, columns={"found": ("all", "recall@1"), "right": ("all", "exact_match")})
    assert [row[0] for row in shown.tables()["found, by seed"]] == ["regime", "frozen", "other"]
    assert len(shown.compare()) == 2
    assert [row.metric for row in replace(shown, compared=["right"]).compare()] == ["exact_match"]
    assert shown.content()["regimes"]["other"]["gain"] is None  # nothing was trained


def test_the_tables_hold_every_regime_and_gains_are_per_cost():
    made, _ = grid()
    tables = made.tables()
    assert all([row[0] for row in rows][1:] in (["frozen", "half", "most"], ["half - frozen", "most - frozen"])
               for rows in tables.values())  # fmt: skip
    content = made.content()
    most = content["regimes"]["most"]
    assert content["regimes"]["frozen"]["gain"] is None
    assert most["gain"]["gain"] == pytest.approx(21 / 24)
    assert most["gain"]["per_gib"] == pytest.approx(21 / 24 / most["cost"]["peak_gib"])
    assert made.markdown().count("| most |") == 3
    assert markdown_table([("a", "b|c"), ("1", "2")]) == "| a | b\\|c |\n|---|---|\n| 1 | 2 |\n"


def test_what_cannot_be_compared_is_refused():
    made, _ = grid()
    with pytest.raises(ConfigError, match="same questions"):
        replace(made, cells={"frozen": made.cells["frozen"], "half": {0: made.cells["half"][0]}}).compare()
    with pytest.raises(ConfigError, match="a name of its own"):
        ablation(make, {"a b": Teach(1), "a-b": Teach(2)}, TEST, progress=False)
    with pytest.raises(InputError, match="nothing to measure"):
        ablation(make, regimes(), progress=False)
