"""Any sentence-transformers cross-encoder as a reranker: a model that reads question and document together.

It judges better than the inner product of two vectors, and each pair costs a pass, so that it orders the few
documents that a first stage found (`fedrag.retrievers.reranked`).

    reranker = CrossEncoderReranker("cross-encoder/ms-marco-MiniLM-L6-v2")
    reranker.scores(["which key?"], [[Document("the key is under the mat"), Document("a river")]])     # [1, 2]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedrag.encoders.sentence import plain, ready
from fedrag.errors import ConfigError, InputError
from fedrag.ops.fingerprint import Fingerprint
from fedrag.types import Document


class CrossEncoderReranker(nn.Module):
    """Scores of (query, document) pairs, differentiable in the current grad mode.

    A score is the model's logit, before the sigmoid that most of them end with: the order is the same, and a softmax
    over candidates has something to work on. Of a pair that is longer than the model reads, the end is cut off, the
    document's first.

    Args:
        model: a hub name, a folder, or a `CrossEncoder`.
        batch_size: pairs scored at a time.
        device: where to put it; `None` leaves it to sentence-transformers.

    Raises:
        ConfigError: for a model that gives more than one number for a pair.
    """

    def __init__(self, model: str | Path | CrossEncoder, *, batch_size: int = 32, device: str | None = None) -> None:
        super().__init__()
        if not isinstance(model, CrossEncoder):
            model = CrossEncoder(str(model), device=device)
        elif device is not None:
            model = model.to(device)
        if model.num_labels != 1:
            raise ConfigError(
                f"a reranker gives one score per pair, this CrossEncoder has {model.num_labels} labels: take one with "
                "a single label, or make one by CrossEncoder(name, num_labels=1)"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: it must be at least 1")
        self.model = model
        self.batch_size = batch_size
        self._weights = Fingerprint(model)
        self.eval()

    def scores(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> Tensor:
        """Score each query's own candidates: `[n, k]` float32, `-inf` where a query has fewer than k.

        Raises:
            InputError: unless there is one non-empty list of documents per query.
        """
        if len(queries) != len(documents) or not all(documents):
            raise InputError(
                f"scores() takes one non-empty list of documents per query, got {len(queries)} queries and lists of "
                f"lengths {[len(row) for row in documents]}"
            )
        if not queries:
            return torch.empty(0, 0)
        pairs = [(plain(q), plain(d.text)) for q, row in zip(queries, documents, strict=True) for d in row]
        # long with long and short with short, so that little is padding
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        starts = range(0, len(order), self.batch_size)
        flat = torch.cat([self._logits([pairs[i] for i in order[at : at + self.batch_size]]) for at in starts])  # [s]
        back = torch.tensor(order, device=flat.device).argsort()
        rows = flat[back].split([len(row) for row in documents])
        return pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        return self._weights()

    def save(self, path: str | Path) -> None:
        """Write a folder that needs nothing else to be read, here or by `CrossEncoder(path)`."""
        self.model.save(str(path), create_model_card=False)

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> CrossEncoderReranker:
        """Read what `save` wrote."""
        return cls(path, device=device)

    def _logits(self, pairs: list[tuple[str, str]]) -> Tensor:
        name = self.model.default_prompt_name
        features = self.model.preprocess(pairs, prompt=self.model.prompts.get(name) if name else None)
        return self.model(ready(features, self.model.device))["scores"].reshape(len(pairs)).float()
