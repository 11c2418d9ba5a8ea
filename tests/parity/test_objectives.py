"""Objectives against the losses of sentence-transformers, transformers and TRL, on the same rows."""

import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    DistillKLDivLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import mine_hard_negatives
from trl import SFTConfig, SFTTrainer

from fedrag import LSR, RALT, Contrastive, Example
from fedrag.objectives.mining import HardNegatives, mine
from judges import tiny_cross_encoder
from systems import DOCUMENTS, EXAMPLES, tiny_system
from tiny import tiny_llama

ROWS = [
    Example(f"Which key has clerk {n} ?", positives=[f"d{n}"], negatives=[f"d{n + 5}", f"d{n + 9}"]) for n in range(4)
]


def columns(rag, batch):
    """Token features of (question, positive, negatives...), as sentence-transformers' trainer would make them."""
    model, store = rag.dense.encoder.model, rag.dense.store
    texts = [[example.question for example in batch]]
    for ids in zip(*([*example.positives, *example.negatives] for example in batch), strict=True):
        texts.append([document.text for document in store.get(list(ids))])
    return [model.preprocess(column) for column in texts]


def loss_and_gradient(loss, parameters):
    return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-6, rtol=1e-5)
    assert any(one is not None and one.abs().max() > 1e-4 for one in ours[1])
    for one, other in zip(ours[1], theirs[1], strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("rows", [EXAMPLES[:6], ROWS], ids=["pairs", "negatives"])
def test_contrastive_is_multiple_negatives_ranking(temperature, chunk, rows):
    rag = tiny_system(kind="bert")
    model = rag.dense.encoder.model
    parameters = list(model.parameters())
    ours = loss_and_gradient(Contrastive(rag, temperature=temperature, chunk=chunk)(rows)["loss"], parameters)
    if chunk is None:
        reference = MultipleNegativesRankingLoss(model, scale=1 / temperature)
        theirs = loss_and_gradient(reference(columns(rag, rows), None), parameters)
    else:
        reference = CachedMultipleNegativesRankingLoss(model, scale=1 / temperature, mini_batch_size=chunk)
        loss = reference(columns(rag, rows), None)
        loss.backward()  # it fills .grad by a hook, so that autograd.grad sees nothing
        theirs = loss.detach(), tuple(None if p.grad is None else p.grad.clone() for p in parameters)
    assert_same(ours, theirs)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_lsr_is_distill_kl_without_its_square_of_the_temperature(temperature):
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=4, train="both", temperature=temperature, teacher_temperature=temperature)
    model = rag.dense.encoder.model
    parameters = list(model.parameters())
    batch = EXAMPLES[:5]
    documents = objective.find(batch)
    taught = objective.teacher_scores(batch, documents)
    loss = DistillKLDivLoss(model, temperature=temperature)
    texts = [
        [example.question for example in batch],
        *([d.text for d in place] for place in zip(*documents, strict=True)),
    ]
    value = loss([model.preprocess(column) for column in texts], taught) / temperature**2
    ours = loss_and_gradient(objective(batch)["loss"], parameters)
    assert_same(ours, loss_and_gradient(value, parameters))


def texts_mined_by_sentence_transformers(rag, examples, **settings):
    """For each question, the texts of its negatives, out of the whole corpus, by the library's own function."""
    pairs = [(e.question, d.text) for e in examples for d in rag.dense.store.get(e.positives)]
    data = Dataset.from_dict({"question": [q for q, _ in pairs], "positive": [text for _, text in pairs]})
    found = mine_hard_negatives(
        data, rag.dense.encoder.model, corpus=[d.text for d in DOCUMENTS], output_format="labeled-pair",
        verbose=False, **settings,
    )  # fmt: skip
    mined = {example.question: [] for example in examples}
    for row in found:
        if not row["label"]:
            mined[row["question"]].append(row["positive"])
    return [mined[example.question] for example in examples]


