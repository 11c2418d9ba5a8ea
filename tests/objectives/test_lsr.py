"""LSR: its loss from a slow restatement, flat teachers, ragged candidates, the cache, and what stays fresh."""

import math

import pytest
import torch

from fedrag import LSR, DenseRetriever, Document, Example, MemoryStore, RAGSystem, RAGTrainer
from fedrag.errors import ConfigError, DataError, StaleIndexError
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system

BATCH = [*EXAMPLES[:3], Example("Which key is lost ?", ["the key of clerk 12 and of clerk 7"])]


def slow(rag, batch, rows, *, direction, normalisation, tau_s, tau_t, loop=False):
    """The formulas, one document and one token at a time, in Python's floats."""
    generator, losses = rag.generator, []
    for example, documents in zip(batch, rows, strict=True):
        target = generator.target_ids(example.answers[0])
        with torch.no_grad():
            query = rag.dense.encoder.encode_queries([example.question])[0].double()
            student = [
                float(query @ rag.dense.encoder.encode_documents([d.text])[0].double()) / tau_s for d in documents
            ]
            teacher = []
            for document in documents:
                read = [other for other in documents if other is not document] if loop else [document]
                prompt = generator.prompt_ids(rag.prompt.render(example.question, read))
                logits = generator.model(torch.tensor([prompt + target])).logits[0].double()
                tokens = [torch.log_softmax(logits[len(prompt) + t - 1], -1)[id] for t, id in enumerate(target)]
                total = float(sum(tokens))
                total = total / len(target) if normalisation == "mean" else total
                teacher.append((-total if loop else total) / tau_t)
        p, t = ([math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in (student, teacher))
        if direction == "reverse":
            p, t = t, p
        losses.append(sum(a * math.log(a / b) for a, b in zip(t, p, strict=True)))
    return losses


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("normalisation", "tau_t"), [("sum", 1.0), ("mean", 0.1)])
def test_the_loss_is_its_formula(direction, normalisation, tau_t):
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=5, direction=direction, normalisation=normalisation)
    expected = slow(
        rag, BATCH, objective.find(BATCH), direction=direction, normalisation=normalisation, tau_s=0.05, tau_t=tau_t
    )
    assert objective(BATCH)["loss"].item() == pytest.approx(sum(expected) / len(BATCH), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("normalisation", "tau_t"), [("sum", 1.0), ("mean", 0.1)])
def test_leaving_a_document_out_is_its_formula(direction, normalisation, tau_t):
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=4, target="leave_one_out", direction=direction, normalisation=normalisation)
    rows = [row[:n] for row, n in zip(objective.find(BATCH), (4, 2, 3, 4), strict=True)]
    objective.candidates = lambda batch: rows
    expected = slow(
        rag, BATCH, rows, direction=direction, normalisation=normalisation, tau_s=0.05, tau_t=tau_t, loop=True
    )
    loss = objective(BATCH)["loss"]
    assert loss.item() == pytest.approx(sum(expected) / len(BATCH), rel=1e-3, abs=1e-6)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.trainable().values())


def test_the_default_temperature_is_the_systems():
    rag = tiny_system(kind="bert")
    assert LSR(rag).temperature == rag.temperature == 0.05
    assert LSR(RAGSystem(retriever=rag.dense, generator=rag.generator, temperature=0.7)).temperature == 0.7


def test_long_documents_cost_no_token_of_the_answer():
    rag = tiny_system(kind="bert")
    long = [Document(f"The key of clerk {n} is {n} . " * 40, id=f"long{n}") for n in range(3)]
    rag.generator.max_length = 160
    answer = "the key of clerk 12 is lost " * 4
    assert len(rag.generator.target_ids(answer)) > rag.generator.max_new_tokens
    objective = LSR(rag, k=3)
    objective.candidates = lambda batch: [long for _ in batch]
    assert torch.isfinite(objective([Example("Which key ?", [answer])])["loss"])


