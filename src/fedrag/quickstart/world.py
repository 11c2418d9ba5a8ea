"""An invented world for the quickstart: facts that no model can know, so that reading is the only way to answer.

Why invented: a language model of 0.65 million weights knows nothing of the real world, and an answer that it could
have memorised would prove nothing. Three domains (harbour, clinic, museum: the sites of a federation later) hold four
relations each. Every fact (entity, relation, value) is one passage of the store and one question.

What is held apart:

- *Entities*: train, dev and test questions are about different entities.
- *Values*: a fifth of the value names is never an answer in training; `held_out` in the metadata of an example tells.
- *Wording*: apart from the entity's name a question has no content word in common with any passage ("Who is the
  captain of Ramon ?" against "Sailors on Ramon obey Tilu ."). Lexical search therefore finds the entity but not the
  relation, and a dense retriever has to learn which passages help: that is what LSR is for.

What is not held apart, and should be known: every name is a word of one fixed list that the base model's tokenizer
contains and its pre-training prose used, in other facts; and prose and world use the same wordings. All passages are in
the one store that training retrieves from, those that test questions ask about too, as text without labels.

Synthetic throughout: figures on this world show that the training works, not how good a real system would be.

>>> world = make_world(0, train=2, dev=1, test=1)
>>> len(world.documents), len(world.train), len(world.dev), len(world.test)
(48, 24, 12, 12)
>>> gold = world.documents[0]
>>> gold.metadata["domain"], gold.metadata["relation"], world.train[0].positives == (gold.id,)
('harbour', 'captain', True)
>>> world.train[0].answers[0] in gold.text
True
>>> len(gold_context(world, world.test[0]))
4
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from fedrag.errors import InputError
from fedrag.quickstart.facts import DOMAINS, ENTITIES, FILLERS, NAMES, VALUES, Relation
from fedrag.types import Document, Example

BASE = Path(__file__).with_name("base")
"""The folder of the shipped base language model and its tokenizer (`scripts/make_base.py` makes it)."""

TEMPLATE = "Context : {documents} Question : {question} Answer :"
"""The prompt that the world is asked with: only words that the base's tokenizer knows."""


@dataclass(frozen=True, eq=False)
class World:
    """The passages of the store and the questions about them, one for one; splits share no entity."""

    documents: tuple[Document, ...]
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]


def make_world(seed: int = 0, *, train: int = 100, dev: int = 20, test: int = 84) -> World:
    """Return the world of a seed, with this many entities per domain in each split; an entity has four facts.

    The defaults give 2,448 passages, 1,200 train, 240 dev and 1,008 test questions. A fifth of `VALUES`, drawn by the
    seed, is no answer of a train question; dev and test answers come from all of `VALUES`.
    Raises `InputError` when the entities do not suffice (`ENTITIES` has 700 names).
    """
    sizes = {"train": train, "dev": dev, "test": test}
    wanted = sum(sizes.values()) * len(DOMAINS)
    if wanted > len(ENTITIES) or min(sizes.values()) < 0:
        raise InputError(
            f"make_world(train={train}, dev={dev}, test={test}) wants {wanted} entities for {len(DOMAINS)} domains, "
            f"there are {len(ENTITIES)}: at most {len(ENTITIES) // len(DOMAINS)} per domain in all, none below 0"
        )
    rng = random.Random(f"world {seed}")
    entities, values = iter(rng.sample(ENTITIES, wanted)), rng.sample(VALUES, len(VALUES))
    seen = values[: len(values) * 4 // 5]
    documents: list[Document] = []
    splits: dict[str, list[Example]] = {}
    for split, size in sizes.items():
        examples = splits[split] = []
        for domain, relations in DOMAINS.items():
            for entity, relation in product(islice(entities, size), relations):
                value = rng.choice(seen if split == "train" else values)
                about = {"domain": domain, "relation": relation.name, "entity": entity}
                passage = _passage(relation, entity, value, rng)
                document = Document(passage, id=f"{domain}/{entity}/{relation.name}".lower(), metadata=about)
                documents.append(document)
                question = rng.choice(relation.questions).format(e=entity)
                metadata = about | {"held_out": value not in seen}
                examples.append(Example(question, [value], positives=[document.id], metadata=metadata))
    return World(tuple(documents), tuple(splits["train"]), tuple(splits["dev"]), tuple(splits["test"]))


def _passage(relation: Relation, entity: str, value: str, rng: random.Random) -> str:
    """Return one statement of a fact; half of them stand beside a sentence that says nothing, before or after."""
    statement, filler = rng.choice(relation.passages).format(e=entity, v=value), rng.choice(FILLERS)
    return rng.choice((statement, statement, f"{statement} {filler}", f"{filler} {statement}"))


def gold_context(world: World, example: Example, *, seed: int = 0) -> list[Document]:
    """Return four documents in random order: the gold one and three hard distractors of the same domain.

    The rule: at least one tells *the same relation of another entity*, at least one *another relation of the same
    entity*, and the third is of either kind with equal chance. So neither the entity nor the relation alone picks the
    gold passage. Guessing is right for 25 %; a reader that minds only the relation, or only the entity, for 42 %.
    """
    gold, about = example.positives[0], example.metadata
    rng = random.Random(f"{gold} {seed}")
    same_entity, same_relation = _neighbours(world)
    brothers = [d for d in same_entity[about["entity"]] if d.id != gold]
    cousins = [d for d in same_relation[about["domain"], about["relation"]] if d.id != gold]
    n = rng.choice((1, 2))
    context = rng.sample(brothers, n) + rng.sample(cousins, 3 - n)
    context += [d for d in same_entity[about["entity"]] if d.id == gold]
    rng.shuffle(context)
    return context


@lru_cache(maxsize=4)
def _neighbours(world: World) -> tuple[dict[str, list[Document]], dict[tuple[str, str], list[Document]]]:
    """Return the world's documents by entity, and by domain and relation."""
    same_entity: dict[str, list[Document]] = {}
    same_relation: dict[tuple[str, str], list[Document]] = {}
    for document in world.documents:
        about = document.metadata
        same_entity.setdefault(about["entity"], []).append(document)
        same_relation.setdefault((about["domain"], about["relation"]), []).append(document)
    return same_entity, same_relation


def words() -> list[str]:
    """Return every word of the world, the template and the prose of pre-training, names last: the vocabulary."""
    texts = [*FILLERS, TEMPLATE, "Again , in other words : then [ ] ( ) . 1 2 3 4 5 6 7 8 9"]
    for relations in DOMAINS.values():
        for relation in relations:
            texts += [*relation.passages, *relation.questions, *relation.prose]
    plain = {word for text in texts for word in re.sub(r"\{\w+\}", "", text).split()}
    return [*sorted(plain - set(NAMES)), *NAMES]


def world_retriever(seed: int = 0, *, width: int = 128) -> SentenceTransformer:
    """Return an untrained static encoder over the base's tokenizer: the unit mean of one vector per word.

    The vectors are drawn from a normal distribution by the seed; no statistics of any text (idf or other) are in them.
    """
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    vectors = torch.randn(tokenizer.get_vocab_size(), width, generator=torch.Generator().manual_seed(seed))  # [v, d]
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=vectors), Normalize()], device="cpu"
    )
