"""The invented world keeps apart what it says it keeps apart."""

from __future__ import annotations

import pytest
import torch

from fedrag.errors import InputError
from fedrag.quickstart.facts import DOMAINS, ENTITIES, FILLERS, FUNCTION_WORDS, NAMES, VALUES
from fedrag.quickstart.world import World, gold_context, make_world, words, world_retriever
from fedrag.types import Example


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


def entities(examples: tuple[Example, ...]) -> set[str]:
    return {example.metadata["entity"] for example in examples}


def content(*texts: str) -> set[str]:
    plain = {word.lower() for text in texts for word in text.replace("{e}", "").replace("{v}", "").split()}
    return {word for word in plain - FUNCTION_WORDS if word.isalpha()}


def test_a_seed_makes_one_world_and_another_seed_another() -> None:
    first, again, other = (make_world(seed, train=3, dev=1, test=1) for seed in (0, 0, 1))
    assert (first.documents, first.train, first.test) == (again.documents, again.train, again.test)
    assert first.documents != other.documents


def test_every_question_has_one_passage_that_answers_it(world: World) -> None:
    assert (len(world.documents), len(world.train), len(world.dev), len(world.test)) == (2448, 1200, 240, 1008)
    by_id = {document.id: document for document in world.documents}
    assert len(by_id) == len(world.documents)
    for example in (*world.train, *world.dev, *world.test):
        (answer,), (gold,) = example.answers, example.positives
        text = by_id[gold].text.split()
        assert answer in text
        assert example.metadata["entity"] in text
        assert example.metadata["entity"] in example.question
        assert answer not in example.question


def test_splits_share_no_entity(world: World) -> None:
    train, dev, test = entities(world.train), entities(world.dev), entities(world.test)
    assert not train & dev
    assert not train & test
    assert not dev & test


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_fifth_of_the_values_is_never_an_answer_in_training(seed: int) -> None:
    world = make_world(seed)
    trained = {example.answers[0] for example in world.train}
    assert len(trained) <= len(VALUES) * 4 // 5
    assert not any(example.metadata["held_out"] for example in world.train)
    held_out = [example for example in world.test if example.metadata["held_out"]]
    assert 0.15 < len(held_out) / len(world.test) < 0.25
    assert not trained & {example.answers[0] for example in held_out}


def test_questions_and_passages_share_no_content_word() -> None:
    relations = [relation for of_domain in DOMAINS.values() for relation in of_domain]
    asked = content(*(text for relation in relations for text in relation.questions))
    told = content(*FILLERS, *(text for relation in relations for text in relation.passages))
    assert asked
    assert not asked & told


def test_names_are_distinct_and_no_words_of_the_language() -> None:
    assert len(set(NAMES)) == len(NAMES) == 1000
    assert not set(ENTITIES) & set(VALUES)
    vocabulary = words()
    assert len(set(vocabulary)) == len(vocabulary)
    assert vocabulary[-len(NAMES) :] == list(NAMES)
    assert not {name.lower() for name in NAMES} & {word.lower() for word in vocabulary[: -len(NAMES)]}


def test_the_gold_passage_stands_among_three_hard_distractors(world: World) -> None:
    places, others = set[int](), list[int]()
    for example in world.test[:300]:
        context = gold_context(world, example)
        about = example.metadata
        assert len({document.id for document in context}) == 4
        ids = [document.id for document in context]
        places.add(ids.index(example.positives[0]))
        distractors = [document.metadata for document in context if document.id != example.positives[0]]
        cousins = sum(d["relation"] == about["relation"] and d["entity"] != about["entity"] for d in distractors)
        brothers = sum(d["relation"] != about["relation"] and d["entity"] == about["entity"] for d in distractors)
        assert cousins + brothers == 3
        assert min(cousins, brothers) >= 1
        others.append(cousins)
    assert places == {0, 1, 2, 3}
    assert 1.4 < sum(others) / len(others) < 1.6


def test_contexts_are_the_same_every_time_and_differ_by_seed(world: World) -> None:
    example = world.test[7]
    assert gold_context(world, example) == gold_context(make_world(0), example)
    assert any(gold_context(world, example, seed=seed) != gold_context(world, example) for seed in range(1, 5))


def test_too_many_entities_are_refused_by_number() -> None:
    with pytest.raises(InputError, match="wants 708 entities"):
        make_world(train=200, dev=20, test=16)
    with pytest.raises(InputError, match="below 0"):
        make_world(train=-1)


def test_the_untrained_retriever_is_decided_by_its_seed(world: World) -> None:
    texts = [document.text for document in world.documents[:4]]
    first, again, other = (world_retriever(seed).encode(texts, convert_to_tensor=True) for seed in (0, 0, 1))
    assert first.shape == (4, 128)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.allclose(first.norm(dim=-1), torch.ones(4))
