"""EMDR2: its two terms, which part each of them moves, and the stopped gradient."""

import pytest
import torch

from fedrag import RALT, Document, Example
from fedrag.errors import ConfigError, DataError
from fedrag.objectives.emdr2 import EMDR2
from fedrag.objectives.marginal import RAGSequence, RAGToken
from systems import EXAMPLES, tiny_system

BATCH = [*EXAMPLES[:3], Example("Which key is lost ?", ["the key of clerk 12 and of clerk 7"]), Example("Why ?", [])]
FORMS = {"sequence": RAGSequence, "token": RAGToken}


def gradients(objective, batch=BATCH):
    objective.zero_grad()
    objective(batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in objective.trainable().items()}


def parts_of(found, place):
    return {name: gradient for name, gradient in found.items() if name.startswith(place)}


@pytest.mark.parametrize("form", FORMS)
def test_it_reads_as_ralt_and_retrieves_as_the_marginal(form):
    rag = tiny_system(kind="bert")
    numbers = EMDR2(rag, k=4, form=form)(BATCH)
    alone = FORMS[form](rag, k=4)(BATCH)
    readers = [(RALT(rag, k=4, shuffle=False)([e]), e) for e in BATCH]
    read = sum(told["loss"].item() * told["answer_tokens"] for told, _ in readers) / len(BATCH)
    assert numbers["reader_loss"] == pytest.approx(read, rel=1e-5)
    assert numbers["retriever_loss"] == pytest.approx(alone["loss"].item(), rel=1e-5)
    assert numbers["loss"].item() == pytest.approx(read + alone["loss"].item(), rel=1e-5)
    mean = sum(told["loss"].item() for told, _ in readers) / len(BATCH)
    assert numbers["answer_logprob"] == pytest.approx(-mean, rel=1e-5)
    for name in ("prior_entropy", "posterior_entropy"):
        assert numbers[name] == pytest.approx(alone[name], rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_each_term_moves_its_own_part(form):
    rag = tiny_system(kind="bert")
    rows = [row[:size] for row, size in zip(EMDR2(rag, k=5).find(BATCH), (5, 1, 3, 4, 2), strict=True)]
    objective, alone = EMDR2(rag, k=5, form=form), FORMS[form](rag, k=5)
    for each in (objective, alone):
        each.candidates = lambda batch: [rows[BATCH.index(example)] for example in batch]
    found = gradients(objective)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    torch.testing.assert_close(
        parts_of(found, "retriever/"), parts_of(gradients(alone), "retriever/"), atol=1e-5, rtol=1e-4
    )
    rag.generator.model.zero_grad()
    prompts = [rag.prompt_for(example.question, row) for example, row in zip(BATCH, rows, strict=True)]
    (-rag.generator.logprobs(prompts, objective.answers(BATCH)).mean()).backward()
    read = {name: p.grad.clone() for name, p in rag.named_parameters().items() if name.startswith("generator/")}
    torch.testing.assert_close(parts_of(found, "generator/"), read, atol=1e-5, rtol=1e-4)


def test_documents_are_judged_without_dropout_and_read_with_it():
    rag = tiny_system(kind="bert", dropout=0.5)
    seen = []

    class Watched(EMDR2):
        def answer_logprobs(self, batch, documents):
            seen.append(super().answer_logprobs(batch, documents)[0])
            return super().answer_logprobs(batch, documents)

    objective = Watched(rag, k=4).train()
    losses = [objective(BATCH)["reader_loss"] for _ in range(3)]
    assert len(set(losses)) == 3
    assert rag.generator.model.training
    assert not any(tokens.requires_grad for tokens in seen)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    objective.eval()
    assert objective(BATCH)["reader_loss"] == objective(BATCH)["reader_loss"]


def test_long_documents_cost_no_token_of_the_answer():
    rag = tiny_system(kind="bert")
    long = [Document(f"The key of clerk {n} is {n} . " * 40, id=f"long{n}") for n in range(3)]
    rag.generator.max_length = 160
    objective = EMDR2(rag, k=3)
    objective.candidates = lambda batch: [long for _ in batch]
    assert torch.isfinite(objective([Example("Which key ?", ["the key of clerk 12 is lost " * 4])])["loss"])


def test_settings_and_examples_are_checked():
    rag = tiny_system(kind="bert")
    with pytest.raises(ConfigError, match="form='words'"):
        EMDR2(rag, form="words")
    with pytest.raises(ConfigError, match="EMDR2 takes k >= 1"):
        EMDR2(rag, k=0)
    assert not rag.dense.encoder.two_towers
    with pytest.raises(DataError, match="EMDR2 needs an answer to every question, 1 of these 1 examples"):
        EMDR2(rag, k=3)([Example("Which key ?", positives=["d1"])])
