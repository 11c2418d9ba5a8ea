"""Ranking, and LSR and Distillation with a reranker for a student: formulas, candidates, learning, resuming."""

import math

import pytest
import torch

from fedrag import LSR, Distillation, Document, Example, Joint, RAGSequence, RAGSystem, RAGTrainer
from fedrag.encoders.cross import CrossEncoderReranker
from fedrag.errors import ConfigError, DataError
from fedrag.objectives.ranking import Ranking
from fedrag.retrievers.hybrid import HybridRetriever
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.retrievers.reranked import Reranked
from judges import tiny_cross_encoder
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system

BATCH = EXAMPLES[:4]


def reranking(*, dropout=0.0, depth=8, **settings):
    rag = tiny_system(**settings)
    reranked = Reranked(rag.retriever, CrossEncoderReranker(tiny_cross_encoder(dropout=dropout)), depth=depth)
    return RAGSystem(retriever=reranked, generator=rag.generator, top_k=rag.top_k)


def ids(rows):
    return [[document.id for document in row] for row in rows]


@pytest.mark.parametrize("form", ["pointwise", "listwise"])
def test_the_loss_is_its_formula(form):
    rag = reranking()
    objective = Ranking(rag, loss=form, k=5)
    batch = [*BATCH[:3], Example("Which ?", positives=["d3", "d5"])]
    rows = [row[:n] for row, n in zip(objective.find(batch), (5, 2, 3, 5), strict=True)]
    objective.candidates = lambda _: rows
    losses = []
    for example, row in zip(batch, rows, strict=True):
        pairs = [(example.question, document.text) for document in row]
        scores = [float(s) for s in rag.reranker.model.predict(pairs, activation_fn=torch.nn.Identity())]
        yes = [document.id in example.positives for document in row]
        if form == "pointwise":
            each = [math.log1p(math.exp(-s if y else s)) for s, y in zip(scores, yes, strict=True)]
            losses.append(sum(each) / len(row))
        else:
            total = math.log(sum(map(math.exp, scores)))
            losses.append(
                sum((total - s) - math.log(sum(yes)) for s, y in zip(scores, yes, strict=True) if y) / sum(yes)
            )
    told = objective(batch)
    assert told["loss"].item() == pytest.approx(sum(losses) / 4, abs=1e-4)


def test_first_accuracy_counts_positives_above_all_others():
    class Told:
        def scores(self, queries, documents):
            return self.given

    rag = reranking()
    objective = Ranking(rag, k=2)
    objective.candidates = lambda batch: [[DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[1], DOCUMENTS[2]]]
    rag.retriever.reranker = Told()
    rag.retriever.reranker.given = torch.tensor([[2.0, 1.0], [1.0, 1.0]])  # a tie is no win
    assert objective(EXAMPLES[:2])["first_accuracy"] == 0.5


def test_candidates_are_positives_own_negatives_and_what_the_first_stage_finds():
    rag = reranking()
    example = Example(EXAMPLES[0].question, positives=["d0", "d7"], negatives=["d9"])
    (row,) = ids(Ranking(rag, k=6).find([example]))
    first = [h.document.id for h in rag.retriever.retriever.retrieve([example.question], 9)[0]]
    assert row == ["d0", "d7", "d9", *(id for id in first if id not in ("d0", "d7", "d9"))][:6]
    assert ids(Ranking(rag, k=6, negatives="given").find([example])) == [["d0", "d7", "d9"]]
    assert ids(Ranking(rag, k=2).find([example])) == [["d0", "d9"]]
    banned = set(first[:4])
    (row,) = ids(Ranking(rag, k=6, exclude_ids=lambda _: banned).find([example]))
    assert not banned & set(row) - {"d0", "d7", "d9"}


def test_a_positive_without_room_is_no_candidate_and_one_that_competes_stays():
    rag = reranking()
    best = [hit.document.id for hit in rag.retriever.retriever.retrieve(["Which key has clerk 3 ?"], 6)[0]]
    example = Example("Which key has clerk 3 ?", positives=best[:4])  # all that is found first is relevant
    assert ids(Ranking(rag, k=3).find([example])) == [[best[0], best[1], best[4]]]


@pytest.mark.parametrize("make", [lambda rag: LSR(rag, k=4, train="reranker"), lambda rag: Ranking(rag, k=4)])
def test_a_reranker_in_training_gets_what_the_first_stage_finds(make):
    rag = reranking()
    objective = make(rag)
    questions = [example.question for example in BATCH]
    first = [[h.document.id for h in row] for row in rag.retriever.retriever.retrieve(questions, 4)]
    assert ids(objective.retrieve(BATCH, 4)) == first
    whole = [[h.document.id for h in row] for row in rag.retriever.retrieve(questions, 4)]
    assert ids(LSR(rag, k=4).find(BATCH)) == whole != first  # the retriever's own training sees the whole


def test_temperatures_are_those_of_the_scores_trained_on():
    rag = reranking()
    assert rag.temperature == 1.0
    assert LSR(rag, k=4, train="reranker").temperature == 1.0
    assert LSR(rag, k=4).temperature == RAGSequence(rag, k=4).temperature == 0.05
    assert LSR(rag, k=4, temperature=0.3).temperature == 0.3
    assert LSR(tiny_system(), k=4).temperature == 0.05


