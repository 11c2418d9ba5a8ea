"""RAGTrainer: what it evaluates, restores, refuses, retrieves anew and hands on to transformers' Trainer."""

import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from fedrag import (
    LSR,
    RALT,
    Contrastive,
    DenseRetriever,
    Example,
    Joint,
    MemoryStore,
    RAGSystem,
    RAGTrainer,
    SentenceEncoder,
    evaluate,
)
from fedrag.errors import ConfigError, DataError, InputError, TrainingError
from fedrag.objectives.objective import Objective
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system
from tiny import tiny_sentence_transformer


def weights(rag):
    return {name: parameter.detach().clone() for name, parameter in rag.named_parameters().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


class Both(Objective):
    """Moves retriever and generator together: the sum of two objectives."""

    def __init__(self, rag):
        super().__init__(rag, parts=["retriever/", "generator"], depth=0)
        self.two = (Contrastive(rag), RALT(rag, k=0))

    def loss(self, batch):
        return {"loss": sum(objective(batch)["loss"] for objective in self.two)}


# -- evaluation


@pytest.mark.parametrize("make", [lambda rag: RALT(rag), lambda rag: LSR(rag, k=4)], ids=["ralt", "lsr"])
def test_eval_loss_is_the_mean_over_examples_whatever_the_batches(make, tmp_path):
    rag = tiny_system(kind="bert")
    objective = make(rag)
    objective.eval()
    rows = EXAMPLES[:7]
    expected = sum(objective([example])["loss"].item() for example in rows) / 7
    for size in (3, 7):
        args = arguments(tmp_path, per_device_eval_batch_size=size)
        metrics = RAGTrainer(objective, train_dataset=EXAMPLES[7:], eval_dataset=rows, args=args).evaluate()
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluate_reports_the_task(tmp_path):
    rag = tiny_system(kind="bert")
    trainer = RAGTrainer(RALT(rag), train_dataset=EXAMPLES[8:], eval_dataset=EXAMPLES[:8], args=arguments(tmp_path))
    metrics = trainer.evaluate()
    report = evaluate(rag, EXAMPLES[:8], progress=False)
    assert {"exact_match", "f1", "recall@1"} <= set(report.metrics)
    assert {name: metrics[f"eval_{name}"] for name in report.metrics} == {n: m.mean for n, m in report.metrics.items()}
    assert trainer.evaluate(EXAMPLES[:2], metric_key_prefix="test")["test_recall@1"] >= 0


def test_a_system_without_generator_is_measured_by_its_retrieval(tmp_path):
    rag = RAGSystem(retriever=tiny_system(kind="bert").dense)
    trainer = RAGTrainer(Contrastive(rag), train_dataset=EXAMPLES, eval_dataset=EXAMPLES, args=arguments(tmp_path))
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert "eval_exact_match" not in before
    assert after["eval_mrr@10"] > before["eval_mrr@10"]


class Seen(TrainerCallback):
    """Keeps the metrics and the weights of every evaluation."""

    def __init__(self, rag):
        self.rag, self.metrics, self.weights = rag, [], []

    def on_evaluate(self, args, state, control, metrics, **_):
        self.metrics.append(dict(metrics))
        self.weights.append(weights(self.rag))


@pytest.mark.parametrize(
    ("make", "metric", "size"),
    [
        (lambda rag: RALT(rag, shuffle=False), "eval_exact_match", 2),
        (lambda rag: Contrastive(rag), "eval_recall@1", 12),
    ],
    ids=["ralt", "contrastive"],
)
def test_the_best_model_comes_back_whole(make, metric, size, tmp_path):
    rag = tiny_system(kind="bert")
    seen = Seen(rag)
    args = arguments(
        tmp_path, max_steps=14, per_device_train_batch_size=min(size, 6), learning_rate=1e-2,
        lr_scheduler_type="constant",
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model=metric, greater_is_better=True,
    )  # fmt: skip
    rows = EXAMPLES[:size]
    RAGTrainer(make(rag), train_dataset=rows, eval_dataset=rows, args=args, callbacks=[seen]).train()
    values = [metrics[metric] for metrics in seen.metrics]
    best = values.index(max(values))
    assert max(values) > values[0]
    assert best < len(values) - 1
    assert not moved(seen.weights[best], weights(rag))
    assert moved(seen.weights[-1], weights(rag))
    assert evaluate(rag, rows, progress=False).metrics[metric.removeprefix("eval_")].mean == max(values)


def test_early_stopping_sees_the_metrics(tmp_path):
    rag = tiny_system(kind="bert")
    args = arguments(
        tmp_path, max_steps=40, learning_rate=0.0, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_mrr@3", greater_is_better=True,
    )  # fmt: skip
    trainer = RAGTrainer(
        Contrastive(rag), train_dataset=EXAMPLES[4:], eval_dataset=EXAMPLES[:4], args=args,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 3


def test_evaluation_leaves_training_as_it_was(tmp_path):
    """Neither its random numbers, nor its mode, nor its documents reach the next step."""

    def run(**settings):
        rag = tiny_system(kind="bert", dropout=0.2)
        args = arguments(tmp_path, max_steps=5, **settings)
        RAGTrainer(LSR(rag, k=4), train_dataset=EXAMPLES[5:], eval_dataset=EXAMPLES[:5], args=args).train()
        return weights(rag)

    assert not moved(run(), run(eval_strategy="steps", eval_steps=1))


def test_what_is_logged(tmp_path):
    rag = tiny_system(kind="bert")
    args = arguments(tmp_path, max_steps=4, logging_strategy="steps", logging_steps=2)
    trainer = RAGTrainer(LSR(rag, k=4), train_dataset=EXAMPLES, args=args)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all({"teacher_entropy", "student_entropy", "flat_teachers"} <= set(entry) for entry in logged)
    assert logged[0]["student_entropy"] != logged[1]["student_entropy"]
    args = arguments(tmp_path, max_steps=4, logging_strategy="steps", logging_steps=1)
    trainer = RAGTrainer(LSR(tiny_system(kind="bert"), k=4), train_dataset=EXAMPLES, args=args)
    trainer.train()
    each = [entry["student_entropy"] for entry in trainer.state.log_history if "loss" in entry]
    means = [sum(each[:2]) / 2, sum(each[2:]) / 2]
    assert [entry["student_entropy"] for entry in logged] == pytest.approx(means)


def test_examples_in_both_sets_are_told(tmp_path, caplog):
    rag = tiny_system()
    with caplog.at_level(logging.WARNING, logger="fedrag"):
        RAGTrainer(RALT(rag), train_dataset=EXAMPLES[:6], eval_dataset=EXAMPLES[6:9], args=arguments(tmp_path))
        assert not caplog.records
        RAGTrainer(RALT(rag), train_dataset=EXAMPLES[:6], eval_dataset=EXAMPLES[4:9], args=arguments(tmp_path))
    assert "2 of the 5 evaluation questions" in caplog.text


# -- steps


@pytest.mark.parametrize("make", [lambda rag: RALT(rag, shuffle=False), lambda rag: LSR(rag, k=4)], ids=["ralt", "lsr"])
def test_accumulated_gradients_are_those_of_the_whole_batch(make, tmp_path):
    def run(batch, pieces):
        rag = tiny_system(kind="bert")
        args = arguments(
            tmp_path, max_steps=3, per_device_train_batch_size=batch, gradient_accumulation_steps=pieces,
            optim="sgd", learning_rate=0.1, train_sampling_strategy="sequential",
        )  # fmt: skip
        objective = make(rag)
        start = weights(rag)
        RAGTrainer(objective, train_dataset=EXAMPLES, args=args).train()
        return start, weights(rag)

    (start, whole), (_, pieces) = run(8, 1), run(2, 4)
    assert any((whole[name] - start[name]).abs().max() > 1e-3 for name in start)
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], atol=1e-5, rtol=1e-4)


