"""SentenceLoss: losses of sentence-transformers see the columns, prompts and labels that they are made for."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    DistillKLDivLoss,
    GISTEmbedLoss,
    MarginMSELoss,
    MultipleNegativesRankingLoss,
    SoftmaxLoss,
)

from fedrag import LSR, Example, RAGTrainer, SentenceLoss
from fedrag.errors import ConfigError, DataError
from systems import EXAMPLES, arguments, tiny_system
from tiny import tiny_sentence_transformer

BATCH = [
    Example(f"Which key has clerk {n} ?", positives=[f"d{n}"], negatives=[f"d{n + 5}", f"d{n + 9}"], metadata={"n": n})
    for n in range(4)
]


def reference(model, made, batch, labels=None):
    """The loss as sentence-transformers' own trainer feeds it."""
    texts = [[e.question for e in batch]]
    texts += [
        [f"The key of clerk {int(id[1:])} is {int(id[1:]) * 3} ." for id in column]
        for column in zip(*([e.positives[0], *e.negatives] for e in batch), strict=True)
    ]
    return made([model.preprocess(column) for column in texts], labels)


@pytest.mark.parametrize("loss", [MultipleNegativesRankingLoss, CachedMultipleNegativesRankingLoss])
def test_ranking_losses(loss):
    rag = tiny_system(kind="bert")
    expected = reference(rag.dense.encoder.model, loss(rag.dense.encoder.model), BATCH)
    torch.testing.assert_close(SentenceLoss(rag, loss)(BATCH)["loss"], expected)


@pytest.mark.parametrize(
    ("loss", "columns"),
    [(MarginMSELoss, 2), (MarginMSELoss, 3), (DistillKLDivLoss, 3)],
    ids=["margins", "scores", "kl"],
)
def test_losses_with_labels(loss, columns):
    rag = tiny_system(kind="bert")

    def labels(batch):
        return torch.tensor([[float(e.metadata["n"]) / (place + 1) for place in range(columns)] for e in batch])

    expected = reference(rag.dense.encoder.model, loss(rag.dense.encoder.model), BATCH, labels(BATCH))
    got = SentenceLoss(rag, loss, labels=labels)(BATCH)["loss"]
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(SentenceLoss(rag, loss, labels=lambda b: labels(b).flip(0))(BATCH)["loss"], got)


def test_prompts_reach_queries_and_documents():
    rag = tiny_system(kind="bert")
    model = rag.dense.encoder.model
    plain = SentenceLoss(rag, MultipleNegativesRankingLoss)(BATCH)["loss"].item()
    model.prompts = {"query": "Question : ", "document": ""}
    query = SentenceLoss(rag, MultipleNegativesRankingLoss)(BATCH)["loss"].item()
    model.prompts = {"query": "Question : ", "document": "Documents say "}
    both = SentenceLoss(rag, MultipleNegativesRankingLoss)(BATCH)["loss"].item()
    assert len({round(x, 5) for x in (plain, query, both)}) == 3


def test_two_towers_train_after_lsr(tmp_path):
    rag = tiny_system(kind="bert")
    RAGTrainer(LSR(rag, k=3), train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=2)).train()
    objective = SentenceLoss(rag, MultipleNegativesRankingLoss)
    assert {name.split("/")[1] for name in objective.trainable()} == {"query", "document"}
    before = {name: p.detach().clone() for name, p in objective.trainable().items()}
    RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=2)).train()
    assert all(not torch.equal(before[name], p) for name, p in objective.trainable().items())


def test_losses_with_weights_of_their_own_are_refused_unless_frozen():
    rag = tiny_system(kind="bert")
    width = rag.dense.encoder.model.get_embedding_dimension()
    with pytest.raises(ConfigError, match="SoftmaxLoss has weights of its own"):
        SentenceLoss(rag, lambda model: SoftmaxLoss(model, width, num_labels=2))
    guide = tiny_sentence_transformer(seed=5)
    with pytest.raises(ConfigError, match="freeze them"):
        SentenceLoss(rag, lambda model: GISTEmbedLoss(model, guide))
    guide.requires_grad_(False)
    assert torch.isfinite(SentenceLoss(rag, lambda model: GISTEmbedLoss(model, guide))(EXAMPLES[:4])["loss"])


def test_ragged_rows_are_refused():
    rag = tiny_system(kind="bert")
    objective = SentenceLoss(rag, MultipleNegativesRankingLoss)
    with pytest.raises(DataError, match=r"\[0, 2\] negatives"):
        objective([*BATCH, EXAMPLES[4]])
    with pytest.raises(DataError, match="1 without a positive"):
        objective([EXAMPLES[4], Example("Why ?")])
