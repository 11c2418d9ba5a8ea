"""Time Contrastive against a plain sentence-transformers script on the same rows, and print one JSON object.

Claim: Contrastive takes at most 1.05 of the CPU time of `SentenceTransformerTrainer` with
`MultipleNegativesRankingLoss`, on the same pairs, steps, batches, rate and seed, where both keep freed memory.

Each run is a fresh process on one thread: it makes the untrained encoder of the real-text experiment, trains 128 pairs
a step and embeds the store again, and counts the CPU seconds of that. A step of a static encoder makes and frees
gradients of 16 MB. Whether glibc gives such memory back to the system and pays to get it again, depends on what happens
to lie behind it in the heap, and costs up to a fifth of the time. So both run twice: with glibc as it comes, and with
glibc told to keep it (`MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_`). The claim is of the second.
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
from tqdm import tqdm

LIMIT = 1.05  # what one run differs from the next by
SIDES = {"contrastive": "contrastive", "sentence_transformers": "sentence-transformers, plain"}
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


def train(side: str, steps: int) -> tuple[float, dict[str, float]]:
    """Train one side; return the CPU seconds of it, and what the tuned retriever finds."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
    import real_text

    torch.set_num_threads(1)
    rag = real_text.make(0, size="quick")
    settings: dict[str, Any] = dict(real_text.ways(steps)[SIDES[side]])
    began = time.process_time()
    real_text.run(rag, 0, size="quick", **settings)
    seconds = time.process_time() - began
    report = real_text.measure(rag, 0, size="quick")[real_text.SETTING]
    return seconds, {name: report.metrics[name].mean for name in ("recall@1", "recall@10")}


def run(side: str, steps: int, environment: dict[str, str]) -> tuple[float, dict[str, float]]:
    """`train` in a fresh process."""
    command = [sys.executable, __file__, "--steps", str(steps), "--side", side]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment).stdout
    seconds, found = json.loads(told.splitlines()[-1])
    return seconds, found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind (default: 5)")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of a run (default: 100)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(train(args.side, args.steps)))
        return 0
    kinds = [(side, kept) for kept in (False, True) for side in SIDES]
    seconds: dict[tuple[str, bool], list[float]] = {kind: [] for kind in kinds}
    found: dict[str, dict[str, float]] = {}
    for turn in tqdm(range(args.rounds), desc="rounds", unit="round"):
        for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
            side, kept = kind
            took, found[side] = run(side, args.steps, KEPT if kept else {})
            seconds[kind].append(took)
    ours, theirs = SIDES
    ratio = {kept: spread(seconds[ours, kept], seconds[theirs, kept]) for kept in (False, True)}
    result = {
        "claim": f"Contrastive takes at most {LIMIT} of the CPU time of sentence-transformers' own trainer",
        "holds": ratio[True]["median"] <= LIMIT,
        "ours_over_theirs_where_glibc_keeps_what_is_freed": ratio[True],
        "ours_over_theirs_with_glibc_as_it_comes": ratio[False],
        "cpu_seconds": {
            f"{side}, {'kept' if kept else 'as it comes'}": spread(seconds[side, kept]) for side, kept in kinds
        },
        "found": found,
        "settings": {"rounds": args.rounds, "steps": args.steps},
    }
    print(json.dumps(result, indent=2))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