def test_each_component_has_its_learning_rate(tmp_path):
    def run(rates, rate=0.05):
        rag = tiny_system(kind="bert")
        before = weights(rag)
        args = arguments(tmp_path, max_steps=1, optim="sgd", learning_rate=rate, max_grad_norm=0.0)
        RAGTrainer(Both(rag), train_dataset=EXAMPLES, args=args, learning_rates=rates).train()
        return {name: value - before[name] for name, value in weights(rag).items()}

    plain, two = run({}), run({"retriever": 0.15, "generator": 0.0})
    one = run({"generator": 0.1})
    for name, step in plain.items():
        torch.testing.assert_close(two[name], step * (3 if name.startswith("retriever") else 0), atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(one[name], step * (1 if name.startswith("retriever") else 2), atol=1e-6, rtol=1e-3)
    assert plain["generator/lm_head.weight"].any()


def test_rates_follow_the_schedule_and_decay_spares_what_the_trainer_spares(tmp_path):
    rag = tiny_system(kind="bert")
    args = arguments(tmp_path, weight_decay=0.1, lr_scheduler_type="linear", max_steps=4)
    trainer = RAGTrainer(
        Both(rag), train_dataset=EXAMPLES, args=args, learning_rates={"retriever": 1e-3, "generator": 1e-4}
    )
    trainer.train()
    groups = trainer.optimizer.param_groups
    assert {(group["initial_lr"], group["weight_decay"]) for group in groups} == {
        (1e-3, 0.1), (1e-3, 0.0), (1e-4, 0.1), (1e-4, 0.0),
    }  # fmt: skip
    assert all(group["lr"] == pytest.approx(0.0) for group in groups)
    assert sum(len(group["params"]) for group in groups) == len(trainer.objective.trainable())


class Stops(RALT):
    """Fails in its second step."""

    steps = 0

    def loss(self, batch):
        self.steps += 1
        if self.steps == 2:
            raise self.error
        return super().loss(batch)


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_flags_and_modes_come_back_however_training_ends(error, tmp_path):
    rag = tiny_system(kind="bert", lora=4)
    rag.named_parameters()["retriever/encoder/0.model.embeddings.word_embeddings.weight"].requires_grad_(False)
    flags = {name: p.requires_grad for name, p in rag.named_parameters().items()}
    objective = Stops(rag)
    objective.error = error
    trainer = RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path, activation_checkpointing=True))
    with pytest.raises(type(error)):
        trainer.train()
    assert {name: p.requires_grad for name, p in rag.named_parameters().items()} == flags
    assert not any(module.training for part in rag.parts().values() for module in part.modules())
    assert all(p.grad is None for p in rag.named_parameters().values())
    assert objective.candidates == objective.find
    assert not rag.generator.model.get_base_model().is_activation_checkpointing
    before = weights(rag)
    trainer.train()  # and it can be started again
    assert moved(before, weights(rag))