def test_temperatures_are_heeded():
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=5, temperature=0.3, teacher_temperature=2.5)
    rows = objective.find(BATCH)
    expected = slow(rag, BATCH, rows, direction="forward", normalisation="sum", tau_s=0.3, tau_t=2.5)
    assert objective(BATCH)["loss"].item() == pytest.approx(sum(expected) / len(BATCH), rel=1e-3)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_queries_with_fewer_documents_are_neither_padded_nor_dropped(direction):
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=5, direction=direction)
    rows = [row[:n] for row, n in zip(objective.find(BATCH), (5, 2, 3, 4), strict=True)]
    objective.candidates = lambda batch: rows
    expected = slow(rag, BATCH, rows, direction=direction, normalisation="sum", tau_s=0.05, tau_t=1.0)
    loss = objective(BATCH)["loss"]
    assert loss.item() == pytest.approx(sum(expected) / len(BATCH), rel=1e-3)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.trainable().values())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_flat_teacher_teaches_nothing_and_is_counted(direction):
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=5, direction=direction)
    rows = objective.find(BATCH)
    rows[1] = rows[1][:1]  # a single document is never better than another
    objective.candidates = lambda batch: [rows[BATCH.index(example)] for example in batch]
    whole = objective(BATCH)
    assert whole["flat_teachers"] == pytest.approx(0.25)
    others = [BATCH[0], *BATCH[2:]]
    assert whole["loss"].item() * 4 == pytest.approx(objective(others)["loss"].item() * 3, rel=1e-5)
    alone = objective([BATCH[1]])
    assert (alone["loss"].item(), alone["flat_teachers"]) == (0.0, 1.0)
    alone["loss"].backward()
    gradients = [p.grad for p in objective.trainable().values() if p.grad is not None]
    assert gradients
    assert all(not g.any() for g in gradients)


def test_a_teacher_that_ignores_the_documents_is_flat():
    rag = tiny_system(kind="bert")
    with torch.no_grad():
        rag.generator.model.lm_head.weight.zero_()  # every token as likely as any other
    numbers = LSR(rag, k=4)(BATCH)
    assert (numbers["loss"].item(), numbers["flat_teachers"]) == (0.0, 1.0)
    assert numbers["teacher_entropy"] == pytest.approx(math.log(4), abs=1e-4)


def test_entropies_are_in_nats():
    rag = tiny_system(kind="bert")
    numbers = LSR(rag, k=4, temperature=1e6, teacher_temperature=1e-4)(BATCH)
    assert numbers["student_entropy"] == pytest.approx(math.log(4), abs=1e-4)
    assert numbers["teacher_entropy"] == pytest.approx(0.0, abs=1e-2)


def test_the_second_epoch_asks_the_teacher_nothing_new(tmp_path):
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=4)
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=3, per_device_train_batch_size=5)
    RAGTrainer(objective, train_dataset=EXAMPLES, args=args, refresh="never").train()
    assert (objective.scorer.misses, objective.scorer.hits) == (24 * 4, 2 * 24 * 4)


def test_scores_are_the_same_from_the_cache():
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=4)
    documents = objective.find(BATCH)
    first = objective.teacher_scores(BATCH, documents)
    assert objective.scorer.hits == 0
    assert torch.equal(objective.teacher_scores(BATCH, documents), first)
    assert objective.scorer.misses == 16
    assert torch.equal(objective.teacher_scores(BATCH[::-1], documents[::-1]), first.flip(0))
    torch.testing.assert_close(LSR(rag, k=4).teacher_scores(BATCH, documents), first)


def test_what_a_checkpoint_remembers_is_not_asked_again():
    rag = tiny_system(kind="bert")
    objective, again = LSR(rag, k=4), LSR(rag, k=4)
    assert objective.extra_state() == {}
    documents = objective.find(BATCH)
    first = objective.teacher_scores(BATCH, documents)
    again.load_extra_state(objective.extra_state())
    assert torch.equal(again.teacher_scores(BATCH, documents), first)
    assert again.scorer.misses == 0
    with torch.no_grad():
        rag.generator.model.lm_head.weight.mul_(2.0)  # another teacher: what is remembered is not its opinion
    again.teacher_scores(BATCH, documents)
    assert again.scorer.misses == 16


