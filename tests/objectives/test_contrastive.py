"""Contrastive: the candidates of a question, masked positives, pieces; the parity tests compare with a reference."""

import pytest
import torch

from fedrag import Contrastive, Example
from fedrag.errors import ConfigError, DataError, InputError
from systems import EXAMPLES, tiny_system

BATCH = [
    Example("Which key has clerk 1 ?", positives=["d1", "d2"], negatives=["d7"]),
    Example("Which key has clerk 2 ?", positives=["d2"], negatives=["d8", "d9"]),
    Example("Which key has clerk 5 ?", positives=["d5"]),
]


def slow(rag, batch, temperature):
    """Question by question: minus the log of the share of its first positive among all that may compete with it."""
    pool = {id for example in batch for id in (example.positives[0], *example.negatives)}
    total = 0.0
    with torch.no_grad():
        for example in batch:
            query = rag.dense.encoder.encode_queries([example.question])[0].double()
            competing = pool - set(example.positives[1:])
            exp = {
                id: torch.exp(query @ rag.dense.encoder.encode_documents([document.text])[0].double() / temperature)
                for id, document in zip(sorted(competing), rag.dense.store.get(sorted(competing)), strict=True)
            }
            total -= float(torch.log(exp[example.positives[0]] / sum(exp.values())))
    return total / len(batch)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_the_loss_is_its_formula(temperature, chunk):
    rag = tiny_system(kind="bert")
    objective = Contrastive(rag, temperature=temperature, chunk=chunk).eval()
    numbers = objective(BATCH)
    assert numbers["loss"].item() == pytest.approx(slow(rag, BATCH, temperature), rel=1e-4)


def test_given_negatives_and_the_positives_of_others_compete():
    rag = tiny_system(kind="bert")
    objective = Contrastive(rag).eval()
    bare = [Example(e.question, positives=e.positives[:1]) for e in BATCH]
    alone = objective(bare[:1])["loss"].item()
    assert alone == pytest.approx(0.0, abs=1e-6)  # nothing to compete with
    assert objective(bare)["loss"].item() > 0.01
    assert objective(BATCH)["loss"].item() != pytest.approx(objective(bare)["loss"].item())


def test_every_positive_gets_its_turn_while_training_and_the_first_one_when_measured():
    rag = tiny_system(kind="bert")
    objective = Contrastive(rag)
    example = Example("Which key has clerk 1 ?", positives=["d1", "d2", "d3"], negatives=["d7"])
    fixed = {
        id: slow(rag, [Example(example.question, positives=[id], negatives=["d7"])], 0.05) for id in example.positives
    }
    objective.eval()
    assert {round(objective([example])["loss"].item(), 4) for _ in range(5)} == {round(fixed["d1"], 4)}
    objective.train()
    seen = {round(objective([example])["loss"].item(), 4) for _ in range(40)}
    assert seen == {round(loss, 4) for loss in fixed.values()}


def test_accuracy_is_the_share_of_positives_that_win():
    rag = tiny_system(kind="bert")
    objective = Contrastive(rag).eval()
    rows = [rag.retrieve(e.question, k=24) for e in EXAMPLES[:2]]
    best, worst = rows[0][0].document.id, rows[1][-1].document.id
    batch = [Example(EXAMPLES[0].question, positives=[best]), Example(EXAMPLES[1].question, positives=[worst])]
    assert objective(batch)["batch_accuracy"] == 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_pieces_give_the_gradient_of_the_whole(dropout):
    """With dropout, the second pass over a piece must drop what the first one did, or the gradient is of no loss."""
    rag = tiny_system(kind="bert", dropout=dropout)
    encoder, batch = rag.dense.encoder, EXAMPLES[:6]
    objective = Contrastive(rag, chunk=2).eval()
    encoder.train()
    parameters = list(encoder.parameters())
    torch.manual_seed(3)
    loss = objective(batch)["loss"]
    got = torch.autograd.grad(loss, parameters, allow_unused=True)
    torch.manual_seed(3)
    texts = [document.text for document in rag.dense.store.get([e.positives[0] for e in batch])]
    queries = torch.cat([encoder.encode_queries([e.question for e in batch[at : at + 2]]) for at in (0, 2, 4)])
    documents = torch.cat([encoder.encode_documents(texts[at : at + 2]) for at in (0, 2, 4)])
    whole = torch.nn.functional.cross_entropy(queries @ documents.T / 0.05, torch.arange(6))
    wanted = torch.autograd.grad(whole, parameters, allow_unused=True)
    torch.testing.assert_close(loss, whole)
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_query_tower_alone_learns_the_same_on_vectors_from_the_store():
    rag = tiny_system(kind="bert")
    both = Contrastive(rag).eval()(BATCH)["loss"].item()
    objective = Contrastive(rag, train="query").eval()
    for name, parameter in rag.named_parameters().items():
        parameter.requires_grad_(name.startswith("retriever/query"))
    loss = objective(BATCH)["loss"]
    assert loss.item() == pytest.approx(both, rel=1e-4)
    rag.dense.store.update_vectors(["d1"], -rag.dense.store.vectors(["d1"]))
    assert objective(BATCH)["loss"].item() != pytest.approx(both, rel=1e-2)  # they do come from the store


def test_what_is_missing_or_impossible_is_named():
    rag = tiny_system(kind="bert")
    with pytest.raises(DataError, match="1 of these 4 examples have none"):
        Contrastive(rag)([*BATCH, Example("Why ?", ["because"])])
    with pytest.raises(InputError, match="'nowhere'"):
        Contrastive(rag)([Example("Why ?", positives=["nowhere"])])
    for settings in ({"temperature": 0.0}, {"chunk": 0}, {"train": "documents"}):
        with pytest.raises(ConfigError):
            Contrastive(rag, **settings)