def test_one_objective_after_another_and_once_more(tmp_path):
    rag = tiny_system(kind="bert")
    start = None
    for make, part in ((lambda r: LSR(r, k=3), "retriever/query"), (lambda r: RALT(r), "generator")):
        trainer = RAGTrainer(make(rag), train_dataset=EXAMPLES, args=arguments(tmp_path))
        for _ in range(2):
            start = weights(rag)
            trainer.train()
            changed = moved(start, weights(rag))
            assert changed
            assert all(name.startswith(part) for name in changed)
    assert rag.query("Which key has clerk 3 ?").hits


def test_a_second_train_goes_on_from_the_first(tmp_path):
    """The rate starts anew, and the weights do not."""
    rag = tiny_system()
    objective = RALT(rag, shuffle=False)
    trainer = RAGTrainer(
        objective, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=20, learning_rate=2e-3),
        learning_rates={"generator": 2e-3},
    )  # fmt: skip
    losses = []
    for _ in range(3):
        losses.append(trainer.evaluate(EXAMPLES)["eval_loss"])
        trainer.train()
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize(
    "make", [lambda r: RALT(r, shuffle=False), lambda r: Contrastive(r)], ids=["ralt", "contrastive"]
)
def test_activation_checkpointing_changes_nothing_but_memory(make, lora, tmp_path):
    def run(**settings):
        torch.manual_seed(0)  # of the adapters
        rag = tiny_system(kind="bert", lora=lora)
        objective = make(rag)
        args = arguments(tmp_path, max_steps=2, optim="sgd", **settings)
        on = []

        class Look(TrainerCallback):
            def on_step_end(self, *_, **__):
                on.append([network.is_activation_checkpointing for network in objective._networks()])

        RAGTrainer(objective, train_dataset=EXAMPLES, args=args, callbacks=[Look()]).train()
        after = [network.is_activation_checkpointing for network in objective._networks()]
        hooks = [len(n.get_input_embeddings()._forward_hooks) for n in objective._networks()]
        return weights(rag), on, after, hooks

    plain, off, *_ = run()
    saved, on, after, hooks = run(activation_checkpointing=True)
    assert (off, on, after, hooks) == ([[False]] * 2, [[True]] * 2, [False], [0])
    for name, weight in plain.items():
        torch.testing.assert_close(saved[name], weight, atol=1e-6, rtol=1e-5)


