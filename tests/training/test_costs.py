"""What candidates cost, in the log; and examples without room in a prompt, named before anything is paid."""

import pytest

from fedrag import LSR, RALT, Contrastive, Example, RAGTrainer
from fedrag.errors import BudgetError
from fedrag.training.costs import Costs
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system

COSTS = {"refreshes", "refresh_seconds", "rescore_seconds", "candidates_kept"}


def logged(objective, folder, **settings):
    """What each step's log tells of costs, and what `train()` does."""
    args = arguments(folder, max_steps=5, logging_strategy="steps", logging_steps=1)
    trainer = RAGTrainer(objective, train_dataset=EXAMPLES, args=args, **settings)
    output = trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: entry[name] for name in COSTS & set(entry)} for entry in entries], output.metrics, trainer


def test_the_log_tells_what_refreshing_costs(tmp_path):
    entries, metrics, trainer = logged(LSR(tiny_system(kind="bert"), k=3), tmp_path, refresh=2)
    assert [entry["refreshes"] for entry in entries] == [1, 2, 2, 3, 3]
    assert ["candidates_kept" in entry for entry in entries] == [False, True, True, True, True]
    seconds = [entry["refresh_seconds"] for entry in entries]
    assert 0 < seconds[0] < seconds[1] == seconds[2] < seconds[3] == seconds[4]
    assert metrics["refresh_seconds"] == seconds[-1]
    assert not any("rescore_seconds" in entry for entry in entries)
    trainer.train()
    assert trainer.candidates.costs.numbers["refreshes"] == 3  # a run's own


def test_ranking_anew_costs_at_every_step(tmp_path):
    entries, *_ = logged(LSR(tiny_system(kind="bert"), k=3), tmp_path, refresh="never", over_retrieve=2)
    assert [entry["refreshes"] for entry in entries] == [1] * 5
    seconds = [entry["rescore_seconds"] for entry in entries]
    assert seconds[0] > 0
    assert seconds == sorted(set(seconds))


def test_without_candidates_there_is_no_cost(tmp_path):
    entries, metrics, _ = logged(Contrastive(tiny_system(kind="bert")), tmp_path)
    assert entries == [{}] * 5
    assert not COSTS & set(metrics)


def test_the_share_that_stayed():
    costs = Costs()
    costs.refreshed({}, {"a": ["1", "2"]})
    assert costs.numbers == {"refreshes": 1}
    costs.refreshed({"a": ["1", "2"], "b": ["1"]}, {"a": ["2", "3", "4", "5"], "b": ["1"], "c": ["7"]})
    assert costs.numbers == {"refreshes": 2, "candidates_kept": pytest.approx((1 / 4 + 1) / 2)}


@pytest.mark.parametrize("make", [lambda rag: RALT(rag), lambda rag: LSR(rag, k=3)], ids=["ralt", "lsr"])
def test_examples_without_room_are_named_before_the_first_step(make, tmp_path):
    rag = tiny_system(kind="bert")
    rag.generator.max_length = 120
    long = "which key has the clerk of the clerk " * 30
    rows = [*EXAMPLES]
    for row in (2, 5, 7, 11, 13, 20):
        rows[row] = Example(long, ["1"])
    rows[9] = Example("Which key ?", [long])  # an answer that is too long, too
    objective = make(rag)
    asked = []
    objective.candidates = objective.find = lambda batch: asked.append(batch) or [DOCUMENTS[:3] for _ in batch]
    with pytest.raises(BudgetError, match=r"^7 of 24 training examples .*rows 2, 5, 7, 9, 11, \.\.\.\. In .*max_leng"):
        RAGTrainer(objective, train_dataset=rows, args=arguments(tmp_path)).train()
    assert not asked
    with pytest.raises(BudgetError) as caught:
        RAGTrainer(objective, train_dataset=rows[9:11], args=arguments(tmp_path)).train()
    assert "clerk" not in str(caught.value)
    assert "rows 0. In the first" in str(caught.value)
    fitting = [row for row in rows if len(row.question) + len(row.answers[0]) < 100]
    RAGTrainer(make(rag), train_dataset=fitting, args=arguments(tmp_path, max_steps=1)).train()


def test_an_objective_that_makes_no_prompt_takes_any_length(tmp_path):
    rag = tiny_system()
    rag.generator.max_length = 40
    rows = [Example("which key has the clerk " * 30, ["1"], positives=["d1"]) for _ in range(4)]
    RAGTrainer(Contrastive(rag), train_dataset=rows, args=arguments(tmp_path, max_steps=1)).train()
