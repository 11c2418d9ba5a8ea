"""Measure what it costs to read K documents one by one instead of all in one prompt, and print one JSON object.

Claim: at K = 5 the ensemble reader takes at most 2.0 times as long as one stuffed prompt of the same total length, for
one question and for a batch of questions, answers of 16 tokens included.

    ensemble    K prompts of one document each, their next-token distributions mixed  (`CausalLM.generate_mixture`)
    stuffed     one prompt with as many tokens as those K together                    (`CausalLM.generate`)
    same        one prompt with the same K documents, which has the question once and is shorter

What is read costs the ensemble less, as attention looks at one document at a time; what is written costs it K rows of
logits a token. All variants run once per round, in turning order; times are CPU seconds of this process on one thread,
ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from typing import Any

import torch
from lm_scoring import build, rounds, spread

from fedrag.generators.causal import CausalLM
from fedrag.prompts import Prompt
from fedrag.types import Document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=5, help="documents per question, K (default: 5)")
    parser.add_argument("--batch", type=int, default=8, help="questions answered together (default: 8)")
    parser.add_argument("--question", type=int, default=20, help="tokens of a question (default: 20)")
    parser.add_argument("--document", type=int, default=100, help="mean tokens of a document, +-40 %% (default: 100)")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer (default: 16)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="size of the vocabulary (default: 32000)")
    parser.add_argument("--width", type=int, default=256, help="width of the Llama (default: 256)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the Llama (default: 4)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of every variant (default: 7)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = build(args.vocabulary, args.width, args.layers)
    lm.max_new_tokens = args.answer
    report: dict[str, object] = {
        "claim": "ensemble at most 2.0 times as long as a stuffed prompt of the same total length",
        "settings": vars(args),
    }
    for name, questions in (("one_question", 1), ("batch", args.batch)):
        apart, stuffed, same = prompts(lm, questions, args.documents, args.question, args.document)
        weights = [[1 / args.documents] * args.documents] * questions
        variants: dict[str, Callable[[], Any]] = {
            "ensemble": lambda apart=apart, weights=weights: lm.generate_mixture(apart, weights),
            "stuffed": lambda stuffed=stuffed: lm.generate(stuffed),
            "same": lambda same=same: lm.generate(same),
        }
        for variant, run in variants.items():
            if any(len(text.split()) != args.answer for text in run()):
                raise RuntimeError(f"{variant} ended an answer early: take another seed")
        times = rounds(variants, args.rounds)
        report[name] = {
            "prompt_tokens": {
                "ensemble": sum(len(lm.prompt_ids(prompt)) for some in apart for prompt in some),
                "stuffed": sum(len(lm.prompt_ids(prompt)) for prompt in stuffed),
                "same": sum(len(lm.prompt_ids(prompt)) for prompt in same),
            },
            "ensemble_over_stuffed": spread(times["ensemble"], times["stuffed"]),
            "ensemble_over_same": spread(times["ensemble"], times["same"]),
            "cpu_milliseconds": {variant: spread([1e3 * t for t in times[variant]]) for variant in variants},
        }
    print(json.dumps(report, indent=2))


def prompts(
    lm: CausalLM, questions: int, k: int, question: int, document: int
) -> tuple[list[list[str]], list[str], list[str]]:
    """Return, per question, K prompts of a document each, one prompt as long as they are together, one with the K."""
    rng, prompt = random.Random(0), Prompt()

    def text(tokens: int) -> str:
        return " ".join(f"w{rng.randrange(len(lm.tokenizer) - 2)}" for _ in range(tokens))

    apart: list[list[str]] = []
    stuffed: list[str] = []
    same: list[str] = []
    for _ in range(questions):
        asked = text(question)
        found = [Document(text(round(document * rng.uniform(0.6, 1.4)))) for _ in range(k)]
        apart.append([prompt.render(asked, [one]) for one in found])
        same.append(prompt.render(asked, found))
        missing = sum(len(lm.prompt_ids(one)) for one in apart[-1]) - len(lm.prompt_ids(same[-1]))
        last = Document(f"{found[-1].text} {text(missing)}")
        stuffed.append(prompt.render(asked, [*found[:-1], last]))
    return apart, stuffed, same


if __name__ == "__main__":
    main()