def test_bf16_trains_while_scores_stay_in_float32(tmp_path):
    rag = tiny_system(kind="bert")
    seen = []

    class Watched(LSR):
        def loss(self, batch):
            documents = self.candidates(batch)
            scores = self.rag.dense.scores([e.question for e in batch], documents)
            vectors = self.rag.dense.encoder.encode_queries([batch[0].question])
            with torch.autocast("cpu", enabled=False), torch.no_grad():
                fresh = LSR(self.rag, k=4).teacher_scores(batch, documents)
            same = torch.equal(fresh, self.teacher_scores(batch, documents))
            seen.append((torch.is_autocast_enabled("cpu"), vectors.dtype, scores.dtype, same))
            return super().loss(batch)

    start = weights(rag)
    args = arguments(tmp_path, max_steps=2, bf16=True)
    objective = Watched(rag, k=4)
    RAGTrainer(objective, train_dataset=EXAMPLES, eval_dataset=EXAMPLES[:3], args=args).train()
    assert seen
    assert all(row[0] and row[2] == torch.float32 and row[3] for row in seen)
    generator = weights(rag)
    RAGTrainer(RALT(rag), train_dataset=EXAMPLES, args=arguments(tmp_path, bf16=True)).train()
    assert moved(generator, weights(rag))
    assert all(p.dtype == torch.float32 for p in rag.named_parameters().values())
    assert start


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    rag = tiny_system()
    with torch.no_grad():
        rag.generator.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        RAGTrainer(RALT(rag), train_dataset=EXAMPLES, args=arguments(tmp_path)).train()


# -- candidates


class Counting(DenseRetriever):
    """Counts the questions that it is asked."""

    asked = 0

    def retrieve(self, queries, k, where=None):
        Counting.asked += len(queries)
        return super().retrieve(queries, k, where)


def counting_system(documents=DOCUMENTS):
    rag = tiny_system(kind="bert")
    retriever = Counting(rag.dense.encoder, MemoryStore())
    if documents:
        retriever.add(documents, progress=False)
    Counting.asked = 0
    return RAGSystem(retriever=retriever, generator=rag.generator, top_k=3)


@pytest.mark.parametrize(
    ("refresh", "steps"), [("never", [0]), ("epoch", [0, 6, 12]), (5, [0, 5, 10, 15]), (6, [0, 6, 12]), (100, [0])]
)
def test_candidates_are_retrieved_when_the_policy_says(refresh, steps, tmp_path):
    rag = counting_system()
    asked = [0]

    class Look(TrainerCallback):
        def on_step_begin(self, *_, **__):
            asked.append(Counting.asked)

    args = arguments(tmp_path, max_steps=-1, num_train_epochs=3)
    trainer = RAGTrainer(LSR(rag, k=3), train_dataset=EXAMPLES, args=args, refresh=refresh, callbacks=[Look()])
    assert Counting.asked == 0  # not before train()
    trainer.train()
    assert trainer.state.global_step == 18
    assert [step for step in range(18) if asked[step + 1] > asked[step]] == steps
    assert Counting.asked == len(steps) * len(EXAMPLES)


def test_a_frozen_retriever_is_asked_once(tmp_path):
    rag = counting_system()
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=3)
    RAGTrainer(RALT(rag), train_dataset=EXAMPLES, args=args, refresh=2).train()
    assert Counting.asked == len(EXAMPLES)


@pytest.mark.parametrize("train", ["query", "both"])
def test_fresh_candidates_are_those_of_the_encoder_as_it_is(train, tmp_path):
    rag = tiny_system(kind="bert")
    objective = LSR(rag, k=3, train=train)
    found = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            found.append(trainer.candidates(EXAMPLES))
            if state.global_step % 3 == 0:
                assert objective.find(EXAMPLES) == found[-1]

    trainer = RAGTrainer(
        objective, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=7), refresh=3, callbacks=[Look()]
    )
    trainer.train()
    assert found[0] == found[2] != found[3] == found[5] != found[6]


def test_a_store_without_documents_is_named(tmp_path):
    rag = counting_system(documents=())
    with pytest.raises(TrainingError, match="add documents to the knowledge store"):
        RAGTrainer(LSR(rag, k=3), train_dataset=EXAMPLES, args=arguments(tmp_path)).train()
    assert all(p.requires_grad for p in rag.named_parameters().values())


# -- settings


def test_without_arguments_adapters_learn_faster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it would write
    plain = RAGTrainer(RALT(tiny_system()), train_dataset=EXAMPLES).args
    adapters = RAGTrainer(RALT(tiny_system(lora=4)), train_dataset=EXAMPLES).args
    assert adapters.learning_rate > plain.learning_rate
    assert plain.output_dir == "runs/ralt"
    assert plain.report_to == []


