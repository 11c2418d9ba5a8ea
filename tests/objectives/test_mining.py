"""Hard negatives: each guard refuses what it should, against slow restatements; the trainer mines anew."""

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrag import Contrastive, DenseRetriever, Document, Example, MemoryStore, RAGSystem, RAGTrainer, SentenceEncoder
from fedrag.errors import ConfigError, DataError, StaleIndexError
from fedrag.objectives.mining import HardNegatives, Miner, mine
from judges import Opinion, tiny_cross_encoder
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system
from tiny import tiny_sentence_transformer

BARE = {"answer_match": False, "ranks": (0, 23), "per_example": 23, "draw": "top"}
SYSTEM = tiny_system(kind="static")
numbers = st.floats(-5, 5, allow_nan=False)
margins = st.none() | st.floats(0, 2)


def ids(rows):
    return [[document.id for document in row] for row in rows]


def ranking(example):
    return [hit.document.id for hit in SYSTEM.retriever.retrieve([example.question], 24)[0]]


def score(example, id):
    with torch.no_grad():
        query = SYSTEM.dense.encoder.encode_queries([example.question])[0]
        return float(query @ SYSTEM.dense.encoder.encode_documents([SYSTEM.dense.store.get([id])[0].text])[0])


@given(numbers, numbers, margins, margins, st.none() | numbers)
def test_a_score_is_refused_by_the_first_guard_that_it_violates(score, positive, margin, relative, most):
    guards = HardNegatives(margin=margin, relative_margin=relative, max_score=most)
    broken = [
        margin is not None and not score + margin <= positive,
        relative is not None and not score <= positive - abs(positive) * relative,
        most is not None and not score <= most,
    ]
    expected = ["margin", "relative_margin", "max_score", ""][[*broken, True].index(True)]
    assert guards.refusal(score, positive) == expected


@given(st.integers(0, 23), st.integers(1, 23), st.integers(0, 22))
def test_a_window_of_the_ranking_without_positives(place, end, start):
    if start >= end:
        return
    example = EXAMPLES[place]
    others = [id for id in ranking(example) if id not in example.positives]
    miner = Miner(SYSTEM, HardNegatives(ranks=(start, end), answer_match=False))
    assert ids(miner.find([example])) == [others[start:end]]
    assert miner.refused == {"ranks": start}


@given(st.integers(0, 23), st.floats(0, 0.5), st.sampled_from(["margin", "relative_margin"]), st.integers(1, 23))
def test_margins_are_measured_from_the_lowest_positive(place, size, kind, end):
    example = Example(EXAMPLES[place].question, positives=[f"d{place}", f"d{(place + 7) % 24}"])
    others = [id for id in ranking(example) if id not in example.positives][:end]
    low = min(score(example, id) for id in example.positives)
    limit = low - size if kind == "margin" else low - abs(low) * size
    scores = {id: score(example, id) for id in others}
    (found,) = ids(Miner(SYSTEM, HardNegatives(ranks=(0, end), answer_match=False, **{kind: size})).find([example]))
    assert found == [id for id in others if id in found]
    for id in others:
        assert math.isclose(scores[id], limit, abs_tol=1e-5) or (scores[id] <= limit) == (id in found)


def test_ranks_are_counted_among_those_that_the_other_guards_admit():
    example = EXAMPLES[3]
    most = sorted(score(example, d.id) for d in DOCUMENTS)[-5] - 1e-4
    all_admitted = Miner(SYSTEM, HardNegatives(ranks=(0, 23), max_score=most, answer_match=False))
    later = Miner(SYSTEM, HardNegatives(ranks=(2, 23), max_score=most, answer_match=False))
    assert ids(later.find([example])) == [row[2:] for row in ids(all_admitted.find([example]))]
    assert later.refused["ranks"] == 2
    assert later.refused["max_score"] == all_admitted.refused["max_score"] > 0


def test_the_positive_its_copies_and_the_given_negatives_are_never_mined():
    copy = Document(DOCUMENTS[3].text, id="copy")
    rag = tiny_system()
    rag.add([copy], progress=False)
    example = Example(EXAMPLES[3].question, positives=["d3"], negatives=["d5"])
    miner = Miner(rag, HardNegatives(**(BARE | {"ranks": (0, 25)})))
    (found,) = ids(miner.find([example]))
    assert sorted(found) == sorted({d.id for d in DOCUMENTS} - {"d3", "d5"})
    assert miner.refused["positive"] == 1


