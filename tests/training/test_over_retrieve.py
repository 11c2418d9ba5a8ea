"""More documents kept than a step needs: the encoder as it is chooses among them, and nothing else changes."""

import pytest
import torch
from transformers import TrainerCallback

from fedrag import LSR, RALT, Contrastive, RAGTrainer
from fedrag.errors import ConfigError, InputError
from fedrag.training.candidates import CandidateTable
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system


def over(objective, times):
    table = CandidateTable(objective, over_retrieve=times, progress=False)
    table.refresh(EXAMPLES)
    return table


def move(rag, part):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in rag.named_parameters().items():
            if name.startswith(part):
                parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))


@pytest.mark.parametrize("train", ["query", "both"])
def test_all_documents_kept_is_an_index_that_is_never_stale(train):
    rag = tiny_system(kind="bert", dropout=0.5)
    objective = LSR(rag, k=3, train=train).train()
    rag.dense.encoder.train()  # the choice is made without dropout all the same
    table = over(objective, 8)
    before = table(EXAMPLES)
    assert before == objective.find(EXAMPLES)
    move(rag, "retriever/query" if train == "query" else "retriever/")
    found = table(EXAMPLES)
    assert rag.dense.encoder.training
    rag.dense.refresh(progress=False)
    assert found == objective.find(EXAMPLES) != before
    assert all(len(ids) == len(DOCUMENTS) for ids in table.ids.values())


def test_a_part_of_the_documents_kept_is_ranked_among_itself():
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=2)
    table = over(objective, 3)
    move(rag, "retriever/query")
    kept = [[document.id for document in row] for row in objective.find(EXAMPLES)]
    rows = [rag.dense.store.get(table.ids[key]) for key in table.ids]
    with torch.no_grad():
        scores = rag.dense.scores([example.question for example in EXAMPLES], rows)  # [n, 6]
    best = [[rows[n][k].id for k in row[:2]] for n, row in enumerate(scores.argsort(descending=True).tolist())]
    assert [[document.id for document in row] for row in table(EXAMPLES)] == best != kept


def test_rows_of_unequal_length_are_ranked(tmp_path):
    rag = tiny_system(kind="bert")
    some = {example.question: 20 + n % 4 for n, example in enumerate(EXAMPLES)}
    out = lambda example: [document.id for document in DOCUMENTS[: some[example.question]]]  # noqa: E731
    table = over(LSR(rag, k=3, exclude_ids=out), 2)
    assert {len(ids) for ids in table.ids.values()} == {1, 2, 3, 4}
    rows = table(EXAMPLES)
    assert [len(row) for row in rows] == [min(3, 24 - some[example.question]) for example in EXAMPLES]
    assert all(set(out(e)).isdisjoint(d.id for d in row) for e, row in zip(EXAMPLES, rows, strict=True))


def test_choosing_draws_no_random_number_and_leaves_no_gradient(tmp_path):
    rag = tiny_system(kind="bert", dropout=0.5)
    objective = LSR(rag, k=3, train="both").train()
    table = over(objective, 2)
    state = torch.get_rng_state()
    table(EXAMPLES[:4])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in objective.trainable().values())


def test_a_trained_retriever_gets_what_it_now_likes(tmp_path):
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=3)
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, *_, **__):
            seen.append((trainer.candidates(EXAMPLES), objective.find(EXAMPLES)))

    trainer = RAGTrainer(
        objective, train_dataset=EXAMPLES, args=arguments(tmp_path), refresh="never", over_retrieve=8,
        callbacks=[Look()],
    )  # fmt: skip
    trainer.train()
    assert all(handed == fresh for handed, fresh in seen)
    assert seen[0] != seen[-1]


def test_a_checkpoint_of_another_number_kept_is_refused(tmp_path):
    def trainer(times):
        args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        return RAGTrainer(LSR(tiny_system(kind="bert"), k=3), train_dataset=EXAMPLES, args=args, over_retrieve=times)

    trainer(2).train()
    for times in (1, 3):
        with pytest.raises(InputError, match=f"written with over_retrieve=2, this trainer has over_retrieve={times}"):
            trainer(times).train(str(tmp_path / "checkpoint-1"))


class OwnWay(LSR):
    """Puts something else before what it retrieves."""

    def find(self, examples):
        return [[DOCUMENTS[0], *row] for row in super().find(examples)]


@pytest.mark.parametrize(
    ("make", "times", "message"),
    [
        (lambda rag: LSR(rag, k=3), 0, "a whole number from 1 on, got 0"),
        (lambda rag: Contrastive(rag), 2, "Contrastive retrieves no documents"),
        (lambda rag: RALT(rag), 2, "RALT leaves the retriever as it is"),
        (lambda rag: OwnWay(rag, k=3), 2, "OwnWay finds its documents in a way of its own"),
    ],
)
def test_where_ranking_anew_has_no_sense_it_is_refused(make, times, message, tmp_path):
    objective = make(tiny_system(kind="bert"))
    with pytest.raises(ConfigError, match=message):
        RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path), over_retrieve=times)
    RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path))
