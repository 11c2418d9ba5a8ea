from __future__ import annotations

import argparse
import inspect

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from fedrag.errors import InputError
from fedrag.quickstart.static_encoder import static_encoder


def test_the_encoder_is_the_same_again() -> None:
    texts = inspect.getsource(argparse).splitlines()
    one, two, other = (static_encoder(texts, width=16, vocabulary=600, seed=seed) for seed in (3, 3, 4))
    assert isinstance(one[0], StaticEmbedding)
    assert one[0].tokenizer.get_vocab() == two[0].tokenizer.get_vocab()
    assert len(one[0].tokenizer.get_vocab()) == 600
    assert torch.equal(one[0].embedding.weight, two[0].embedding.weight)
    assert not torch.equal(one[0].embedding.weight, other[0].embedding.weight)
    assert one.encode(["Return the file."]).shape == (1, 16)


def test_rare_pieces_have_long_vectors() -> None:
    texts = [f"the {word}" for word in ("mean", "file", "array", "thread", "socket", "queue")]
    encoder = static_encoder(texts, width=512, idf=True)
    ids = encoder[0].tokenizer.get_vocab()
    lengths = encoder[0].embedding.weight.detach().norm(dim=1)
    expected = torch.tensor(6 / 7).log1p() / torch.tensor(6 / 2).log1p()
    assert lengths[ids["the"]] / lengths[ids["mean"]] == pytest.approx(expected.item(), rel=0.15)


def test_an_encoder_needs_text() -> None:
    with pytest.raises(InputError, match="got none"):
        static_encoder([])
