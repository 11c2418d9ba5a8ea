"""Measure a training step of the generator on retrieved passages, and print one JSON object.

Claims, at width 512, a vocabulary of 32,000 and 30 % of the tokens supervised, all at equal loss:

    full / ours   the step of transformers, which makes logits of every position     >= 2
    trl / ours    the fused head that TRL's `SFTTrainer` trains with (its loss "nll",
                  called "chunked_nll" before 1.16), on the same rows                >= 1

A step is forward and backward; ours goes through `CausalLM.logprobs` and starts from texts, the others start from the
same rows as padded tensors. `selected` is the least that the same arithmetic can cost: the body, the supervised
states, the head, without the library. On a CPU TRL's kernel scores all positions in tiles, on a GPU supervised ones.

Variants run once per round in turning order; times are CPU seconds of this process on one thread, ratios are taken
within a round. Memory is the growth of a fresh process during one step, at its peak, gradients already there (Linux).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lm_scoring import build, spread
from torch import Tensor

from fedrag.generators.causal import CausalLM
from fedrag.generators.scoring import padded
from fedrag.ops.likelihood import IGNORED, supervised, token_logprobs

NAMES = ("ours", "selected", "trl", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8, help="rows of a step (default: 8)")
    parser.add_argument("--tokens", type=int, default=128, help="mean tokens of a row, +-20 %% (default: 128)")
    parser.add_argument("--supervised", type=float, default=0.3, help="share of supervised tokens (default: 0.3)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="size of the vocabulary (default: 32000)")
    parser.add_argument("--width", type=int, default=512, help="width of the Llama (default: 512)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the Llama (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of every variant (default: 5)")
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = build(args.vocabulary, args.width, args.layers)
    steps = variants(lm, *rows(args.rows, args.tokens, args.supervised, args.vocabulary))
    if args.peak:
        for parameter in lm.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(1)  # resident, as after the first step
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building
        steps[args.peak]().backward()
        print(round(resident("VmHWM") - before, 1))
        return
    losses = {name: float(step().detach()) for name, step in steps.items()}
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise RuntimeError(f"the variants disagree on the loss: {losses}")
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(-1, args.rounds):  # one round to warm up
        for name in NAMES[turn % len(NAMES) :] + NAMES[: turn % len(NAMES)]:
            lm.model.zero_grad()
            began = time.process_time()
            steps[name]().backward()
            if turn >= 0:
                times[name].append(time.process_time() - began)
    print(
        json.dumps(
            {
                "claim": "full / ours at least 2, trl / ours at least 1, at equal loss",
                "settings": {key: value for key, value in vars(args).items() if key != "peak"},
                "losses": losses,
                "full_over_ours": spread(times["full"], times["ours"]),
                "trl_over_ours": spread(times["trl"], times["ours"]),
                "selected_over_ours": spread(times["selected"], times["ours"]),
                "cpu_milliseconds": {name: spread([1e3 * t for t in times[name]]) for name in NAMES},
                "peak_megabytes_of_a_step": {name: peak(name) for name in NAMES},
            },
            indent=2,
        )
    )


def rows(count: int, tokens: int, share: float, vocabulary: int) -> tuple[list[str], list[str]]:
    """Return prompts and targets of different lengths, of which `share` of the tokens are target and end token."""
    rng = random.Random(0)
    prompts: list[str] = []
    targets: list[str] = []
    for _ in range(count):
        length = round(tokens * rng.uniform(0.8, 1.2))
        answer = max(1, round(share * length)) - 1
        words = [f"w{rng.randrange(vocabulary - 2)}" for _ in range(length - 1)]
        prompts.append(" ".join(words[: len(words) - answer]))
        targets.append(" ".join(words[len(words) - answer :]))
    return prompts, targets


def variants(lm: CausalLM, prompts: list[str], targets: list[str]) -> dict[str, Callable[[], Tensor]]:
    """Return, by name, functions that compute the mean loss of a supervised token."""
    from trl.trainer import add_fused_lm_head

    before, after = [lm.prompt_ids(p) for p in prompts], [lm.target_ids(t) for t in targets]
    ids, mask = padded([a + b for a, b in zip(before, after, strict=True)], lm.tokens.pad_id, lm.device)
    labels = torch.full(ids.shape, IGNORED)  # [n, t]
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        labels[i, len(a) : len(a) + len(b)] = torch.tensor(b)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    total = int((labels != IGNORED).sum())
    add_fused_lm_head(lm.model)

    def selected() -> Tensor:
        states, wanted, _ = supervised(lm.model.model(**inputs).last_hidden_state, labels)
        return -token_logprobs(lm.model.lm_head(states), wanted).mean()

    return {
        "ours": lambda: -lm.logprobs(prompts, targets).sum() / total,
        "selected": selected,
        "trl": lambda: -lm.model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum() / total,
        "full": lambda: lm.model(**inputs, labels=labels).loss,
    }


def peak(name: str) -> float:
    """Return the peak memory in MB of a fresh process that makes one step."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident(field: str) -> float:
    """Return the resident memory of this process in MB: `VmRSS` now, `VmHWM` at most so far."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(fields[field].split()[0]) / 1000, 1)


if __name__ == "__main__":
    main()
