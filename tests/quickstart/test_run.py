"""The quickstart as a person runs it, in its quick form."""

import json

import pytest

from fedrag.quickstart import federation, loop, retrieval
from fedrag.quickstart.run import run


@pytest.mark.slow
def test_the_quick_form_trains_measures_and_reports(tmp_path, capsys):
    content = run(tmp_path, quick=True, controls=True)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(content))
    real, invented = content["metrics"]["act A"], content["metrics"]["act B"]
    assert set(real) == {retrieval.LEXICAL, retrieval.UNTRAINED, retrieval.TUNED}
    for regime in ("frozen", "RALT", "LSR, frozen reader", "RALT, then LSR"):
        assert set(invented[regime]) == set(loop.SETTINGS)

    def em(regime, setting):
        return invented[regime][setting]["exact_match"]["mean"]

    assert real[retrieval.TUNED][retrieval.SETTING]["recall@10"]["mean"] > 0.3
    assert em("RALT", loop.GOLD) > 0.8  # a reader that copies
    assert em("frozen", loop.GOLD) < 0.2
    assert em("RALT", loop.NONE) < 0.1  # and knows nothing by heart
    assert em("RALT", loop.RANDOM) < 0.1
    assert em("control: answers without passages", loop.GOLD) < em("RALT", loop.GOLD)
    sites = content["metrics"]["act C"]
    names = {regime for regime in sites if regime.endswith(" alone")}
    assert set(sites) == {federation.UNTRAINED, federation.FEDERATED, federation.CENTRALIZED, *names}

    def found(regime):
        return sites[regime][federation.SETTING]["recall@10"]["mean"]

    assert found(federation.FEDERATED) > found(federation.UNTRAINED) + 0.03
    (run_of_sites,) = content["federations"]
    assert [len(done["sites"]) for done in run_of_sites["rounds"]] == [len(names)] * 2
    assert content["bytes travelled"][0] > 2 * 2 * len(names) * 256 * 4 * 1000  # rounds, ways, sites, a vector a piece
    told = capsys.readouterr().out
    assert "gold among four" in told
    assert all(regime in told for regime in (*real, *invented, *sites))
    ends = {row["what"]: row for row in content["compared"]}
    assert all(row["n"] >= 72 and row["low"] <= row["difference"] <= row["high"] for row in ends.values())


def test_both_acts_leave_nothing_of_the_test_in_training():
    text = retrieval.collect(quick=True)
    trained = {passage for example in text.train for passage in example.positives}
    assert not trained & {passage for example in text.test for passage in example.positives}
