"""Distillation: its loss and gradient from a slow restatement, the cache, and a ranking that is learnt."""

import math

import pytest
import torch
from sentence_transformers import CrossEncoder

from fedrag import DenseRetriever, Example, MemoryStore, RAGSystem, RAGTrainer, SentenceEncoder
from fedrag.errors import ConfigError
from fedrag.objectives.distillation import Distillation
from judges import Opinion, tiny_cross_encoder
from systems import DOCUMENTS, EXAMPLES, arguments
from tiny import tiny_sentence_transformer

BATCH = [Example(example.question) for example in EXAMPLES[:4]]  # questions are all that it needs


def retrieving_system(**settings):
    encoder = SentenceEncoder(tiny_sentence_transformer(kind="bert"))
    rag = RAGSystem(retriever=DenseRetriever(encoder, MemoryStore()), **settings)
    rag.add(DOCUMENTS, progress=False)
    return rag


def logits(teacher: CrossEncoder, pairs):
    """One pair at a time, from the model itself."""
    rows = [teacher.tokenizer(q, d, return_tensors="pt") for q, d in pairs]
    with torch.no_grad():
        return [float(teacher.model(**row).logits.squeeze()) for row in rows]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("tau_s", "tau_t"), [(None, 1.0), (0.3, 2.5)])
def test_the_loss_is_its_formula(direction, tau_s, tau_t):
    rag, teacher = retrieving_system(), tiny_cross_encoder()
    objective = Distillation(
        rag, teacher, k=5, direction=direction, temperature=tau_s, teacher_temperature=tau_t, train="both"
    )
    rows = [row[:n] for row, n in zip(objective.find(BATCH), (5, 2, 3, 4), strict=True)]
    objective.candidates = lambda batch: rows
    losses = []
    for example, row in zip(BATCH, rows, strict=True):
        with torch.no_grad():
            query = rag.dense.encoder.encode_queries([example.question])[0]
            student = [float(query @ rag.dense.encoder.encode_documents([d.text])[0]) / (tau_s or 0.05) for d in row]
        taught = [score / tau_t for score in logits(teacher, [(example.question, d.text) for d in row])]
        p, t = ([math.exp(x) / sum(math.exp(y) for y in xs) for x in xs] for xs in (student, taught))
        if direction == "reverse":
            p, t = t, p
        losses.append(sum(a * math.log(a / b) for a, b in zip(t, p, strict=True)))
    assert objective(BATCH)["loss"].item() == pytest.approx(sum(losses) / len(BATCH), rel=1e-3)


class Leaves(DenseRetriever):
    """Scores that are leaves, so that their gradient can be looked at."""

    __slots__ = ("leaves",)

    def scores(self, queries, documents):
        self.leaves = torch.randn(len(queries), len(documents[0]), requires_grad=True)
        return self.leaves


def test_the_gradient_is_what_the_student_has_too_much():
    """∂loss/∂s = (P - t) / (n τ_s)."""
    rag = retrieving_system()
    rag.retriever = Leaves(rag.dense.encoder, rag.dense.store)
    objective = Distillation(rag, tiny_cross_encoder(), k=4, temperature=0.5, teacher_temperature=0.7)
    t = (objective.teacher_scores(BATCH, objective.find(BATCH)) / 0.7).softmax(-1)
    objective(BATCH)["loss"].backward()
    p = (rag.retriever.leaves.detach() / 0.5).softmax(-1)
    torch.testing.assert_close(rag.retriever.leaves.grad, (p - t) / (4 * 0.5))


def test_every_pair_is_asked_once_and_a_checkpoint_remembers_it():
    rag, teacher = retrieving_system(), tiny_cross_encoder()
    objective = Distillation(rag, teacher, k=4)
    assert objective.extra_state() == {}
    documents = objective.find(BATCH)
    first = objective.teacher_scores(BATCH, documents)
    assert torch.equal(objective.teacher_scores(BATCH[::-1], documents[::-1]), first.flip(0))
    assert (objective.scorer.misses, objective.scorer.hits) == (16, 16)
    again = Distillation(rag, teacher, k=4)
    again.load_extra_state(objective.extra_state())
    assert torch.equal(again.teacher_scores(BATCH[1:], documents[1:]), first[1:])
    assert again.scorer.misses == 0
    with torch.no_grad():
        teacher.model.classifier.weight.mul_(2.0)  # another teacher: what is remembered is not its opinion
    again.teacher_scores(BATCH, documents)
    assert again.scorer.misses == 16


def test_the_teacher_says_the_same_in_training_mode_and_stays_as_it_is(tmp_path):
    rag, teacher = retrieving_system(), tiny_cross_encoder(dropout=0.5)
    weights = [p.detach().clone() for p in teacher.parameters()]
    documents = Distillation(rag, teacher, k=4).find(BATCH)
    calm = Distillation(rag, teacher, k=4).teacher_scores(BATCH, documents)
    teacher.train()
    objective = Distillation(rag, teacher, k=4)
    assert torch.equal(objective.teacher_scores(BATCH, documents), calm)
    assert teacher.training
    assert all(name.startswith("retriever/query") for name in objective.trainable())
    RAGTrainer(objective, train_dataset=BATCH, args=arguments(tmp_path)).train()
    assert all(torch.equal(a, b) for a, b in zip(weights, teacher.parameters(), strict=True))


def test_any_judge_teaches_what_it_knows(tmp_path):
    """A judge that knows which clerk a question is about: recall rises on the questions that it taught."""
    judge = Opinion(lambda question, text: 5.0 * (question.split()[4] == text.split()[4]))
    rag = retrieving_system()
    questions = [Example(example.question) for example in EXAMPLES]

    def recall():
        rows = rag.retriever.retrieve([example.question for example in EXAMPLES], 1)
        return sum(row[0].document.id in e.positives for row, e in zip(rows, EXAMPLES, strict=True)) / 24

    before = recall()
    objective = Distillation(rag, judge, k=24, train="both")
    args = arguments(tmp_path, max_steps=40, per_device_train_batch_size=8, learning_rate=5e-3)
    RAGTrainer(objective, train_dataset=questions, args=args, refresh="never").train()
    assert before < 0.3
    assert recall() > before + 0.4
    assert judge.asked == 24 * 24


def test_a_cross_encoder_teaches_its_ranking(tmp_path):
    rag = retrieving_system()
    objective = Distillation(rag, tiny_cross_encoder(), k=24, temperature=0.1, teacher_temperature=0.2)
    batch = [Example(example.question) for example in EXAMPLES[:12]]

    def agreement():
        taught = objective.teacher_scores(batch, objective.find(batch))
        return float((taught.argmax(-1) < 3).float().mean())  # hits are best first

    before = agreement()
    RAGTrainer(objective, train_dataset=batch, args=arguments(tmp_path, max_steps=60, learning_rate=1e-2)).train()
    assert agreement() > before + 0.3


def test_settings_are_checked():
    rag = retrieving_system()
    judge = Opinion(lambda question, text: 0.0)
    for settings, message in (
        ({"k": 1}, "Distillation compares documents, so k must be at least 2, got 1"),
        ({"train": "all"}, "train='all'"),
        ({"direction": "backward"}, "direction='backward'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Distillation(rag, judge, **settings)
    assert not rag.dense.encoder.two_towers
    with pytest.raises(ConfigError, match=r"shape \(12, 3\) for 12 pairs .* single label"):
        Distillation(rag, tiny_cross_encoder(labels=3), k=3)(BATCH)