@pytest.mark.parametrize("answers", [["9"], ["12 ", "is 9"], ["None such", "CLERK 4"]])
def test_what_holds_an_answer_is_refused_and_what_holds_it_inside_a_word_is_not(answers):
    example = Example("Which key has clerk 1 ?", answers, positives=["d1"])
    miner = Miner(SYSTEM, HardNegatives(**BARE))
    assert len(miner.find([example])[0]) == 23
    miner = Miner(SYSTEM, HardNegatives(**(BARE | {"answer_match": True})))
    found = {document.id for document in miner.find([example])[0]}
    words = {d.id: d.text.lower().split() for d in DOCUMENTS}
    holding = {
        id
        for id, text in words.items()
        for answer in (a.lower().split() for a in answers)
        if any(text[at : at + len(answer)] == answer for at in range(len(text)))
    }
    assert found == set(words) - holding - {"d1"}
    assert miner.refused["answer"] == len(holding - {"d1"}) > 0


@pytest.mark.parametrize("answers", [None, [], [" "]])
def test_unknown_and_empty_answers_refuse_nothing(answers):
    miner = Miner(SYSTEM, HardNegatives(**(BARE | {"answer_match": True})))
    assert len(miner.find([Example(EXAMPLES[2].question, answers, positives=["d2"])])[0]) == 23


def test_a_cross_encoder_refuses_what_it_finds_as_relevant_as_the_positive():
    """Its scores are ranked and compared, here (clerk's number) / 10; the retriever's are not."""
    judge = Opinion(lambda question, text: int(text.split()[4]) / 10)
    example = Example("Which key has clerk 12 ?", positives=["d12", "d14"])
    miner = Miner(SYSTEM, HardNegatives(**BARE, cross_encoder=judge, margin=0.25))
    assert ids(miner.find([example])) == [[f"d{n}" for n in range(9, -1, -1)]]
    assert miner.refused == {"margin": 12, "ranks": 0}
    miner = Miner(SYSTEM, HardNegatives(**BARE, cross_encoder=judge, max_score=0.75))
    assert ids(miner.find([example])) == [[f"d{n}" for n in range(7, -1, -1)]]
    assert judge.asked == 48
    miner.find([example])
    assert judge.asked == 48  # known


def test_mined_negatives_come_after_the_given_ones_and_the_rest_of_the_example_stays():
    example = Example(EXAMPLES[3].question, ["9"], positives=["d3"], negatives=["d5"], metadata={"a": 1})
    (filled,) = mine(SYSTEM, [example], HardNegatives(per_example=3, draw="top"), progress=False)
    best = [hit.document for hit in SYSTEM.retriever.retrieve([example.question], 24)[0]]
    wanted = [d.id for d in best if d.id not in ("d3", "d5") and "9" not in d.text.split()][:3]
    assert filled == Example(example.question, ["9"], ["d3"], ["d5", *wanted], {"a": 1})


def test_a_draw_follows_its_seed_and_stays_within_the_admitted():
    guards = HardNegatives(per_example=4, ranks=(2, 12))
    draws = {seed: mine(SYSTEM, EXAMPLES, guards, progress=False, seed=seed) for seed in (0, 1)}
    assert draws[0] == mine(SYSTEM, EXAMPLES, guards, progress=False)
    assert draws[0] != draws[1]
    admitted = ids(Miner(SYSTEM, guards).find(EXAMPLES))
    for example, row in zip(draws[0], admitted, strict=True):
        assert len(set(example.negatives)) == 4
        assert list(example.negatives) == [id for id in row if id in example.negatives]  # hardest first


def test_batches_change_nothing(monkeypatch):
    whole = mine(SYSTEM, EXAMPLES, HardNegatives(per_example=2), progress=False)
    monkeypatch.setattr("fedrag.objectives.mining._BATCH", 5)
    assert mine(SYSTEM, EXAMPLES, HardNegatives(per_example=2), progress=False) == whole


def test_what_each_guard_refused_is_told(caplog, capsys):
    with caplog.at_level(logging.INFO, "fedrag.objectives.mining"):
        mine(SYSTEM, EXAMPLES[:4], HardNegatives(per_example=2, ranks=(1, 5), answer_match=False))
        mine(SYSTEM, EXAMPLES[:4], HardNegatives(max_score=-2.0), progress=False)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "mined 8 negatives for 4 examples, none for 0 of them; refused: 4 by ranks"
    assert "mined 0 negatives for 4 examples, none for 4 of them; refused: " in told[1]
    assert "by max_score" in told[1]
    assert capsys.readouterr().err.count("mine: 4/4") == 1