@pytest.mark.parametrize("positives", [1, 2])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"ranks": (3, 9)}, {"range_min": 3, "range_max": 9}),
        ({"margin": 0.05}, {"absolute_margin": 0.05}),
        ({"relative_margin": 0.03}, {"relative_margin": 0.03}),
        ({"max_score": 0.9}, {"max_score": 0.9}),
        ({"ranks": (1, 12), "relative_margin": 0.01}, {"range_min": 1, "range_max": 12, "relative_margin": 0.01}),
        ({"margin": 0.01, "max_score": 0.93}, {"absolute_margin": 0.01, "max_score": 0.93}),
        # over the whole corpus: where a positive is not among the best, theirs looks at one document more
        ({"judge": True, "ranks": (0, 23), "margin": 0.002}, {"range_max": 23, "absolute_margin": 0.002}),
        (
            {"judge": True, "ranks": (2, 23), "max_score": 0.2},
            {"range_min": 2, "range_max": 23, "max_score": 0.2},
        ),
    ],
    ids=lambda settings: "-".join(settings),
)
def test_mined_negatives_are_those_of_sentence_transformers(ours, theirs, positives):
    rag = tiny_system(kind="bert")
    examples = [Example(f"Which key has clerk {n} ?", positives=[f"d{n}", f"d{n + 3}"][:positives]) for n in range(20)]
    judge = {"cross_encoder": tiny_cross_encoder()} if ours.get("judge") else {}
    ours = {"per_example": 4, "draw": "top", "ranks": (0, 20), **{k: v for k, v in ours.items() if k != "judge"}}
    theirs = {"num_negatives": 4, "range_max": 20, **theirs}
    expected = texts_mined_by_sentence_transformers(rag, examples, **judge, **theirs)
    mined = mine(rag, examples, HardNegatives(**judge, **ours), progress=False)
    assert [[d.text for d in rag.dense.store.get(e.negatives)] for e in mined] == expected
    assert any(expected)


BATCH = [Example(f"Which key has clerk {n} ?", [answer]) for n, answer in enumerate("1209")]


def rows_of(rag):
    """Prompt and answer ids of each example, the answers of equal length."""
    generator = rag.generator
    found = [[hit.document for hit in row] for row in rag.retriever.retrieve([e.question for e in BATCH], 3)]
    rows = [
        (generator.prompt_ids(rag.prompt_for(e.question, row)), generator.target_ids(e.answers[0]))
        for e, row in zip(BATCH, found, strict=True)
    ]
    assert len({len(target) for _, target in rows}) == 1
    return rows


def test_ralt_is_the_models_own_loss_on_labels():
    rag = tiny_system()
    model = rag.generator.model
    parameters = list(model.parameters())
    rows = rows_of(rag)
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids = torch.tensor([[*p, *t] + [0] * (width - len(p) - len(t)) for p, t in rows])
    labels = torch.tensor([[-100] * len(p) + t + [-100] * (width - len(p) - len(t)) for p, t in rows])
    mask = torch.tensor([[1] * (len(p) + len(t)) + [0] * (width - len(p) - len(t)) for p, t in rows])
    theirs = loss_and_gradient(model(input_ids=ids, attention_mask=mask, labels=labels).loss, parameters)
    ours = loss_and_gradient(RALT(rag, k=3, shuffle=False)(BATCH)["loss"], parameters)
    assert_same(ours, theirs)


def test_ralt_is_trls_completion_only_loss(tmp_path):
    rag = tiny_system()
    rows = rows_of(rag)
    data = Dataset.from_list([{"input_ids": p + t, "completion_mask": [0] * len(p) + [1] * len(t)} for p, t in rows])
    settings = SFTConfig(
        output_dir=str(tmp_path), completion_only_loss=True, max_length=None, report_to="none", use_cpu=True,
        bf16=False, disable_tqdm=True, per_device_eval_batch_size=len(rows), activation_checkpointing=False,
    )  # fmt: skip
    twin = tiny_llama(vocab=rag.generator.model.config.vocab_size)
    trainer = SFTTrainer(
        model=twin, args=settings, train_dataset=data, eval_dataset=data, processing_class=rag.generator.tokenizer
    )
    theirs = trainer.evaluate()["eval_loss"]
    ours = RALT(rag, k=3, shuffle=False).eval()(BATCH)["loss"].item()
    assert ours == pytest.approx(theirs, rel=1e-4)
