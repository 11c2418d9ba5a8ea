"""A causal language model as the generator of a RAG system: it writes answers, and scores them.

Any model of transformers that predicts the next token serves, whole, with LoRA adapters, or quantised. Prompts come
and answers go as text; ids, padding, chat templates and caches stay inside. Generation is greedy. Scores are
log-likelihoods, summed over the target's tokens and its end token, never probabilities: the probability of a long
answer is zero in float32.

Relations: `fedrag.generators.tokens` makes the ids, `fedrag.generators.scoring` the log-likelihoods,
`fedrag.generators.decoding` the text; `fedrag.generators.score_cache.CachedScorer` remembers scores.

>>> import torch
>>> from tokenizers import Tokenizer, models, pre_tokenizers
>>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
>>> words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Paris": 2, "Rome": 3}, unk_token="<unk>"))
>>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
>>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
>>> tiny = LlamaConfig(vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
...                    max_position_embeddings=32, bos_token_id=None, eos_token_id=1)
>>> generator = CausalLM(LlamaForCausalLM(tiny), tokenizer, max_new_tokens=4)
>>> generator.logprobs(["Paris or Rome ?"] * 2, ["Paris", "Rome"], group=2).shape
torch.Size([2])
>>> generator.generate(["Paris or Rome ?"]) == ["".join(generator.stream("Paris or Rome ?"))]
True
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedrag.errors import ConfigError, InputError
from fedrag.generators import loading
from fedrag.generators.decoding import Decoder, Mixed
from fedrag.generators.network import Network
from fedrag.generators.record import Record, read_record, write_record
from fedrag.generators.scoring import Pair, require_pairs, score
from fedrag.generators.tokens import Message, PromptTokenizer, check_room
from fedrag.ops.fingerprint import Fingerprint


class CausalLM(nn.Module):
    """Generate from, and score with, a causal language model. `Generator`, `MixtureGenerator`, `Scorer` and
    `Streamer` in one.

    `model`: a name, a path, or a model of transformers or peft, with its `tokenizer` (found by itself for a name or
    path). `lora`: the rank of new adapters, or their `LoraConfig`. `quantization`: a configuration of transformers,
    for weights that are read. `dtype=None`: as the weights are, but float32 for a model that is read whole, without
    adapters or quantisation, since small updates vanish in half precision ("auto": as they are). `chat=None`: the chat
    template is used when the tokenizer has one. `stop`: strings that end an answer. `max_length=None`: as many tokens
    as the model has positions, prompt and answer together. `batch_tokens`: tokens in one forward pass, padding
    included.

    The model stays in evaluation mode until somebody calls `train()`. Raises `ConfigError` for settings that do not
    go together, `MissingExtraError` for a quantisation whose library is absent.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        lora: int | LoraConfig | None = None,
        quantization: Any = None,
        dtype: torch.dtype | str | None = None,
        device: str | None = None,
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        chat: bool | None = None,
        max_length: int | None = None,
        batch_tokens: int = 16384,
    ) -> None:
        super().__init__()
        self._loaded = loading.load_model(model, lora=lora, quantization=quantization, dtype=dtype, device=device)
        self.model: Any = self._loaded.model
        base = self._loaded.base
        self.tokens = PromptTokenizer(tokenizer or loading.find_tokenizer(model, base), chat=chat)
        self.max_length = loading.count_positions(base, self.tokens.tokenizer) if max_length is None else max_length
        self.max_new_tokens = max_new_tokens
        self.stop = _strings("stop", stop)
        self.batch_tokens = batch_tokens
        for name, value in (
            ("max_new_tokens", max_new_tokens),
            ("max_length", self.max_length),
            ("batch_tokens", batch_tokens),
        ):
            if value < 1:
                raise ConfigError(f"{name}={value}: it must be at least 1")
        self._network = Network(base)
        self._weights = Fingerprint(self.model)
        self._decoder = Decoder(self._network, self.tokens, frozenset((self.tokens.eos_id, *loading.end_ids(base))))
        self._tunable = loading.trainable(self.model)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.tokens.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model takes its token ids."""
        return self._network.device

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a score: weights, active adapters, architecture, tokenizer, chat frame."""
        parts = [self._weights(), self.tokens.fingerprint, *loading.architecture(self._network.model)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> list[str]:
        """Return one greedy continuation per prompt, cut before the first stop string, without outer white space.

        Raises `BudgetError` for a prompt that leaves no room for `max_new_tokens`.
        """
        alone = [[prompt] for prompt in _strings("prompts", prompts)]
        return self.generate_mixture(alone, [[1.0]] * len(alone), max_new_tokens=max_new_tokens, stop=stop)

    def generate_mixture(
        self,
        prompts: Sequence[Sequence[str]],
        weights: Sequence[Sequence[float]],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | None = None,
    ) -> list[str]:
        """Return, per group of prompts, one text: greedy on the prompts' next-token distributions, mixed by `weights`.

        A group is never divided, even if it holds more than `batch_tokens`. Raises what `generate` raises.
        """
        steps, ending = self._plan(max_new_tokens, stop)
        if len(prompts) != len(weights):
            raise InputError(f"got {len(prompts)} groups of prompts and {len(weights)} of weights: give one per group")
        mixtures = [self._mixed(some, shares, steps) for some, shares in zip(prompts, weights, strict=True)]
        return self._decoder.texts(mixtures, steps, ending, self.batch_tokens)

    def stream(
        self, prompt: str, *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> Iterator[str]:
        """Return an iterator over the pieces of what `generate` returns; closing it ends the generation."""
        return self.stream_mixture([prompt], [1.0], max_new_tokens=max_new_tokens, stop=stop)

    def stream_mixture(
        self,
        prompts: Sequence[str],
        weights: Sequence[float],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | None = None,
    ) -> Iterator[str]:
        """Return an iterator over the pieces of what `generate_mixture` returns for one group."""
        steps, ending = self._plan(max_new_tokens, stop)
        return self._decoder.pieces(self._mixed(prompts, weights, steps), steps, ending)

    def chat(
        self, messages: Sequence[Message], *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> Iterator[str]:
        """Return an iterator over the pieces of the answer to messages, as `PromptTokenizer.chat_ids` writes them."""
        steps, ending = self._plan(max_new_tokens, stop)
        ids = self.tokens.chat_ids(messages)
        check_room(len(ids), steps, self.max_length, what="messages have", cure="leave out the oldest messages")
        return self._decoder.pieces(Mixed([ids], [1.0]), steps, ending)

    def logprobs(self, prompts: Sequence[str], targets: Sequence[str], *, group: int = 1) -> Tensor:
        """Return `[n]` sums of log p(target, end token | prompt), float32, differentiable in the current grad mode.

        `group` consecutive prompts belong to one query: without gradient, what they have in common at their start is
        computed once. Raises `BudgetError` for a pair longer than `max_length`.
        """
        return self.token_logprobs(prompts, targets, group=group)[0].sum(-1)

    def token_logprobs(
        self, prompts: Sequence[str], targets: Sequence[str], *, group: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return what `logprobs` sums, token by token: `[n, t]`, and the mask `[n, t]` of tokens that are real.

        Where the mask is false, behind the end token of a shorter target, the value is 0.
        """
        prompts, targets = _strings("prompts", prompts), _strings("targets", targets)
        require_pairs(prompts, targets, group)
        pairs: list[Pair] = []
        for prompt, target in zip(prompts, targets, strict=True):
            ids = self.target_ids(target)
            pairs.append(Pair(self._fitting(prompt, len(ids)), ids))
        found = score(self._network, pairs, group=group, pad=self.tokens.pad_id, batch_tokens=self.batch_tokens)
        lengths = torch.tensor([len(pair.target) for pair in pairs], device=found.device)
        return found, torch.arange(found.shape[1], device=found.device) < lengths[:, None]

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, with its chat frame; control tokens in its text have become plain text."""
        return self.tokens.prompt_ids(prompt)

    def target_ids(self, target: str) -> list[int]:
        """Return the ids of an answer that follows a prompt, its end token included."""
        return self.tokens.target_ids(target)

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return self.tokens.count(text)

    def cut(self, text: str, tokens: int) -> str:
        """Return the longest prefix of a text that ends with a token and has at most `tokens` of them."""
        return self.tokens.cut(text, tokens)

    def save(self, path: str | Path) -> None:
        """Write a folder that transformers (peft, for adapters) loads without fedrag, and `CausalLM.load` with it."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        # a trainer may have frozen for a while what was tunable when this was made
        base_tunable = loading.outside_adapters(self.model, sorted(self._tunable | loading.trainable(self.model)))
        record = Record(
            quantization=loading.save_model(self._loaded, self.tokenizer, folder, base_trains=bool(base_tunable)),
            dtype=str(self._loaded.base.dtype).removeprefix("torch."),
            tunable=bool(self._tunable),
            base_tunable=base_tunable,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            chat=self.tokens.chat,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
        )
        write_record(folder, record)

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> CausalLM:
        """Read what `save` wrote, in the precision that it had.

        Raises `StoreError` for a folder that is something else, damaged or of a newer format, and for adapters whose
        base model cannot be found.
        """
        saved = read_record(Path(path))
        generator = cls(
            path,
            quantization=loading.read_quantization(saved.quantization, Path(path)),
            dtype=saved.dtype,
            device=device,
            max_new_tokens=saved.max_new_tokens,
            stop=saved.stop,
            chat=saved.chat,
            max_length=saved.max_length,
            batch_tokens=saved.batch_tokens,
        )
        if not saved.tunable:
            generator.model.requires_grad_(False)
        loading.unfreeze(generator.model, saved.base_tunable, Path(path))
        generator._tunable = loading.trainable(generator.model)
        return generator

    def _plan(self, max_new_tokens: int | None, stop: Sequence[str] | None) -> tuple[int, tuple[str, ...]]:
        steps = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if steps < 1:
            raise InputError(f"max_new_tokens={steps}: it must be at least 1")
        return steps, self.stop if stop is None else _strings("stop", stop)

    def _fitting(self, prompt: str, reserve: int) -> list[int]:
        ids = self.prompt_ids(prompt)
        cure = "shorten the documents (Prompt.fit does)" if reserve <= len(ids) else "shorten the answer"
        check_room(len(ids), reserve, self.max_length, what="prompt has", cure=cure)
        return ids

    def _mixed(self, prompts: Sequence[str], weights: Sequence[float], reserve: int) -> Mixed:
        return Mixed([self._fitting(prompt, reserve) for prompt in _strings("prompts", prompts)], weights)


def _strings(name: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise InputError(
            f"{name} takes a sequence of strings, got a string of {len(values)} characters: wrap it in a list"
        )
    if name == "stop" and "" in values:
        raise InputError("stop holds an empty string, which would end every answer at once: leave it out")
    return tuple(values)
