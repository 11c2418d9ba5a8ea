"""Smoke test and throughput on a GPU: scoring, RALT and RAG-Sequence at a size that uses it. Prints one JSON object.

    make gpu                                                   # needs CUDA; the figures go to benchmarks/results/
    python benchmarks/device/throughput.py --device cpu --size tiny      # the same code, to see that it runs

Measured, each in one interleaved run, with the ratio taken within a round:

    scoring        pairs per second of `logprobs(group=K)`, and over a loop that scores one prompt at a time
    ralt           tokens per second of a RALT step (forward, backward), and over TRL's fused head on the same rows
    rag_sequence   milliseconds of a RAGSequence step at K = 8, one by one and all at once, peak memory of both

Weights are random: throughput does not depend on them. Before anything is timed, every variant must agree with the
simple one on scores or loss. The device's name is in the output; no figure of one device says anything about another.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

sys.path.insert(0, str(Path(__file__).parents[1]))
from lm_scoring import build, naive, spread
from lm_scoring import rows as scoring_rows
from ralt_step import rows as ralt_rows
from ralt_step import variants as ralt_variants

from fedrag import DenseRetriever, Document, Example, MemoryStore, RAGSequence, RAGSystem, SentenceEncoder
from fedrag.generators.causal import CausalLM

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"vocabulary": 500, "width": 64, "layers": 2, "rows": 4, "tokens": 64, "document": 24},
    "1b": {"vocabulary": 128_000, "width": 2048, "layers": 16, "rows": 32, "tokens": 512, "document": 160},
}
K = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--size", choices=SIZES, default="1b", help="size of the Llama (default: 1b, in bfloat16)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of every variant (default: 7)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is to be had: run this on a machine with one, or pass --device cpu --size tiny")
    size = SIZES[args.size]
    lm = build(size["vocabulary"], size["width"], size["layers"])
    if args.size != "tiny":
        lm.model.to(torch.bfloat16)
    lm.model.to(args.device)
    on_gpu = args.device == "cuda"
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name() if on_gpu else "cpu",
                "torch": torch.__version__,
                "size": {"name": args.size, **size, "dtype": str(lm.model.dtype)},
                "scoring": scoring(lm, size, args.rounds),
                "ralt": ralt(lm, size, args.rounds),
                "rag_sequence": rag_sequence(lm, size, args.rounds),
            },
            indent=2,
        )
    )


def scoring(lm: CausalLM, size: dict[str, int], rounds: int) -> dict[str, Any]:
    """Pairs per second, and the ratio to the naive loop."""
    prompts, targets = scoring_rows(lm, 4, K, 60, size["document"], 16)
    with torch.no_grad():
        expected, got = naive_on(lm, prompts, targets), lm.logprobs(prompts, targets, group=K)
        agree(expected, got, lm)
        times = interleaved(
            {
                "naive": lambda: naive_on(lm, prompts, targets),
                "ours": lambda: lm.logprobs(prompts, targets, group=K),
            },
            rounds,
        )
    rate = [len(prompts) / seconds for seconds in times["ours"]]
    return {"pairs_per_second": spread(rate), "naive_over_ours": spread(times["naive"], times["ours"])}


def naive_on(lm: CausalLM, prompts: list[str], targets: list[str]) -> torch.Tensor:
    """The naive loop of `lm_scoring`, its tensors on the model's device."""
    with torch.device(lm.device):
        return naive(lm, prompts, targets)


def ralt(lm: CausalLM, size: dict[str, int], rounds: int) -> dict[str, Any]:
    """Tokens per second of forward and backward, and the ratio to TRL's fused head."""
    prompts, targets = ralt_rows(size["rows"], size["tokens"], 0.3, size["vocabulary"])
    with torch.device(lm.device):
        steps = ralt_variants(lm, prompts, targets)
    losses = {name: steps[name]().detach() for name in ("ours", "trl")}
    agree(losses["trl"], losses["ours"], lm)

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            lm.model.zero_grad()
            steps[name]().backward()

        return run

    times = interleaved({name: step(name) for name in losses}, rounds)
    tokens = sum(len(lm.prompt_ids(p)) + len(lm.target_ids(t)) for p, t in zip(prompts, targets, strict=True))
    return {
        "tokens_per_second": spread([tokens / seconds for seconds in times["ours"]]),
        "trl_over_ours": spread(times["trl"], times["ours"]),
    }


def rag_sequence(lm: CausalLM, size: dict[str, int], rounds: int) -> dict[str, Any]:
    """Milliseconds and peak memory of a step over K documents, in pieces and at once."""
    prompts, targets = scoring_rows(lm, 8, K, 60, size["document"], 16)
    backend = lm.tokenizer.backend_tokenizer
    vectors = torch.randn(size["vocabulary"], 64, generator=torch.Generator().manual_seed(0))
    modules = [StaticEmbedding(backend, embedding_weights=vectors), Normalize()]
    encoder = SentenceEncoder(SentenceTransformer(modules=modules, device=str(lm.device)))
    rag = RAGSystem(retriever=DenseRetriever(encoder, MemoryStore()), generator=lm, top_k=K)
    rag.add([Document(prompt) for prompt in prompts], progress=False)
    batch = [Example(prompts[i][:200], [targets[i]]) for i in range(0, len(prompts), K)]
    steps = {"document_by_document": RAGSequence(rag, k=K, chunk=1), "at_once": RAGSequence(rag, k=K, chunk=None)}
    losses = {name: objective(batch)["loss"].detach() for name, objective in steps.items()}
    agree(losses["at_once"], losses["document_by_document"], lm)
    peaks: dict[str, float] = {}

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            lm.model.zero_grad()
            if lm.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            steps[name](batch)["loss"].backward()
            if lm.device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated() / 1e9

        return run

    times = interleaved({name: step(name) for name in steps}, rounds)
    return {
        "milliseconds": {name: spread([1e3 * t for t in seconds]) for name, seconds in times.items()},
        "peak_gigabytes": peaks,
    }


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return wall seconds of every variant in every round, after one round to warm up."""
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            variants[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def agree(expected: torch.Tensor, got: torch.Tensor, lm: CausalLM) -> None:
    """Stop when two variants differ by more than the model's precision."""
    tolerance = 5e-2 if lm.model.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(got.float().cpu(), expected.float().cpu(), rtol=tolerance, atol=tolerance)


if __name__ == "__main__":
    main()