def test_the_teachers_loss_is_the_same_with_the_rerankers_scores():
    rag, teacher = reranking(), tiny_cross_encoder(seed=3)
    objective = Distillation(rag, teacher, k=4, train="reranker", temperature=0.7, teacher_temperature=0.5)
    rows = objective.find(BATCH)
    losses = []
    for example, row in zip(BATCH, rows, strict=True):
        pairs = [(example.question, document.text) for document in row]
        s, t = (
            torch.tensor(m.predict(pairs, activation_fn=torch.nn.Identity())) for m in (rag.reranker.model, teacher)
        )
        p, t = (s / 0.7).softmax(0), (t / 0.5).softmax(0)
        losses.append(float((t * (t / p).log()).sum()))
    assert objective(BATCH)["loss"].item() == pytest.approx(sum(losses) / 4, rel=1e-3)


def test_what_cannot_train_is_named():
    rag = tiny_system()
    for make in (Ranking, lambda rag: LSR(rag, train="reranker")):
        with pytest.raises(ConfigError, match="trains a reranker, the system has a DenseRetriever"):
            make(rag)
    for settings, what in (
        ({"k": 1}, "k must be"),
        ({"loss": "pairwise"}, "loss="),
        ({"negatives": "all"}, "negatives="),
    ):
        with pytest.raises(ConfigError, match=what):
            Ranking(reranking(), **settings)
    with pytest.raises(ConfigError, match="'query', 'both', 'reranker'"):
        LSR(rag, train="documents")
    with pytest.raises(DataError, match="positive document for every question, 1 of these 2"):
        Ranking(reranking()).check([EXAMPLES[0], Example("Which ?")])
    with pytest.raises(DataError, match="needs a negative for every question, 2 of these 2"):
        Ranking(reranking(), negatives="given").check(EXAMPLES[:2])


TOPICS = {"book": "Ada wrote the book in {n}", "river": "the river {n} is long", "fox": "the quick fox jumps over {n}"}


@pytest.mark.parametrize("form", ["pointwise", "listwise"])
def test_a_ranking_is_learnt_and_survives_saving(form, tmp_path):
    """Passages of the question's topic are relevant: true of questions that were not trained on, too."""
    rag = reranking(depth=24)
    rag.dense.store.remove([document.id for document in DOCUMENTS])
    texts = {f"{topic}{n}": text.format(n=n) for topic, text in TOPICS.items() for n in range(8)}
    rag.add([Document(text, id=id) for id, text in texts.items()], progress=False)

    def asked(numbers):
        return [
            Example(f"{word} {topic} {n} ?", positives=[f"{topic}{p}" for p in range(8)])
            for n in numbers
            for word in ("which", "what")
            for topic in TOPICS
        ]

    def accuracy(retriever):
        hits = retriever.retrieve([example.question for example in asked(range(5, 8))], 5)
        rows = zip(asked(range(5, 8)), hits, strict=True)
        right = [hit.document.id[:-1] == example.positives[0][:-1] for example, row in rows for hit in row]
        return sum(right) / len(right)

    before = accuracy(rag.retriever)
    args = arguments(tmp_path, max_steps=60, per_device_train_batch_size=8, learning_rate=2e-3)
    RAGTrainer(Ranking(rag, loss=form, k=16), train_dataset=asked(range(5)), args=args).train()
    after = accuracy(rag.retriever)
    assert before < 0.6
    assert after > 0.9
    rag.save(tmp_path / "rag")
    assert accuracy(RAGSystem.load(tmp_path / "rag").retriever) == after


MAKERS = {
    "ranking": lambda rag: Ranking(rag, k=4),
    "lsr": lambda rag: LSR(rag, k=4, train="reranker"),
    "distillation": lambda rag: Distillation(rag, tiny_cross_encoder(seed=3), k=4, train="reranker"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_resuming_is_never_having_stopped(name, tmp_path):
    def run(folder, resume=None):
        rag = reranking(dropout=0.2)
        args = arguments(folder, max_steps=6, save_strategy="steps", save_steps=2)
        RAGTrainer(MAKERS[name](rag), train_dataset=EXAMPLES[:12], args=args).train(resume_from_checkpoint=resume)
        return {place: p.detach().clone() for place, p in rag.named_parameters().items()}

    whole = run(tmp_path)
    again = run(tmp_path / "again", str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(whole[place], again[place]) for place in whole)


def test_both_sides_of_a_hybrid_are_trained_and_the_index_follows(tmp_path):
    rag = tiny_system(kind="bert")
    hybrid = HybridRetriever([rag.dense, LexicalRetriever(rag.dense.store)])
    rag.retriever = Reranked(hybrid, CrossEncoderReranker(tiny_cross_encoder()), depth=8)
    fingerprint = rag.dense.encoder.fingerprint
    joint = Joint(LSR(rag, k=4, train="both"), Ranking(rag, k=4))
    RAGTrainer(joint, train_dataset=EXAMPLES, args=arguments(tmp_path)).train()
    assert rag.dense.encoder.fingerprint != fingerprint
    assert len(rag.query(EXAMPLES[0].question).hits) == 3  # and no StaleIndexError
