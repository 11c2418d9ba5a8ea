"""The signatures task: answers stand in their passages, splits share no module, guesses are what they claim to be."""

import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

from signatures_data import COMMON, Task, answer_of, by_name, contradicted, four, make_task, signatures_of
from signatures_reader import Prose, make_model, make_tokenizer, pretrain

from fedrag import CausalLM

SOURCE = '''
class Tree:
    """A tree."""

    def __init__(self, depth: int = 3, *, seed=None):
        pass

    def fit(self, X, rate: float = 1e-05, how='auto'):
        """Grow it.

        Not shown.
        """

    def _hidden(self, a=1):
        """Not public."""

def bare(a=1):
    pass

def plain(a, b=()):
    """Do it."""
'''


@cache
def task() -> Task:
    return make_task({"numpy": ("numpy",), "networkx": ("networkx",)}, test=150, progress=False)


def test_signatures_are_read_as_they_are_written() -> None:
    found = {one.name: one for one in signatures_of(SOURCE, "wood")}
    assert list(found) == ["wood.Tree", "wood.Tree.fit", "wood.plain"]
    assert found["wood.Tree"].text == "wood.Tree(depth=3, *, seed=None)\nA tree."
    assert found["wood.Tree.fit"].text == "wood.Tree.fit(X, rate=1e-05, how='auto')\nGrow it."
    assert found["wood.Tree.fit"].defaults == {"rate": "1e-05", "how": "'auto'"}


def test_every_answer_stands_in_its_passage() -> None:
    for example in (*task().train, *task().dev, *task().test):
        passage = task().passages[example.positives[0]]
        assert f"{example.metadata['parameter']}={answer_of(example)}" in passage.text
        assert passage.id in example.question
        assert passage.metadata["module"] == example.metadata["module"]


def test_no_module_is_in_two_splits() -> None:
    modules = [{e.metadata["module"] for e in rows} for rows in (task().train, task().dev, task().test)]
    assert all(modules)
    assert sum(map(len, modules)) == len(set.union(*modules))
    for rows, split in ((task().train, "train"), (task().dev, "dev"), (task().test, "test")):
        assert {task().passages[e.positives[0]].metadata["split"] for e in rows} == {split}


def test_no_answer_is_more_than_its_share() -> None:
    for rows in (task().train, task().test):
        assert max(Counter(map(answer_of, rows)).values()) <= COMMON * len(rows) + 1


def test_guesses_come_from_training_alone() -> None:
    counts = Counter((e.metadata["parameter"], answer_of(e)) for e in task().train)
    overall = Counter(map(answer_of, task().train)).most_common(1)[0][1]
    guess = by_name(task().train)
    for example in task().test:
        name, said = example.metadata["parameter"], example.metadata["by_name"]
        met = [n for (parameter, _), n in counts.items() if parameter == name]
        assert counts[name, said] == max(met) if met else said == guess[""] == example.metadata["majority"]
        assert example.metadata["hard"] == (said != answer_of(example))
    assert Counter(map(answer_of, task().train))[guess[""]] == overall


def test_four_passages_hold_the_gold_one_and_contradictions_where_there_are_some() -> None:
    places: Counter[int] = Counter()
    for example in task().test:
        context = four(task(), example)
        ids = [document.id for document in context]
        assert len(set(ids)) == 4
        assert {document.metadata["split"] for document in context} == {"test"}
        places[ids.index(example.positives[0])] += 1
        parameter = example.metadata["parameter"]
        said = {d.metadata["defaults"][parameter] for d in context if parameter in d.metadata["defaults"]}
        assert contradicted(task(), example) == (len(said) > 1)
    assert min(places.values()) > len(task().test) / 8


@pytest.mark.slow
def test_a_few_steps_of_the_reader() -> None:
    passages = [document for document in task().documents if document.metadata["split"] == "train"]
    tokenizer = make_tokenizer([document.text for document in passages], 600)
    torch.manual_seed(0)
    model = make_model(len(tokenizer), layers="ca", width=32)
    losses: list[float] = []
    pretrain(model, Prose(passages, tokenizer, 0), steps=200, log=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    lm = CausalLM(model, tokenizer, max_new_tokens=4)
    for answer in ("1e-05", "'auto'", "lib.no_default", "-1"):
        assert lm.tokens.decode(lm.target_ids(answer)) == answer  # white space never comes into an answer
