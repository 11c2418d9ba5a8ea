"""Any sentence-transformers loss as an objective, so that the library's whole collection trains a RAG system.

SentenceLoss(rag, lambda model: MultipleNegativesRankingLoss(model, scale=20))
SentenceLoss(rag, MarginMSELoss, labels=lambda batch: torch.tensor([e.metadata["margin"] for e in batch]))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from fedrag.errors import ConfigError, DataError
from fedrag.objectives.objective import Objective
from fedrag.objectives.towers import sentence_encoder
from fedrag.rag import RAGSystem
from fedrag.types import Example


class SentenceLoss(Objective):
    """Train the retriever's encoder with a loss of sentence-transformers.

    Inputs: the columns (question, first positive, negatives...); every example of a batch must have as many
    negatives as the others.

    Args:
        rag: the system.
        loss: makes the loss from the encoder's `SentenceTransformer`.
        labels: makes the loss's labels `[n]` or `[n, columns - 1]` from the examples, for losses that take some.
    """

    def __init__(
        self,
        rag: RAGSystem,
        loss: Callable[[SentenceTransformer], nn.Module],
        *,
        labels: Callable[[Sequence[Example]], Tensor] | None = None,
    ) -> None:
        encoder = sentence_encoder(rag.dense.encoder, "SentenceLoss")
        super().__init__(rag, parts=["retriever/"], depth=0)
        made = loss(encoder.model)
        own = set(encoder.parameters())
        if any(parameter.requires_grad and parameter not in own for parameter in made.parameters()):
            raise ConfigError(
                f"{type(made).__name__} has weights of its own, which would be lost after training; "
                "use a loss that trains the encoder alone, or freeze them (a guide model, say)"
            )
        self.made = (made,)  # in a tuple: the encoder's weights are in `trained` already
        self.labels = labels

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """What the wrapped loss returns."""
        model = self.rag.dense.encoder.model
        columns = [("query", [example.question for example in batch])]
        width = {len(example.negatives) for example in batch}
        if len(width) > 1 or any(not example.positives for example in batch):
            raise DataError(
                "SentenceLoss needs a positive and equally many negatives for every example of a batch, got "
                f"{sorted(width)} negatives and {sum(not example.positives for example in batch)} without a positive"
            )
        for place in range(-1, width.pop()):
            ids = [example.positives[0] if place < 0 else example.negatives[place] for example in batch]
            columns.append(("document", [document.text for document in self.rag.dense.store.get(ids)]))
        features = [self._features(model, task, texts) for task, texts in columns]
        labels = None if self.labels is None else self.labels(batch).to(model.device)
        result: Tensor | dict[str, Tensor] = self.made[0](features, labels)
        return {"loss": sum(result.values(), start=Tensor([0.0]).sum()) if isinstance(result, dict) else result}

    def _features(self, model: SentenceTransformer, task: str, texts: Sequence[str]) -> dict[str, Any]:
        prompt = self.rag.dense.encoder.prompt(task)
        features = model.preprocess(list(texts), prompt=prompt, task=task)
        return {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in features.items()}
