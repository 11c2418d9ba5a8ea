"""Cross-encoders for the tests: a tiny random one, and one that counts and can be told what to think."""

from __future__ import annotations

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from tiny import tiny_tokenizer


def tiny_cross_encoder(seed: int = 0, *, labels: int = 1, dropout: float = 0.0) -> CrossEncoder:
    """A cross-encoder of two layers with random weights large enough to have opinions."""
    tokenizer = tiny_tokenizer("wordpiece")
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=128,
        dropout=dropout,
        attention_dropout=dropout,
        seq_classif_dropout=dropout,
        initializer_range=0.2,
        pad_token_id=0,
        num_labels=labels,
    )
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        DistilBertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return CrossEncoder(folder, device="cpu", max_length=64)


class Opinion:
    """Anything with `predict`: the scores of a function, and the number of pairs that it was asked for."""

    def __init__(self, score: Callable[[str, str], float]) -> None:
        self.score = score
        self.asked = 0

    def predict(self, inputs: list[tuple[str, str]]) -> Any:
        self.asked += len(inputs)
        return [self.score(question, text) for question, text in inputs]
