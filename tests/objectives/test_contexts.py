"""Contexts: how often the gold passage is there, and where; what stands beside it; when it is put in."""

import math
from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedrag import Document, Example, MemoryStore
from fedrag.errors import ConfigError, InputError
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.raft import Raft

PASSAGES = [Document(f"Passage {n} .", id=f"d{n}", metadata={"source": f"file {n // 4}"}) for n in range(24)]
EXAMPLE = Example("Which ?", ["1"], positives=["d1", "d6"])  # files 0 and 1 hold d0 to d7
FOUND = [PASSAGES[n] for n in (9, 1, 12, 0, 13, 20, 14)]  # one positive, and one of a positive's own file
DRAWS = 2000


@pytest.fixture(scope="module")
def store():
    made = MemoryStore()
    made.add(PASSAGES, torch.eye(len(PASSAGES)))
    return made


def drawn(contexts, example=EXAMPLE, found=FOUND, draws=DRAWS, seed=0):
    dice = Random(seed)
    return [[document.id for document in contexts(example, found, dice)] for _ in range(draws)]


def assert_share(hits, draws, share):
    """Within five standard deviations of the binomial."""
    assert abs(hits - draws * share) <= 5 * math.sqrt(draws * share * (1 - share)) + 1e-9


def has_gold(row, example=EXAMPLE):
    return bool(set(row) & set(example.positives))


