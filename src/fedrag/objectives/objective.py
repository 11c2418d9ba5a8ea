"""What every objective shares: which parts it trains, and where its candidates come from.

An objective is an `nn.Module` whose `forward(batch)` takes examples and returns `{"loss": ..., logged numbers}`.
It holds the trained parts of the system as submodules and nothing else, so that a frozen teacher keeps its weights
and its evaluation mode, whatever the trainer does to the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from fedrag.errors import ConfigError, DataError
from fedrag.generators.causal import CausalLM
from fedrag.rag import RAGSystem
from fedrag.retrievers.nested import find
from fedrag.retrievers.reranked import Reranked
from fedrag.types import Document, Example, Retriever

Candidates = Callable[[Sequence[Example]], list[list[Document]]]
ExcludeIds = Callable[[Example], Collection[str]]


class Objective(nn.Module):
    """A loss over examples, for some parts of a RAG system.

    Args:
        rag: the system.
        parts: prefixes of the canonical part names that are trained, such as `retriever/query`.
        depth: documents retrieved per example; 0 when the objective needs none.
        exclude_ids: documents that must not be retrieved for an example: the passage that a question was made from,
            say, which asking will not have.

    Attributes:
        candidates: the documents for each example of a batch, best first. It retrieves; a trainer puts a
            look-up of what it retrieved beforehand in its place.
    """

    candidates: Candidates

    def __init__(
        self, rag: RAGSystem, *, parts: Sequence[str], depth: int, exclude_ids: ExcludeIds | None = None
    ) -> None:
        super().__init__()
        self.rag = rag
        self.depth = depth
        self.exclude_ids = exclude_ids
        self.candidates = self.find
        chosen = {name: part for name, part in rag.parts().items() if name.startswith(tuple(parts))}
        self.trained = nn.ModuleDict(chosen)
        if not self.trainable():
            raise ConfigError(
                f"{type(self).__name__} trains {' and '.join(parts)}, but the system has no parameter there that "
                f"requires a gradient; its parts are {sorted(rag.parts())}"
            )

    def forward(self, batch: Sequence[Example], return_loss: bool = True) -> dict[str, Any]:
        """Return the mean loss over the batch, with its graph, and numbers to log."""
        numbers = self.loss(batch)
        return numbers if return_loss else {name: number for name, number in numbers.items() if name != "loss"}

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The objective's own formula; see the class."""
        raise ConfigError(f"{type(self).__name__} has no formula: use one of the objectives in fedrag.objectives")

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that this objective moves, by canonical name: those of its parts that require a gradient."""
        return {
            f"{place}/{name}": parameter
            for place, part in self.trained.items()
            for name, parameter in part.named_parameters()
            if parameter.requires_grad
        }

    def find(self, examples: Sequence[Example]) -> list[list[Document]]:
        """The documents of each example, best first; here the `depth` best."""
        return self.retrieve(examples, self.depth)

    @property
    def reranks(self) -> bool:
        """Whether `find` takes just the `depth` best, so that a trainer may keep more and choose among them later."""
        return type(self).find is Objective.find

    def retrieve(self, examples: Sequence[Example], k: int) -> list[list[Document]]:
        """The k best documents per example, those that `exclude_ids` names left out.

        They are what the system's retriever finds, or its first stage, where the reranker is trained: it is to learn
        from what it will be given, and not from what it would have kept.
        """
        banned = [set(self.exclude_ids(example)) if self.exclude_ids else set[str]() for example in examples]
        spare = max(map(len, banned), default=0)
        found = self._source().retrieve([example.question for example in examples], k + spare)
        return [
            [hit.document for hit in hits if hit.document.id not in out][:k]
            for hits, out in zip(found, banned, strict=True)
        ]

    def _source(self) -> Retriever:
        reranked = find(self.rag.retriever, Reranked)
        return reranked.retriever if reranked is not None and "reranker" in self.trained else self.rag.retriever

    @property
    def generator(self) -> CausalLM:
        """The system's generator, which must be one that gives log-likelihoods."""
        return causal(self.rag, type(self).__name__)

    def answer_of(self, example: Example) -> str | None:
        """The answer that is put after prompts of this example's question; `None` where no prompt is made."""

    def answers(self, batch: Sequence[Example]) -> list[str]:
        """The answer of every example. Raises `DataError` where one has none that this objective could train on."""
        found = [answer for example in batch if (answer := self.answer_of(example)) is not None]
        if bare := len(batch) - len(found):
            raise DataError(
                f"{type(self).__name__} needs an answer to every question, {bare} of these {len(batch)} examples have "
                "none: leave them out, or train on their positives with Contrastive"
            )
        return found

    def check(self, examples: Sequence[Example]) -> None:
        """Raise `DataError`, before a run, for examples that a step of it could not use."""
        if type(self).answer_of is not Objective.answer_of:
            self.answers(examples)

    def at_step(self, step: int) -> None:
        """Told by the trainer before each optimiser step, `step` of them being done."""

    def extra_state(self) -> dict[str, Tensor]:
        """What a resumed run should not have to compute again; kept in checkpoints, empty for most objectives."""
        return {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `extra_state` gave."""

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Trade time for memory in the transformers models that are trained; called by `transformers.Trainer`."""
        models = self._networks()
        if not models:
            raise ConfigError(
                "gradient checkpointing is on, but none of the trained parts is a transformers model; "
                "leave gradient_checkpointing out of TrainingArguments"
            )
        for model in models:
            model.activation_checkpointing_enable(**settings)

    def activation_checkpointing_disable(self) -> None:
        """Take the trade back, so that a later run of another objective starts from the models as they were."""
        for model in self._networks():
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()  # which the line above does for some models only

    def _networks(self) -> list[PreTrainedModel]:
        found = [module for module in self.trained.modules() if isinstance(module, PreTrainedModel)]
        inner = {id(module) for model in found for module in model.modules() if module is not model}
        return [model for model in found if id(model) not in inner]


def causal(rag: RAGSystem, who: str) -> CausalLM:
    """The system's generator. Raises `ConfigError` for one that gives no log-likelihoods, as none behind an address."""
    if not isinstance(rag.generator, CausalLM):
        raise ConfigError(
            f"{who} needs a CausalLM, the system's generator is a {type(rag.generator).__name__}: give RAGSystem a "
            "CausalLM, or tune the retriever by what needs none (Contrastive, Distillation)"
        )
    return rag.generator


def first_answer(example: Example) -> str | None:
    """The first answer; the empty text where the right reaction is silence, `None` where no answer is known."""
    return None if example.answers is None else next(iter(example.answers), "")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise `ConfigError` for a setting that is none of its choices."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: it must be one of {', '.join(map(repr, choices))}")
