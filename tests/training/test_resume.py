"""A run that stopped and went on ends with the same bits as one that never stopped."""

import pytest
import torch

from fedrag import (
    LSR,
    RALT,
    CausalLM,
    Contrastive,
    Distillation,
    HardNegatives,
    Joint,
    LexicalRetriever,
    RAGSequence,
    RAGSystem,
    RAGTrainer,
)
from fedrag.objectives.contexts import Mixture
from judges import tiny_cross_encoder
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system
from tiny import tiny_llama, tiny_tokenizer

MAKERS = {
    "ralt": lambda rag: RALT(rag, contexts=Mixture(rag.dense.store, documents=3, gold=0.5, keep=True)),
    "ralt-rows": lambda rag: RALT(rag, documents_per_row=1),
    "lsr": lambda rag: LSR(rag, k=4),
    "lsr-both": lambda rag: LSR(rag, k=4, train="both"),
    "contrastive": lambda rag: Contrastive(rag, chunk=3),
    "mined": lambda rag: Contrastive(rag, mine=HardNegatives(per_example=2, answer_match=False)),
    "distillation": lambda rag: Distillation(rag, tiny_cross_encoder(), k=4),
    "rag-sequence": lambda rag: RAGSequence(rag, k=3, train="both"),
    "joint-turns": lambda rag: Joint(LSR(rag, k=4, train="both"), RALT(rag), turns=3),
}


def run(make, folder, refresh, resume=None, system=tiny_system, over_retrieve=1, **settings):
    """14 steps, 6 to an epoch, a checkpoint every 2; the weights and the losses at the end."""
    rag = system(kind="bert", dropout=0.2)
    args = arguments(
        folder, max_steps=14, save_strategy="steps", save_steps=2, logging_strategy="steps", logging_steps=1, **settings
    )
    trainer = RAGTrainer(
        make(rag), train_dataset=EXAMPLES, eval_dataset=EXAMPLES[:5], args=args, refresh=refresh,
        over_retrieve=over_retrieve,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    weights = {name: p.detach().clone() for name, p in rag.named_parameters().items()}
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return weights, logged, trainer


@pytest.mark.parametrize(
    ("name", "refresh", "steps"),
    [
        ("ralt", "epoch", (4, 6)),
        ("ralt-rows", 3, (8,)),
        ("lsr", "epoch", (4, 6)),
        ("lsr", 3, (4, 12)),
        ("lsr-both", "epoch", (6, 10)),
        ("lsr-both", 3, (8,)),
        ("contrastive", "epoch", (4,)),
        ("mined", 3, (8,)),
        ("distillation", "epoch", (4,)),
        ("rag-sequence", 3, (4,)),
        ("joint-turns", "epoch", (4,)),
    ],
)
def test_resuming_is_never_having_stopped(name, refresh, steps, tmp_path):
    weights, losses, _ = run(MAKERS[name], tmp_path, refresh)
    for step in steps:
        again, resumed, trainer = run(MAKERS[name], tmp_path / "again", refresh, str(tmp_path / f"checkpoint-{step}"))
        assert trainer.state.global_step == 14
        assert resumed == losses
        assert all(torch.equal(weights[place], again[place]) for place in weights)


@pytest.mark.parametrize(("name", "refresh"), [("lsr", "never"), ("lsr-both", 3)])
def test_resuming_with_more_documents_kept(name, refresh, tmp_path):
    weights, losses, _ = run(MAKERS[name], tmp_path, refresh, over_retrieve=3)
    again, resumed, _ = run(MAKERS[name], tmp_path / "again", refresh, str(tmp_path / "checkpoint-8"), over_retrieve=3)
    assert resumed == losses
    assert all(torch.equal(weights[place], again[place]) for place in weights)
    assert losses != run(MAKERS[name], tmp_path / "plain", refresh)[1]


def test_resuming_with_accumulation_and_evaluation(tmp_path):
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    settings |= {"eval_strategy": "steps", "eval_steps": 4}
    weights, *_ = run(MAKERS["lsr-both"], tmp_path, "epoch", **settings)
    again, *_ = run(MAKERS["lsr-both"], tmp_path / "again", "epoch", str(tmp_path / "checkpoint-4"), **settings)
    assert all(torch.equal(weights[place], again[place]) for place in weights)


def test_the_last_checkpoint_is_found(tmp_path):
    weights, *_ = run(MAKERS["ralt"], tmp_path, "epoch")
    again, *_ = run(MAKERS["ralt"], tmp_path, "epoch", True)
    assert all(torch.equal(weights[place], again[place]) for place in weights)


def lexical_system(**_):
    """RALT needs no dense retriever; a fixed one finds again what it found."""
    llama = tiny_llama(vocab=len(tiny_tokenizer()), attention_dropout=0.2)
    return RAGSystem(
        retriever=LexicalRetriever(DOCUMENTS), generator=CausalLM(llama, tiny_tokenizer(), max_new_tokens=6), top_k=3
    )


def test_resuming_with_a_lexical_retriever(tmp_path):
    def make(rag):
        return RALT(rag)

    weights, *_ = run(make, tmp_path, "epoch", system=lexical_system)
    again, *_ = run(make, tmp_path / "a", "epoch", str(tmp_path / "checkpoint-4"), system=lexical_system)
    assert all(torch.equal(weights[place], again[place]) for place in weights)