@pytest.mark.parametrize("gold", [0.0, 0.2, 1 / 3, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["mixture", "raft"])
def test_the_gold_passage_is_there_as_often_as_said(store, gold, kind):
    made = Mixture(store, documents=4, gold=gold) if kind == "mixture" else Raft(store, distractors=3, gold=gold)
    rows = drawn(made)
    assert_share(sum(map(has_gold, rows)), DRAWS, gold)
    assert {len(row) for row in rows} == {4}  # with and without: the number is no clue
    assert max(len(set(row) & {"d1", "d6"}) for row in rows) <= 1
    if gold:
        assert {id for row in rows for id in row} >= {"d1", "d6"}  # any of the positives, not always the first


@pytest.mark.parametrize("random", [0.0, 0.4, 1.0])
def test_every_place_is_equally_likely_for_the_gold_passage(store, random):
    rows = drawn(Mixture(store, documents=4, gold=0.9, random=random), draws=4000)
    places = Counter(place for row in rows for place, id in enumerate(row) if id in EXAMPLE.positives)
    assert chisquare([places[place] for place in range(4)]).pvalue > 0.001


@given(
    st.lists(st.integers(0, 23), unique=True, max_size=10),
    st.lists(st.integers(0, 23), unique=True, max_size=4),
    st.lists(st.integers(1, 30), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([None, "source", "absent"]),
    st.integers(0, 9),
)
def test_a_positive_is_never_a_distractor_and_nothing_stands_twice(
    store, found, golds, sizes, gold, random, apart, seed
):
    example = Example("Which ?", ["1"], positives=[f"d{n}" for n in golds])
    mixture = Mixture(store, documents=sizes, gold=gold, random=random, apart=apart)
    row = [document.id for document in mixture(example, [PASSAGES[n] for n in found], Random(seed))]
    assert len(row) == len(set(row))
    present = set(row) & set(example.positives)
    assert len(present) <= 1
    assert (gold, bool(golds), bool(present)) not in {(0.0, True, True), (1.0, True, False)}
    files = {n // 4 for n in golds} if apart == "source" else set()
    others = [int(id[1:]) for id in row if id not in present]
    assert not {n // 4 for n in others} & files
    available = [n for n in range(24) if n not in golds and n // 4 not in files]
    wanted = [size - len(present) for size in sizes]
    assert len(others) in {min(count, len(available)) for count in wanted}


def test_near_misses_are_what_was_retrieved_and_random_ones_fill_up(store):
    near = {"d9", "d12", "d0", "d13", "d20", "d14"}
    assert {id for row in drawn(Mixture(store, documents=4, gold=0.0)) for id in row} == near
    apart = drawn(Mixture(store, documents=4, gold=0.0, apart="source"))
    assert {id for row in apart for id in row} == near - {"d0"}
    more = drawn(Mixture(store, documents=8, gold=0.0))
    assert all(near <= set(row) for row in more)
    everything = {document.id for document in PASSAGES}
    assert {id for row in more for id in row} == everything - {"d1", "d6"}


@pytest.mark.parametrize("random", [0.25, 1.0])
def test_distractors_are_from_the_whole_store_as_often_as_said(store, random):
    rows = drawn(Mixture(store, documents=3, gold=0.0, random=random))
    strangers = sum(id not in {document.id for document in FOUND} for row in rows for id in row)
    # s random ones beside 3 - s near misses: 16 of the 19 + s documents that are left were not retrieved
    share = [math.comb(3, s) * random**s * (1 - random) ** (3 - s) for s in range(4)]
    assert strangers / DRAWS == pytest.approx(sum(p * s * 16 / (19 + s) for s, p in enumerate(share)), rel=0.07)


def test_equal_shares_of_gold_near_and_random_for_one_passage(store):
    rows = drawn(Mixture(store, documents=1, gold=1 / 3, random=1 / 2), found=FOUND[:3])
    kinds = Counter("gold" if has_gold(row) else "near" if row[0] in {"d9", "d12"} else "random" for row in rows)
    assert_share(kinds["gold"], DRAWS, 1 / 3)
    assert_share(kinds["random"], DRAWS, 1 / 3 * 20 / 22)


def test_of_several_numbers_each_is_as_likely(store):
    sizes = Counter(map(len, drawn(Mixture(store, documents=(1, 4), gold=0.5))))
    assert set(sizes) == {1, 4}
    assert_share(sizes[4], DRAWS, 1 / 2)


def test_kept_positives_stay_and_golds_go_where_there_is_none(store):
    keep = Mixture(store, documents=7, gold=0.3, keep=True)
    assert all(set(row) == {document.id for document in FOUND} for row in drawn(keep, draws=100))
    rows = drawn(Mixture(store, documents=2, gold=0.7, keep=True))
    retrieved = 2 / 7
    assert_share(sum(map(has_gold, rows)), DRAWS, retrieved + (1 - retrieved) * 0.7)
    missing = [document for document in FOUND if document.id != "d1"]
    rows = drawn(Mixture(store, documents=6, gold=0.3, keep=True), found=missing)
    assert_share(sum(map(has_gold, rows)), DRAWS, 0.3)
    assert {len(row) for row in rows} == {6}


def test_distractors_of_raft_are_of_other_files(store):
    rows = drawn(Raft(store, gold=0.5))
    assert {len(row) for row in rows} == {5}
    assert {id for row in rows for id in row} & {"d0", "d2", "d3", "d4", "d5", "d7"} == set()
    anywhere = drawn(Raft(store, gold=0.5, source=None))
    assert "d0" in {id for row in anywhere for id in row}


def test_without_a_positive_there_are_distractors(store):
    bare = Example("Which ?", ["1"])
    assert all(set(row) <= {d.id for d in FOUND} for row in drawn(Mixture(store, documents=3, gold=1.0), bare))


def test_the_dice_decide_everything(store):
    mixture = Mixture(store, documents=(2, 3), gold=0.5, random=0.5)
    assert drawn(mixture, seed=1) == drawn(Mixture(store, documents=(2, 3), gold=0.5, random=0.5), seed=1)
    assert drawn(mixture, seed=1) != drawn(mixture, seed=2)


def test_settings_are_checked(store):
    for settings in ({"documents": 0}, {"documents": []}, {"documents": [3, 0]}, {"gold": 1.1}, {"random": -0.1}):
        with pytest.raises(ConfigError, match="Mixture takes documents >= 1"):
            Mixture(store, **{"documents": 3, "gold": 0.5, **settings})
    with pytest.raises(ConfigError, match="Mixture takes"):
        Raft(store, gold=2)
    with pytest.raises(InputError, match="d99"):
        Mixture(store, documents=1, gold=1.0)(Example("Which ?", ["1"], positives=["d99"]), FOUND, Random(0))