def test_what_cannot_work_is_refused_by_name(tmp_path):
    rag = tiny_system()

    def trainer(message, examples=EXAMPLES, error=ConfigError, args=None, **settings):
        with pytest.raises(error, match=message):
            RAGTrainer(RALT(rag), train_dataset=examples, args=args or arguments(tmp_path), **settings)

    trainer("train_dataset is empty", examples=[], error=InputError)
    trainer(
        "train_sampling_strategy='group_by_length'", args=arguments(tmp_path, train_sampling_strategy="group_by_length")
    )
    trainer("label_smoothing_factor=0.1", args=arguments(tmp_path, label_smoothing_factor=0.1))
    trainer("neftune_noise_alpha=5", args=arguments(tmp_path, neftune_noise_alpha=5))
    trainer(r"names \['retreiver'\], the objective trains \['generator'\]", learning_rates={"retreiver": 1e-3})
    trainer(r"names \['retriever'\]", learning_rates={"retriever": 1e-3})
    for refresh in ("always", 0, -3):
        trainer(f"got {refresh!r}", refresh=refresh)
    several = arguments(tmp_path)
    assert several.n_gpu <= 1
    several._n_gpu = 2
    trainer("torchrun", args=several)


def test_activation_checkpointing_needs_a_transformers_model(tmp_path):
    rag = tiny_system(kind="static")
    trainer = RAGTrainer(
        Contrastive(rag), train_dataset=EXAMPLES, args=arguments(tmp_path, activation_checkpointing=True)
    )
    with pytest.raises(ConfigError, match="gradient checkpointing is on"):
        trainer.train()


def test_an_objective_whose_encoder_was_split_since_is_refused(tmp_path):
    rag = tiny_system(kind="bert")
    trainer = RAGTrainer(Contrastive(rag), train_dataset=EXAMPLES, args=arguments(tmp_path))
    LSR(rag, k=3)
    with pytest.raises(TrainingError, match="second tower since"):
        trainer.train()


# -- checkpoints


def test_a_checkpoint_holds_what_is_trained_by_canonical_name(tmp_path):
    rag = tiny_system(lora=4)
    args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    trainer = RAGTrainer(RALT(rag), train_dataset=EXAMPLES, args=args)
    trainer.train()
    state = load_file(tmp_path / "checkpoint-2" / "trainable.safetensors")
    named = rag.named_parameters()
    assert set(state) == {n for n, p in named.items() if p.requires_grad and n.startswith("generator/")}
    assert all("lora" in name and torch.equal(value, named[name]) for name, value in state.items())


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    def trainer(rag, make=RALT, examples=EXAMPLES):
        args = arguments(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1)
        return RAGTrainer(make(rag), train_dataset=examples, args=args)

    def objective(rag):
        return LSR(rag, k=3)

    trainer(tiny_system(kind="bert"), objective).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-1")
    rag = tiny_system(kind="bert")
    start = weights(rag)
    for wrong, folder, message in (
        (trainer(rag), checkpoint, "another objective or system"),
        (trainer(rag), str(tmp_path), "no checkpoint of RAGTrainer"),
        (trainer(rag, objective, [*EXAMPLES, Example("Who ?", ["I"])]), checkpoint, "no documents for 1 of these 25"),
    ):
        with pytest.raises(InputError, match=message):
            wrong.train(resume_from_checkpoint=folder)
    assert not moved({n: w for n, w in start.items() if n.startswith("generator")}, weights(rag))
    wide = RAGSystem(
        retriever=DenseRetriever(SentenceEncoder(tiny_sentence_transformer(width=64)), MemoryStore()),
        generator=rag.generator,
        top_k=3,
    )
    wide.add(DOCUMENTS, progress=False)
    with pytest.raises(InputError, match="is not the same in both"):
        trainer(wide, objective).train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize("make", [LSR, lambda rag: Joint(LSR(rag), RALT(rag))])
def test_examples_that_a_step_could_not_use_are_refused_before_the_first(tmp_path, make):
    rag = tiny_system()
    trainer = RAGTrainer(
        make(rag), train_dataset=[*EXAMPLES, Example("Who knows ?", ())], args=arguments(tmp_path, max_steps=1)
    )
    with pytest.raises(DataError, match="LSR needs an answer to every question, 1 of these 25"):
        trainer.train()
    assert trainer.state.global_step == 0
