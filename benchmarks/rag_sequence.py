"""Measure a training step of RAG-Sequence for 1, 2, 4 and 8 documents per question, and print one JSON object.

Claim: the peak memory of a step at K=8 is at most 1.5 times that at K=1, at equal loss and gradient to reading all
documents at once (`chunk=None`).

Memory is the growth of a fresh process during one step, at its peak, over what it has with gradients already there
(Linux). glibc keeps what is freed and uses little of it again for tensors of a megabyte (its `posix_memalign` wants a
bit more room than what it freed), so that a process grows although its tensors do not. For the claim it is told to give
large blocks back (`MALLOC_MMAP_THRESHOLD_=131072`, which costs time: none of the times is measured so); the peaks of
glibc as it comes are told beside. A GPU's allocator has no such trouble.

The generator is one whose activations outweigh its weights: 8 questions, prompts of 150 tokens. Times are CPU seconds
of this process on one thread; variants run once per round in turning order. Reading a piece twice is the price of flat
memory: 4/3 of the work at most, and (4K - 1) / 3K with K pieces, as the last one is read once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lm_scoring import spread
from lsr_step import encoder, rows, tokenizer
from ralt_step import resident
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from fedrag import CausalLM, DenseRetriever, Example, MemoryStore, RAGSystem, SentenceEncoder
from fedrag.objectives.marginal import RAGSequence

DOCUMENTS = (1, 2, 4, 8)
LIMIT = 1.5


class Step:
    """One forward and backward pass over a batch, for a number of documents, in chunks of one or all at once."""

    def __init__(self, args: argparse.Namespace) -> None:
        examples, documents = rows(args.queries, max(DOCUMENTS), args.words)
        self.examples: list[Example] = examples
        retriever = DenseRetriever(SentenceEncoder(encoder(2, 128)), MemoryStore())
        retriever.add([document for row in documents for document in row], progress=False)
        torch.manual_seed(1)
        size = {"hidden_size": args.width, "intermediate_size": 4 * args.width, "num_hidden_layers": args.layers}
        llama = LlamaForCausalLM(
            LlamaConfig(**size, vocab_size=len(tokenizer()), num_attention_heads=4, eos_token_id=2)
        )
        rag = RAGSystem(retriever=retriever, generator=CausalLM(llama, tokenizer()))
        self.objective = RAGSequence(rag, k=max(DOCUMENTS)).train()
        self.moving = self.objective.trainable()
        for name, parameter in rag.named_parameters().items():
            parameter.requires_grad_(name in self.moving)
        self.documents = documents

    def __call__(self, k: int, chunk: int | None) -> float:
        """Make one step; return the loss."""
        self.objective.chunk = chunk
        self.objective.candidates = lambda _: [row[:k] for row in self.documents]
        loss: Tensor = self.objective(self.examples)["loss"]
        loss.backward()
        return loss.item()

    def gradient(self, k: int, chunk: int | None) -> tuple[float, Tensor]:
        """The loss, and all gradients in one vector."""
        self.objective.zero_grad()
        torch.manual_seed(0)  # the encoder has dropout
        loss = self(k, chunk)
        return loss, torch.cat([p.grad.flatten() for p in self.moving.values() if p.grad is not None])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each kind (default: 5)")
    parser.add_argument("--queries", type=int, default=8, help="questions in a batch (default: 8)")
    parser.add_argument("--words", type=int, default=120, help="tokens in a document (default: 120)")
    parser.add_argument("--layers", type=int, default=6, help="layers of the generator (default: 6)")
    parser.add_argument("--width", type=int, default=128, help="width of the generator (default: 128)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    step = Step(args)
    if args.peak:
        k, chunk = (int(part) for part in args.peak.split(","))
        for parameter in step.moving.values():
            parameter.grad = torch.ones_like(parameter)  # resident, as after the first step
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building
        step(k, chunk or None)
        print(round(resident("VmHWM") - before, 1))
        return 0
    kinds: list[tuple[int, int | None]] = [(k, chunk) for k in DOCUMENTS for chunk in ((1, None) if k > 1 else (1,))]
    found = {kind: step.gradient(*kind) for kind in kinds}
    worst = 0.0
    for k in DOCUMENTS[1:]:
        (loss, chunked), (other, whole) = found[k, 1], found[k, None]
        worst = max(worst, abs(loss - other) / abs(other), float((chunked - whole).norm() / whole.norm()))
    if worst > 1e-4:
        raise RuntimeError(f"reading in chunks and all at once differ by {worst}")
    times: dict[tuple[int, int | None], list[float]] = {kind: [] for kind in kinds}
    for turn in tqdm(range(args.rounds), desc="rounds", unit="round"):
        for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
            step.objective.zero_grad()
            began = time.process_time()
            step(*kind)
            times[kind].append(time.process_time() - began)
    returning = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    peaks = {kind: peak(*kind, **returning) for kind in kinds}
    kept = {kind: peak(*kind) for kind in kinds if kind in ((1, 1), (8, 1), (8, None))}
    ratio = round(peaks[8, 1] / peaks[1, 1], 3)
    result = {
        "claim": f"the peak of a step with 8 documents is at most {LIMIT} of that with one",
        "holds": ratio <= LIMIT,
        "peak_of_8_over_peak_of_1": ratio,
        "the_same_without_chunks": round(peaks[8, None] / peaks[1, 1], 3),
        "peak_megabytes_of_a_step": named(peaks),
        "peak_of_8_over_peak_of_1_where_glibc_keeps_what_is_freed": round(kept[8, 1] / kept[1, 1], 3),
        "peak_megabytes_where_glibc_keeps_what_is_freed": named(kept),
        "seconds_of_a_step": named({kind: spread(values) for kind, values in times.items()}),
        "chunked_over_whole": {f"K={k}": spread(times[k, 1], times[k, None]) for k in DOCUMENTS[1:]},
        "losses": named({kind: round(loss, 5) for kind, (loss, _) in found.items()}),
        "largest_relative_difference_of_loss_or_gradient": worst,
        "settings": {key: value for key, value in vars(args).items() if key != "peak"},
        "weights_of_the_generator_megabytes": round(
            sum(p.numel() * 4 for name, p in step.moving.items() if name.startswith("generator")) / 1e6, 1
        ),
    }
    print(json.dumps(result, indent=2))
    return 0 if result["holds"] else 1


def named(values: dict[tuple[int, int | None], Any]) -> dict[str, Any]:
    """The values under readable names."""
    return {f"K={k}, {'all at once' if chunk is None else f'chunk={chunk}'}": v for (k, chunk), v in values.items()}


def peak(k: int, chunk: int | None, **environment: str) -> float:
    """Return the peak memory in MB of a fresh process that makes one step."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", f"{k},{chunk or 0}"]
    variables = os.environ | environment
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout)


if __name__ == "__main__":
    sys.exit(main())