def contrastive_system(**settings):
    rag = RAGSystem(retriever=DenseRetriever(SentenceEncoder(tiny_sentence_transformer(**settings)), MemoryStore()))
    rag.add(DOCUMENTS, progress=False)
    return rag


def test_mined_negatives_compete_as_given_ones_do():
    rag = contrastive_system()
    guards = HardNegatives(per_example=3, answer_match=False)
    objective = Contrastive(rag, mine=guards).eval()
    batch = EXAMPLES[:4]
    numbers = objective(batch)
    top = HardNegatives(per_example=3, draw="top", answer_match=False)
    given = Contrastive(rag).eval()(mine(rag, batch, top, progress=False))
    torch.testing.assert_close(numbers["loss"], given["loss"])
    assert numbers["admitted"] == 23
    assert objective.find(batch)[0][0].id == "d0"
    assert numbers["loss"].item() > Contrastive(rag).eval()(batch)["loss"].item()


def test_while_training_each_step_draws_anew_from_torchs_generator():
    rag = contrastive_system()
    batch = EXAMPLES[:2]
    objective = Contrastive(rag, mine=HardNegatives(per_example=2)).train()
    rows = objective.find(batch)
    objective.candidates = lambda batch: rows

    def losses(seed):
        torch.manual_seed(seed)
        return [objective(batch)["loss"].item() for _ in range(5)]

    assert losses(0) == losses(0)
    assert len(set(losses(0))) > 2
    still = Contrastive(rag, mine=HardNegatives(per_example=2, draw="top")).train()
    still.candidates = objective.candidates
    assert still(batch)["loss"].item() == still(batch)["loss"].item()


def test_a_question_for_which_nothing_is_admitted_trains_on_the_others(tmp_path):
    rag = contrastive_system()
    objective = Contrastive(rag, mine=HardNegatives(max_score=-2.0))
    assert [len(row) for row in objective.find(EXAMPLES[:3])] == [1, 1, 1]
    assert objective.eval()(EXAMPLES[:3])["loss"].item() == pytest.approx(
        Contrastive(rag).eval()(EXAMPLES[:3])["loss"].item()
    )
    RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=1)).train()


def test_the_trainer_mines_anew_with_the_encoder_as_it_is(tmp_path):
    rag = contrastive_system()
    objective = Contrastive(rag, mine=HardNegatives(ranks=(0, 4), answer_match=False))
    seen = []

    class Watched(Miner):
        def find(self, examples):
            seen.append(super().find(examples))
            with torch.no_grad():
                fresh = rag.dense.embed_documents(rag.dense.store.get(["d0"]))
            torch.testing.assert_close(rag.dense.store.vectors(["d0"]), fresh, atol=1e-5, rtol=1e-4)
            return seen[-1]

    objective.miner = Watched(rag, objective.miner.guards)
    RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=6), refresh=3).train()
    assert len(seen) == 2
    assert ids(seen[0]) != ids(seen[1])


def test_a_resumed_run_asks_the_cross_encoder_nothing_that_it_knows():
    rag, judge = contrastive_system(), tiny_cross_encoder()
    made = [Contrastive(rag, mine=HardNegatives(cross_encoder=judge, margin=0.0)) for _ in range(2)]
    rows = made[0].find(EXAMPLES[:4])
    made[1].load_extra_state(made[0].extra_state())
    assert made[1].find(EXAMPLES[:4]) == rows
    assert made[1].miner.scorer.misses == 0
    plain = Contrastive(rag, mine=HardNegatives())
    plain.load_extra_state(plain.extra_state())
    assert plain.extra_state() == {}


def test_settings_and_examples_are_checked():
    for settings, message in (
        ({"per_example": 0}, "got 0"),
        ({"ranks": (5, 5)}, r"\(5, 5\)"),
        ({"ranks": (-1, 5)}, r"\(-1, 5\)"),
        ({"ranks": (3, 5), "per_example": 3}, "room for as many"),
        ({"draw": "best"}, "draw='best'"),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"relative_margin": -0.1}, "relative_margin=-0.1"),
        ({"cross_encoder": Opinion(lambda q, d: 0.0)}, "give margin=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            HardNegatives(**settings)
    with pytest.raises(DataError, match="1 of these 2 examples have none"):
        mine(SYSTEM, [EXAMPLES[0], Example("Why ?")], HardNegatives(), progress=False)
    rag = contrastive_system()
    with torch.no_grad():
        next(rag.dense.encoder.parameters()).add_(1.0)
    with pytest.raises(StaleIndexError):
        mine(rag, EXAMPLES, HardNegatives(), progress=False)
    assert mine(SYSTEM, [], HardNegatives(), progress=False) == []
