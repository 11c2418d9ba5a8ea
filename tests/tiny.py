"""Tiny but real models for the tests: random weights, no download, each in well under a second.

Every function is deterministic: the same arguments give the same vocabulary and the same weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

Kind = Literal["bpe", "metaspace", "wordpiece", "word"]

TEXT = """The capital of France is Paris . The capital of Italy is Rome . Paris lies on the Seine .
The quick brown fox jumps over the lazy dog . Question : Who wrote the book ? Answer : Ada wrote the book in Rome .
Documents say what they say ; a reader answers from them . The river is long , the road is longer .
Keys are rotated every month by the clerk in room 12 . The clerk of 2019 was called Bruno ."""
"""What the tokenizers are trained on: any text can be encoded, these words cheaply."""

CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A ChatML template, whose control tokens `tiny_tokenizer(chat=True)` knows."""


@cache
def _backend(kind: Kind, vocab: int, specials: tuple[str, ...]) -> str:
    if kind == "word":
        words = sorted(set(TEXT.split()))
        backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*specials, *words])}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(list(specials))
        return backend.to_str()
    if kind == "wordpiece":
        # written down and not trained: a trained one differs from process to process
        letters = sorted({letter.lower() for letter in _printable()})
        pieces = [*specials, *letters, *(f"##{letter}" for letter in letters)]
        words = sorted(set(TEXT.lower().split()) - set(letters))
        vocabulary = {piece: i for i, piece in enumerate([*pieces, *words][:vocab])}
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(cleanup=False)
        backend.add_special_tokens(list(specials))
        return backend.to_str()
    backend = Tokenizer(models.BPE(unk_token="<unk>" if kind == "metaspace" else None))
    if kind == "bpe":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        alphabet = _printable()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(specials), show_progress=False, initial_alphabet=sorted(alphabet)
    )
    backend.train_from_iterator(TEXT.split("\n"), trainer)
    return backend.to_str()


def _printable() -> list[str]:
    return [chr(c) for c in range(33, 127)]


def tiny_tokenizer(kind: Kind = "bpe", *, chat: bool = False, bos: bool = False, vocab: int = 400) -> Any:
    """A fast tokenizer trained on `TEXT`: byte-level BPE, SentencePiece-like BPE, WordPiece or word-level.

    `bos` makes it put `<s>` before every text; `chat` gives it ChatML control tokens and template. `<pad>` is 0.
    """
    specials = ("<pad>", "<s>", "</s>", "<unk>", *(("<|im_start|>", "<|im_end|>") if chat else ()))
    backend = Tokenizer.from_str(_backend(kind, vocab, specials))
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if chat:
        tokenizer.eos_token = "<|im_end|>"
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|im_start|>"]}, replace_extra_special_tokens=False
        )
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(
    vocab: int = 400, seed: int = 0, *, width: int = 32, layers: int = 2, positions: int = 512, **settings: Any
) -> LlamaForCausalLM:
    """A Llama in eval mode with random weights large enough to have opinions; `settings` go to `LlamaConfig`."""
    config = LlamaConfig(
        **{
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": positions,
            "initializer_range": 0.2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **settings,
        }
    )
    return seeded(LlamaForCausalLM, config, seed)


def tiny_lfm2(vocab: int = 400, seed: int = 0, *, width: int = 32, positions: int = 512) -> Lfm2ForCausalLM:
    """An LFM2 in eval mode: convolution and attention layers, so a cache that is not keys and values only."""
    config = Lfm2Config(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        layer_types=["conv", "conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
        max_position_embeddings=positions,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return seeded(Lfm2ForCausalLM, config, seed)


def seeded(model_class: Any, config: Any, seed: int = 0) -> Any:
    """Build `model_class(config)` in eval mode from a seed, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()


def tiny_sentence_transformer(
    seed: int = 0, *, width: int = 32, kind: Literal["bert", "static"] = "bert", dropout: float = 0.0
) -> SentenceTransformer:
    """A sentence-transformers model with unit vectors: 2 DistilBERT layers and mean pooling, or a static embedding."""
    tokenizer = tiny_tokenizer("wordpiece")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "static":
            weights = torch.randn(len(tokenizer), width)
            modules: list[Any] = [StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()]
            return SentenceTransformer(modules=modules, device="cpu").eval()
        config = DistilBertConfig(
            vocab_size=len(tokenizer),
            dim=width,
            n_layers=2,
            n_heads=4,
            hidden_dim=2 * width,
            max_position_embeddings=128,
            dropout=dropout,
            attention_dropout=dropout,
            initializer_range=0.2,
            pad_token_id=0,
        )
        with TemporaryDirectory() as folder:
            DistilBertModel(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            body = Transformer(str(Path(folder)), max_seq_length=64)
        modules = [body, Pooling(width, pooling_mode="mean"), Normalize()]
        return SentenceTransformer(modules=modules, device="cpu").eval()
