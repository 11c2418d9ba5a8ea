"""Measure how fast `CausalLM.logprobs` scores the K prompts of a query, and print one JSON object.

Claim: at K = 8 documents and a vocabulary of 32,000 at least 2.5 times as fast as a correct loop that runs one prompt
at a time. The gain of each trick is listed by adding them one by one:

    naive       one prompt at a time, logits and log-softmax of the whole text
    batched     all prompts of a batch together, in the order given, padded to the longest
    targets     + the output head at target positions only
    buckets     + batches of like lengths                          (`logprobs`)
    prefix      + the prefix shared by a query's prompts run once  (`logprobs(group=K)`)
    cache       the second epoch: scores remembered                (`CachedScorer`)

The longer the answer beside the prompt, the less there is to save: a token of it costs a row of logits in any case.
Every variant starts from the same texts and must give the same scores. All run once per round, in turning order;
times are CPU seconds of this process on one thread, ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedrag.generators.causal import CausalLM
from fedrag.generators.score_cache import CachedScorer
from fedrag.generators.scoring import padded
from fedrag.ops.likelihood import IGNORED, supervised, token_logprobs
from fedrag.prompts import Prompt
from fedrag.types import Document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=4, help="queries scored in one call (default: 4)")
    parser.add_argument("--documents", type=int, default=8, help="documents per query, K (default: 8)")
    parser.add_argument("--question", type=int, default=60, help="tokens of a question (default: 60)")
    parser.add_argument("--document", type=int, default=100, help="mean tokens of a document, +-40 %% (default: 100)")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer (default: 16)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="size of the vocabulary (default: 32000)")
    parser.add_argument("--width", type=int, default=256, help="width of the Llama (default: 256)")
    parser.add_argument("--layers", type=int, default=6, help="layers of the Llama (default: 6)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of every variant (default: 7)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = build(args.vocabulary, args.width, args.layers)
    prompts, targets = rows(lm, args.queries, args.documents, args.question, args.document, args.answer)
    lengths = [len(lm.prompt_ids(prompt)) for prompt in prompts]
    cached = CachedScorer(lm)
    variants: dict[str, Callable[[], Tensor]] = {
        "naive": lambda: naive(lm, prompts, targets),
        "batched": lambda: batched(lm, prompts, targets, select=False),
        "targets": lambda: batched(lm, prompts, targets, select=True),
        "buckets": lambda: lm.logprobs(prompts, targets),
        "prefix": lambda: lm.logprobs(prompts, targets, group=args.documents),
        "cache": lambda: cached.logprobs(prompts, targets, group=args.documents),
    }
    with torch.inference_mode():
        expected = variants["naive"]()
        error = {name: float((run() - expected).abs().max()) for name, run in variants.items()}
        if max(error.values()) > 1e-2:
            raise RuntimeError(f"the variants disagree with the naive loop: {error}")
        times = rounds(variants, args.rounds)
    names = list(variants)
    print(
        json.dumps(
            {
                "claim": "prefix at least 2.5 times as fast as naive",
                "settings": vars(args),
                "prompt_tokens": {"least": min(lengths), "most": max(lengths)},
                "largest_difference_to_naive": error,
                "times_as_fast_as_naive": {name: spread(times["naive"], times[name]) for name in names[1:]},
                "gain_of_each_trick": {name: spread(times[before], times[name]) for before, name in pairwise(names)},
                "cpu_milliseconds": {name: spread([1e3 * t for t in times[name]]) for name in names},
            },
            indent=2,
        )
    )


def build(vocabulary: int, width: int, layers: int) -> CausalLM:
    """Return a Llama with random weights over a vocabulary of words w0, w1, ..."""
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["<unk>", "</s>", *(f"w{i}" for i in range(vocabulary - 2))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=int(2.75 * width),
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    return CausalLM(LlamaForCausalLM(config), tokenizer)


def rows(lm: CausalLM, queries: int, k: int, question: int, document: int, answer: int) -> tuple[list[str], list[str]]:
    """Return prompts as `Prompt` writes them, K per query, and the query's answer beside each."""
    rng, vocabulary = random.Random(0), len(lm.tokenizer)

    def text(tokens: int) -> str:
        return " ".join(f"w{rng.randrange(vocabulary - 2)}" for _ in range(tokens))

    prompts: list[str] = []
    targets: list[str] = []
    for _ in range(queries):
        asked, wanted = text(question), text(answer)
        for _ in range(k):
            length = round(document * rng.uniform(0.6, 1.4))
            prompts.append(Prompt().render(asked, [Document(text(length))]))
            targets.append(wanted)
    return prompts, targets


def naive(lm: CausalLM, prompts: list[str], targets: list[str]) -> Tensor:
    """Score one pair at a time, as a careful person would first write it."""
    scores: list[Tensor] = []
    for prompt, target in zip(prompts, targets, strict=True):
        before, after = lm.prompt_ids(prompt), lm.target_ids(target)
        ids = torch.tensor([before + after])
        logprobs = lm.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)  # [t, v]
        scores.append(logprobs[len(before) - 1 : -1].gather(1, torch.tensor(after)[:, None]).sum())
    return torch.stack(scores)


def batched(lm: CausalLM, prompts: list[str], targets: list[str], *, select: bool) -> Tensor:
    """Score everything in one padded batch; with `select`, apply the head to the target positions only."""
    before, after = [lm.prompt_ids(p) for p in prompts], [lm.target_ids(t) for t in targets]
    ids, mask = padded([a + b for a, b in zip(before, after, strict=True)], lm.tokens.pad_id, lm.device)
    labels = torch.full(ids.shape, IGNORED)  # [n, t]
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        labels[i, len(a) : len(a) + len(b)] = torch.tensor(b)
    if select:
        states = lm.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        chosen, wanted, owners = supervised(states, labels)
        return _sum_rows(token_logprobs(lm.model.lm_head(chosen), wanted), owners, len(prompts))
    logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # [n, t, v]
    chosen, wanted, owners = supervised(logits.float().log_softmax(-1), labels)
    return _sum_rows(chosen.gather(1, wanted[:, None])[:, 0], owners, len(prompts))


def _sum_rows(values: Tensor, rows: Tensor, n: int) -> Tensor:
    return values.new_zeros(n).index_add(0, rows, values)  # [n]


def rounds(variants: dict[str, Callable[[], Tensor]], count: int) -> dict[str, list[float]]:
    """Return CPU seconds of every variant in every round."""
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(count):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.process_time()
            variants[name]()
            times[name].append(time.process_time() - began)
    return times


def spread(values: list[float], over: list[float] | None = None) -> dict[str, float]:
    """Median and quartiles, of values or of their ratios round by round."""
    if over is not None:
        values = [a / max(b, 1e-9) for a, b in zip(values, over, strict=True)]
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "low_quartile": round(low, 3), "high_quartile": round(high, 3)}


if __name__ == "__main__":
    main()
