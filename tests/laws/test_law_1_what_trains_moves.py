"""Law 1: gradients reach every trainable parameter of every objective and no frozen one; weights move; loss falls;
a frozen teacher says the same in step 1 and step 100, dropout or not."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from fedrag import (
    EMDR2,
    LSR,
    RALT,
    Contrastive,
    CrossEncoderReranker,
    DenseRetriever,
    Distillation,
    HardNegatives,
    Joint,
    MemoryStore,
    RAGSequence,
    RAGSystem,
    RAGToken,
    RAGTrainer,
    Ranking,
    Reranked,
    SentenceEncoder,
    SentenceLoss,
)
from judges import tiny_cross_encoder
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system
from tiny import tiny_sentence_transformer


def reranking(rag, bias=True):
    """The system with a reranker; without the bias that a loss on a whole list cannot tell, shifting all alike."""
    rag.retriever = Reranked(rag.retriever, CrossEncoderReranker(tiny_cross_encoder(dropout=0.1)), depth=8)
    rag.reranker.model[0].model.classifier.bias.requires_grad_(bias)
    return rag


MAKERS = {
    "contrastive": lambda rag: Contrastive(rag),
    "contrastive-query": lambda rag: Contrastive(rag, train="query"),
    "contrastive-cached": lambda rag: Contrastive(rag, chunk=2),
    "lsr": lambda rag: LSR(rag, k=4),
    "lsr-both": lambda rag: LSR(rag, k=4, train="both"),
    "lsr-reverse-mean": lambda rag: LSR(rag, k=4, direction="reverse", normalisation="mean"),
    "lsr-loop": lambda rag: LSR(rag, k=4, target="leave_one_out"),
    "distillation": lambda rag: Distillation(rag, tiny_cross_encoder(dropout=0.1), k=4),
    "contrastive-mined": lambda rag: Contrastive(rag, mine=HardNegatives(per_example=2, answer_match=False)),
    "ralt": lambda rag: RALT(rag),
    "ralt-posterior": lambda rag: RALT(rag, documents_per_row=1, weighting="posterior"),
    "ralt-rows": lambda rag: RALT(rag, documents_per_row=1),
    "rag-sequence": lambda rag: RAGSequence(rag, k=4),
    "rag-sequence-both": lambda rag: RAGSequence(rag, k=4, train="both", chunk=2),
    "rag-token": lambda rag: RAGToken(rag, k=4, chunk=None),
    "rag-token-both": lambda rag: RAGToken(rag, k=4, train="both"),
    "emdr2": lambda rag: EMDR2(rag, k=4),
    "emdr2-both-token": lambda rag: EMDR2(rag, k=4, train="both", form="token"),
    "joint": lambda rag: Joint(LSR(rag, k=4), RALT(rag)),
    "joint-turns": lambda rag: Joint(LSR(rag, k=4), RALT(rag), turns=2),
    "ranking-pointwise": lambda rag: Ranking(reranking(rag), loss="pointwise"),
    "ranking-listwise": lambda rag: Ranking(reranking(rag, bias=False), loss="listwise"),
    "lsr-reranker": lambda rag: LSR(reranking(rag, bias=False), k=4, train="reranker"),
    "distillation-reranker": lambda rag: Distillation(
        reranking(rag, bias=False), tiny_cross_encoder(seed=3, dropout=0.1), k=4, train="reranker"
    ),
    "lsr-below-a-reranker": lambda rag: LSR(reranking(rag), k=4),
    "sentence-loss": lambda rag: SentenceLoss(rag, MultipleNegativesRankingLoss),
}


@pytest.fixture(params=MAKERS)
def name(request):
    return request.param


def snapshot(rag):
    return {place: parameter.detach().clone() for place, parameter in rag.named_parameters().items()}


@pytest.mark.parametrize("lora", ["", "generator", "retriever"])
def test_training_moves_what_is_declared_and_nothing_else(name, lora, tmp_path):
    rag = tiny_system(kind="bert", lora=4 if lora == "generator" else None)
    if lora == "retriever":
        encoder = SentenceEncoder(tiny_sentence_transformer(), lora=4)
        rag.retriever = DenseRetriever(encoder, MemoryStore())
        rag.add(DOCUMENTS, progress=False)
    objective = MAKERS[name](rag)
    declared = set(objective.trainable())
    before, flags = snapshot(rag), {n: p.requires_grad for n, p in rag.named_parameters().items()}
    reached: dict[str, bool] = {}
    for place, parameter in rag.named_parameters().items():
        parameter.register_hook(lambda g, place=place: reached.__setitem__(place, bool(g.abs().sum() > 0))) if (
            parameter.requires_grad
        ) else None
    RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=6, weight_decay=0.0)).train()
    after = snapshot(rag)
    moved = {place for place in before if not torch.equal(before[place], after[place])}
    assert moved == declared
    assert {place for place, yes in reached.items() if yes} == declared
    assert {n: p.requires_grad for n, p in rag.named_parameters().items()} == flags
    assert not any(module.training for part in rag.parts().values() for module in part.modules())


def test_the_loss_falls(name, tmp_path):
    rag = tiny_system(kind="bert")
    objective = MAKERS[name](rag)
    args = arguments(tmp_path, max_steps=25, per_device_train_batch_size=8, learning_rate=5e-3)
    trainer = RAGTrainer(objective, train_dataset=EXAMPLES, eval_dataset=EXAMPLES, args=args, refresh="never")
    objective.candidates = trainer.candidates
    trainer.refresh_candidates()
    fixed = list(EXAMPLES)

    def loss():
        objective.eval()
        with torch.no_grad():
            return float(objective(fixed)["loss"])

    before = loss()
    trainer.train()
    objective.candidates = trainer.candidates  # the same documents as before
    assert loss() < 0.9 * before


def test_lsr_makes_the_retriever_rank_what_helps_the_generator(tmp_path):
    """Learning end to end: the passage that makes the answer likeliest rises to the top, held-in questions."""
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=24, temperature=0.1)
    batch = EXAMPLES[:12]

    def agreement():
        documents = objective.find(batch)
        taught = objective.teacher_scores(batch, documents)
        return float((taught.argmax(-1) == 0).float().mean())  # hits are best first

    before = agreement()
    RAGTrainer(objective, train_dataset=batch, args=arguments(tmp_path, max_steps=150, learning_rate=1e-2)).train()
    assert before < 0.4
    assert agreement() > before + 0.3


@pytest.mark.parametrize("form", [RAGSequence, RAGToken, EMDR2])
def test_marginal_objectives_rank_what_explains_the_answer(form, tmp_path):
    """The retriever's half, end to end: with a generator that stays, the likeliest passage rises to the top."""
    rag = tiny_system(kind="bert")
    objective = form(rag, k=12, temperature=0.1)
    batch = EXAMPLES[:8]
    for parameter in rag.generator.model.parameters():
        parameter.requires_grad_(False)

    def agreement():
        documents = objective.find(batch)
        with torch.no_grad():
            tokens, _ = objective.eval().answer_logprobs(batch, documents)
        return float((tokens.sum(-1).argmax(-1) == 0).float().mean())

    before = agreement()
    RAGTrainer(objective, train_dataset=batch, args=arguments(tmp_path, max_steps=40, learning_rate=1e-2)).train()
    assert before < 0.4
    assert agreement() > before + 0.3