def test_a_teacher_that_is_being_trained_is_asked_anew_and_without_dropout():
    """As in `Joint`, where the generator is in training mode, and another one after every step."""
    rag = tiny_system(kind="bert", dropout=0.5)
    objective = LSR(rag, k=4)
    documents = objective.find(BATCH)
    calm = objective.teacher_scores(BATCH, documents)
    rag.generator.model.train()
    assert torch.equal(objective.teacher_scores(BATCH, documents), calm)
    assert (objective.scorer.misses, objective.scorer.hits) == (16, 0)
    assert rag.generator.model.training
    assert objective(BATCH)["loss"].requires_grad
    assert all(p.grad is None for p in rag.generator.model.parameters())


def test_training_the_query_tower_leaves_the_index_valid(tmp_path):
    rag = tiny_system(kind="bert")
    written = rag.dense.store.fingerprint
    vectors = rag.dense.store.vectors([d.id for d in DOCUMENTS])
    before = rag.dense.embed_queries(["clerk 3"])
    RAGTrainer(LSR(rag, k=4), train_dataset=EXAMPLES, args=arguments(tmp_path)).train(final=False)
    assert rag.dense.store.fingerprint == rag.dense.encoder.fingerprint == written
    assert rag.retrieve("clerk 3", k=2)
    assert not torch.equal(rag.dense.embed_queries(["clerk 3"]), before)
    assert torch.equal(rag.dense.store.vectors([d.id for d in DOCUMENTS]), vectors)


def test_training_both_sides_makes_the_index_stale_and_the_trainer_mends_it(tmp_path):
    rag = tiny_system(kind="bert")
    trainer = RAGTrainer(LSR(rag, k=4, train="both"), train_dataset=EXAMPLES, args=arguments(tmp_path))
    trainer.train(final=False)
    with pytest.raises(StaleIndexError, match="refresh"):
        rag.retrieve("clerk 3")
    trainer.train()
    assert rag.retrieve("clerk 3")
    ids = [d.id for d in DOCUMENTS]
    torch.testing.assert_close(rag.dense.store.vectors(ids), rag.dense.embed_documents(DOCUMENTS), atol=1e-5, rtol=1e-4)


def test_excluded_documents_are_no_candidates_and_the_next_best_take_their_places():
    rag = tiny_system(kind="bert")
    plain = LSR(rag, k=4).find(BATCH[:2])
    objective = LSR(rag, k=3, exclude_ids=lambda e: [plain[0][0].id] if e is BATCH[0] else [])
    assert objective.find(BATCH[:2]) == [plain[0][1:], plain[1][:3]]


def test_settings_are_checked():
    rag = tiny_system(kind="bert")
    for settings, message in (
        ({"k": 1}, "at least 2, got 1"),
        ({"train": "all"}, "train='all'"),
        ({"direction": "backward"}, "direction='backward'"),
        ({"target": "attention"}, "target='attention'"),
        ({"normalisation": "average"}, "normalisation='average'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            LSR(rag, **settings)
    assert not rag.dense.encoder.two_towers  # a refused objective leaves the system as it was
    with pytest.raises(ConfigError, match="LSR needs a CausalLM"):
        LSR(RAGSystem(retriever=DenseRetriever(rag.dense.encoder, MemoryStore())))


@pytest.mark.parametrize("answers", [None, []])
def test_an_example_without_an_answer_teaches_nothing_and_is_refused(answers):
    with pytest.raises(DataError, match="1 of these 2 examples have none"):
        LSR(tiny_system(), k=3)([EXAMPLES[0], Example("Which key ?", answers, positives=["d1"])])
