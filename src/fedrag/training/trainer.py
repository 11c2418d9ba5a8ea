"""One trainer for every objective: a `transformers.Trainer`, with what a RAG system needs added.

    RAGTrainer(LSR(rag), train_dataset=train).train()
    RAGTrainer(RALT(rag), train_dataset=train, eval_dataset=dev, args=TrainingArguments(...)).train()

`TrainingArguments`, callbacks, trackers, resuming, gradient accumulation, bf16 and DistributedDataParallel are the
Trainer's own. FSDP and DeepSpeed are not tested.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from fedrag.data import overlap
from fedrag.errors import TrainingError
from fedrag.evaluation import Report, evaluate, evaluate_retriever
from fedrag.objectives.objective import Objective
from fedrag.ops.modes import only_training
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.nested import find
from fedrag.training import checkpoints
from fedrag.training.budget import check_prompts
from fedrag.training.candidates import CandidateTable, from_writer, is_writer
from fedrag.training.refreshing import Refresh, Refreshing
from fedrag.training.settings import check, default_arguments
from fedrag.types import Example

if TYPE_CHECKING:
    from fedrag.federated import Federated, Plan

_log = logging.getLogger(__name__)


class RAGTrainer(Trainer):
    """Train the parts of a RAG system that an objective declares, and leave the rest as it is.

    Args:
        objective: what to make better, for which parts.
        train_dataset: examples to learn from.
        eval_dataset: examples for `evaluate()`: `eval_loss` and task metrics such as `eval_exact_match`.
        args: the Trainer's settings; `None` trains three epochs and writes no checkpoint.
        learning_rates: per component, "retriever" or "generator", in place of `args.learning_rate`.
        refresh: when the candidates are retrieved anew, with the encoder as it then is: "never" (once, at the
            start), every "epoch", or every so many steps. Where the document side is trained, its documents are
            embedded anew first, which costs one pass over the store. A retriever that stays as it is finds the same,
            and is asked once. What it costs is in the log and in `train()`'s metrics: `fedrag.training.costs`.
        over_retrieve: keep this many times the documents that a step needs, rank them anew at each step with the
            encoder as it is, and train on the best: part of what refreshing brings, without a search. Costs an encoding
            of the batch's questions, and of all its kept documents where their side is trained.
        evaluator: makes the report behind the task metrics; `None` asks the system when it has a generator and the
            examples have answers, and measures retrieval alone otherwise.
        callbacks: further callbacks of transformers.
        optimizers: optimiser and schedule in place of those that `args` names.

    After `train()` the documents are embedded anew if their side has changed (`final=False` leaves that out), every
    part is in evaluation mode, and every parameter requires a gradient or not as before.

    Under distributed training rank 0 retrieves, refreshes and evaluates while the others wait: where that may take
    more than half an hour, give `TrainingArguments(ddp_timeout=...)` more seconds, or the run ends. After training the
    document side, rank 0 alone has the new vectors: ask there, or call `rag.dense.refresh()` on the others.

    Raises:
        ConfigError: for settings that this trainer cannot honour, by name.
        BudgetError: from `train()`, before its first step, when training examples are too long for the generator.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        train_dataset: Sequence[Example],
        eval_dataset: Sequence[Example] | None = None,
        args: TrainingArguments | None = None,
        learning_rates: Mapping[str, float] | None = None,
        refresh: Refresh = "epoch",
        over_retrieve: int = 1,
        evaluator: Callable[[RAGSystem, Sequence[Example]], Report] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ) -> None:
        args = args or default_arguments(objective)
        check(objective, train_dataset, args, learning_rates or {}, refresh, over_retrieve)
        args.dataloader_pin_memory = False  # examples are no tensors: there is nothing to pin
        self.objective = objective
        self.learning_rates = dict(learning_rates or {})
        self.evaluator = evaluator or _report
        self.candidates = CandidateTable(objective, over_retrieve=over_retrieve, progress=not args.disable_tqdm)
        self._resumed_from: Path | None = None
        self._numbers: dict[str, list[float]] = defaultdict(list)
        if eval_dataset:
            shared = overlap(train_dataset, eval_dataset)
            if shared.questions:
                _log.warning(
                    "%d of the %d evaluation questions are in the training set: the metrics will flatter",
                    len(shared.questions),
                    len(eval_dataset),
                )
        super().__init__(
            model=objective,
            args=args,
            data_collator=_as_batch,
            train_dataset=cast(Any, list(train_dataset)),
            eval_dataset=cast(Any, list(eval_dataset) if eval_dataset else None),
            callbacks=[*(callbacks or []), Refreshing(refresh, objective, self.start, self.refresh_candidates)],
            optimizers=cast(Any, optimizers),
        )
        torch.nn.ModuleList(objective.rag.parts().values()).to(args.device)  # the frozen parts too: they work together

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        *,
        final: bool = True,
    ) -> TrainOutput:
        """Train; return the Trainer's own output. `resume_from_checkpoint` takes a folder, or `True` for the last one.

        Args:
            final: embed the documents anew at the end, where their side was trained.
        """
        everything = self.objective.rag.named_parameters()
        if gone := sorted(set(self.objective.trainable()) - set(everything)):
            raise TrainingError(
                f"{type(self.objective).__name__} trains {gone[0]!r}, which the system has no more: its encoder got a "
                "second tower since; make the objective and the trainer anew"
            )
        self._numbers.clear()
        self.candidates.clear()
        self.objective.candidates = self.candidates
        try:
            with only_training(self.objective.trainable().values(), everything.values()):
                output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.objective.candidates = self.objective.find
            self.objective.eval()
            if self.args.activation_checkpointing:
                self.objective.activation_checkpointing_disable()
            self._resumed_from = None
        if final:
            self.refresh_index()
        return output._replace(metrics={**output.metrics, **self.candidates.costs.numbers})

    def federate(self, shards: Mapping[str, Sequence[Example]], plan: Plan, *, progress: bool = True) -> Federated:
        """Train as many sites would, in this process: `fedrag.federated.shards.federate`; wants `fedrag[federated]`."""
        from fedrag.federated.shards import federate

        return federate(self, shards, plan, progress=progress)

    def refresh_index(self) -> None:
        """Embed the documents anew where their side has changed; rank 0 does, where there are several."""
        dense = find(self.objective.rag.retriever, DenseRetriever)
        if dense is not None and is_writer():
            dense.refresh(progress=not self.args.disable_tqdm)

    def refresh_candidates(self) -> None:
        """Retrieve the training examples' documents anew, from an index that fits the encoder."""
        if self.objective.depth:
            with self.candidates.costs.timed("refresh_seconds"):
                self.refresh_index()
                self.candidates.refresh(self._train_examples())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss; the numbers beside it are kept for the log."""
        outputs = cast(dict[str, Any], model(**inputs))
        loss = cast(Tensor, outputs.pop("loss"))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step}: lower the learning rate, or look for "
                "vectors or scores that are not finite"
            )
        for name, number in outputs.items():
            self._numbers[name].append(float(number))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of what the objective told since the last time, and what the candidates cost so far."""
        if "loss" in logs:
            means = {name: sum(seen) / len(seen) for name, seen in self._numbers.items()}
            logs = {**logs, **means, **self.candidates.costs.numbers}
            self._numbers.clear()
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over the examples, and the task metrics of the system as it now is; rank 0 computes both."""
        examples = cast(list[Example], dataloader.dataset)
        metrics: dict[str, float] = {}
        kept = self.objective.candidates
        if is_writer():
            self.objective.eval()
            self.refresh_index()
            self.objective.candidates = self.objective.find
            try:
                total = 0.0
                for start in range(0, len(examples), self.args.eval_batch_size):
                    batch = examples[start : start + self.args.eval_batch_size]
                    with torch.no_grad(), self.compute_loss_context_manager():
                        total += float(self.objective(batch)["loss"]) * len(batch)
            finally:
                self.objective.candidates = kept
            report = self.evaluator(self.objective.rag, examples)
            metrics = {"loss": total / len(examples), **{name: m.mean for name, m in report.metrics.items()}}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in from_writer(metrics).items()}
        return EvalLoopOutput(predictions=cast(Any, None), label_ids=None, metrics=metrics, num_samples=len(examples))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser, each component's parameters with the learning rate that is its own."""
        optimizer = super().create_optimizer(model)
        place = {id(p): name.split("/")[0] for name, p in self.objective.trainable().items()}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            for component in dict.fromkeys(place.get(id(p), "") for p in group["params"]):
                rate = self.learning_rates.get(component, group["lr"])
                mine = [p for p in group["params"] if place.get(id(p), "") == component]
                groups.append({**group, "params": mine, "lr": rate})
        if self.learning_rates:
            optimizer.param_groups = groups
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or cast(str, self.args.output_dir))
            checkpoints.write(folder, self.objective, self.candidates)
            torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._resumed_from = Path(resume_from_checkpoint)
        checkpoints.read_weights(self._resumed_from, self.objective)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(cast(str, self.state.best_model_checkpoint))

    def start(self) -> None:
        """Get the candidates of the run's first step: retrieved, or those of the checkpoint that it goes on from."""
        check_prompts(self.objective, self._train_examples())
        if self._resumed_from is not None:
            checkpoints.read_rest(self._resumed_from, self.objective, self.candidates, self._train_examples())
        if not self.candidates.ids:
            self.refresh_candidates()

    def _train_examples(self) -> list[Example]:
        return cast(list[Example], self.train_dataset)


def _as_batch(examples: list[Example]) -> dict[str, list[Example]]:
    return {"batch": examples}


def _report(rag: RAGSystem, examples: Sequence[Example]) -> Report:
    if rag.generator is not None and any(example.answers for example in examples):
        return evaluate(rag, examples, progress=False)
    return evaluate_retriever(rag.retriever, examples, progress=False)