def test_a_frozen_teacher_says_the_same_in_step_1_and_step_100(tmp_path):
    rag = tiny_system(kind="bert", dropout=0.5)
    objective = LSR(rag, k=3)
    documents = objective.find(EXAMPLES[:4])

    def teacher():
        prompts = [
            rag.prompt_for(example.question, [document])
            for example, row in zip(EXAMPLES[:4], documents, strict=True)
            for document in row
        ]
        return rag.generator.logprobs(prompts, [e.answers[0] for e in EXAMPLES[:4] for _ in range(3)])

    seen = []

    class Watched(LSR):
        def loss(self, batch):
            with torch.no_grad():
                seen.append(teacher())
            return super().loss(batch)

    objective = Watched(rag, k=3)
    RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=100)).train()
    assert len(seen) == 100
    assert torch.equal(seen[0], seen[-1])


def test_the_trained_part_does_feel_dropout(tmp_path):
    """The other side of the coin: an objective that trained in evaluation mode would silently lose regularisation."""
    rag = tiny_system(kind="bert", dropout=0.5)
    objective = Contrastive(rag)
    objective.train()
    assert objective(EXAMPLES[:4])["loss"] != objective(EXAMPLES[:4])["loss"]
    objective.eval()
    assert objective(EXAMPLES[:4])["loss"] == objective(EXAMPLES[:4])["loss"]


@pytest.mark.parametrize("make", ["lsr", "contrastive"])
def test_trained_adapters_of_the_encoder_survive_saving(make, tmp_path):
    rag = tiny_system(kind="bert")
    rag.retriever = DenseRetriever(SentenceEncoder(tiny_sentence_transformer(), lora=2), MemoryStore())
    rag.add(DOCUMENTS, progress=False)
    args = arguments(tmp_path / "training", max_steps=3)
    RAGTrainer(MAKERS[make](rag), train_dataset=EXAMPLES, args=args).train()
    rag.save(tmp_path / "rag")
    again = RAGSystem.load(tmp_path / "rag")
    assert again.query_batch([e.question for e in EXAMPLES]) == rag.query_batch([e.question for e in EXAMPLES])
    ours, theirs = rag.named_parameters(), again.named_parameters()
    assert {n for n, p in ours.items() if p.requires_grad} == {n for n, p in theirs.items() if p.requires_grad}
    RAGTrainer(MAKERS[make](again), train_dataset=EXAMPLES, args=args).train()  # and goes on
    moved = {n for n, p in again.named_parameters().items() if not torch.equal(p, ours[n])}
    assert moved
    assert all("lora_" in name for name in moved)
