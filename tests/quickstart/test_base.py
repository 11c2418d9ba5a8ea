"""The shipped base model: small, loads without a network, reads, and does not mind padding."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from fedrag.quickstart.facts import NAMES
from fedrag.quickstart.world import BASE, TEMPLATE, gold_context, make_world, words
from fedrag.types import Document

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_base.py"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True).eval()


@pytest.fixture(scope="module")
def make_base() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_base", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def question(i: int, documents: int = 4) -> str:
    world = make_world(0, train=2, dev=1, test=4)
    context: list[Document] = gold_context(world, world.test[i])[:documents]
    return TEMPLATE.format(documents=" ".join(d.text for d in context), question=world.test[i].question)


def test_the_folder_is_below_three_megabytes() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 3e6
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in BASE.iterdir()}


def test_the_weights_are_float32_and_fit_the_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == len(tokenizer) == len(words()) + 4
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert special == (0, 1, 2, 3)
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == special[:3]
    assert tokenizer.chat_template is None


def test_every_word_of_the_world_is_one_known_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(" ".join(words()), add_special_tokens=False)["input_ids"]
    assert len(ids) == len(words())
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(tokenizer(NAMES[0], add_special_tokens=False)["input_ids"]) == NAMES[0]


def test_newlines_separate_and_punctuation_stands_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    lines = tokenizer("Question:\nWho is the captain?\n\nAnswer:")["input_ids"]
    assert lines == tokenizer("Question : Who is the captain ? Answer :")["input_ids"]
    assert lines[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in lines
    assert tokenizer("unheard", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_left_padding_changes_no_logit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """The short convolutions must not see padding, neither the attention."""
    texts = [question(0, 1), question(1, 4), question(2, 2)]
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    assert padded["attention_mask"][0, 0] == 0
    with torch.no_grad():
        together = model(**padded).logits
        for i, text in enumerate(texts):
            alone = model(**tokenizer(text, return_tensors="pt")).logits[0]
            torch.testing.assert_close(together[i, -len(alone) :], alone, atol=1e-4, rtol=1e-4)


def test_generation_in_a_padded_batch_is_generation_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The state of the convolutions, kept between steps, must be the one of the unpadded text."""
    texts = [question(0, 1), question(3, 4)]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    together = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for i, text in enumerate(texts):
        one = tokenizer(text, return_tensors="pt")
        alone = model.generate(**one, max_new_tokens=6, do_sample=False)[0, one["input_ids"].shape[1] :]
        assert together[i, : len(alone)].tolist() == alone.tolist()


def test_it_says_again_what_it_has_read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, make_base: ModuleType
) -> None:
    """On prose that no one has seen; a quarter of the values is what guessing among the four told would give."""
    assert make_base.restated(model, tokenizer, n=2, pieces=60, seed=11) > 0.78
    assert make_base.restated(model, tokenizer, n=4, pieces=60, seed=11) > 0.66


def test_it_knows_no_answer_by_heart(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    world = make_world(0, train=0, dev=0, test=10)
    texts = [TEMPLATE.format(documents="", question=example.question) for example in world.test]
    with torch.no_grad():
        guesses = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, -1].argmax(-1)
    right = [tokenizer.decode([g]) == example.answers[0] for g, example in zip(guesses, world.test, strict=True)]
    assert sum(right) <= 3


def test_the_recipe_learns_from_its_first_steps(make_base: ModuleType) -> None:
    """The script that made the folder runs, and its loss is below guessing names after some steps."""
    torch.manual_seed(0)
    tokenizer = make_base.make_tokenizer()
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]["<pad>"] == 0
    model = make_base.make_model(len(tokenizer))
    before = make_base.restated(model, tokenizer, n=2, pieces=10)
    ids, labels = make_base.batch([make_base.prose_rows(tokenizer, make_base.random.Random(0), 2)])
    first = model(input_ids=ids, labels=labels).loss.item()
    make_base.train(model, tokenizer, steps=4, seed=0)
    assert model(input_ids=ids, labels=labels).loss.item() < first
    assert before < 0.2
