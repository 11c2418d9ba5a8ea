"""The browser, and a run to make pages of: reports with odd texts in them, a log, a federation."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from browsing import browser, open_page
from fedrag import Document, MemoryStore
from fedrag.evaluation import Record, Report, summarize
from fedrag.evaluation.ranking import label_metrics
from fedrag.evaluation.text import answer_metrics
from fedrag.federated.history import History, Round, SiteRound
from fedrag.types import Example

__all__ = ["browser", "open_page"]

ODD = [
    "<script>document.title = 'taken over'</script> & \"quotes\" 'and' more?",
    "ما هي عاصمة فرنسا؟ <b>bold</b>",
    "W" + "o" * 400 + "rd?",
    "\u202eturned round",
    "Line\nbreaks\x00 and \ud800 halves",
    "</style></svg></details><img src=x onerror=alert(1)>",
]


def question(number: int) -> str:
    return ODD[number] if number < len(ODD) else f"How often is machine {number} serviced?"


def report(skill: float, questions: int, seed: int) -> Report:
    """A system that finds and answers more with more skill; the same questions at any skill and seed."""
    draw = random.Random(seed)
    records: list[Record] = []
    for number in range(questions):
        gold = f"d{number}"
        example = Example(question(number), [f"every {number} days"], [gold], metadata={"hall": f"hall {number % 3}"})
        hits = [f"d{(number + step) % 400}" for step in draw.sample(range(1, 390), 8)]
        if draw.random() < skill + 0.2:
            hits.insert(draw.randrange(6), gold)
        answer = f"every {number} days" if gold in hits[:4] and draw.random() < skill else "never <i>ever</i>"
        values = {**answer_metrics(answer, example.answers or ()), **label_metrics([hits], [[gold]], 9)[0]}
        records.append(Record(example, values, answer, tuple(hits)))
    return summarize(records)


@pytest.fixture(scope="session")
def run() -> dict[str, Any]:
    """What `write_page` takes."""
    log = [
        {"stage": stage, "step": step, "loss": 2 / step + offset, "learning_rate": 1 / step, "epoch": step / 10}
        for stage, offset in (("1-lsr", 0.5), ("2-ralt", 0.1))
        for step in range(1, 31)
    ]
    log += [{"stage": "1-lsr", "step": step, "eval_loss": 3 / step} for step in (10, 20, 30)]
    sites = ("north", "harbour", "clinic")
    rounds = [
        Round(
            number,
            {
                site: SiteRound(10, {"loss": 1 / (number + 1 + place), "eval_loss": 2 / (number + 1 + place)})
                for place, site in enumerate(sites)
                if (number, site) != (1, "clinic")
            },
            {},
            ("clinic",) if number == 1 else (),
            {"loss": 1 / (number + 1), "eval_loss": 2 / (number + 1)},
            2_000_000,
            1_500_000 + number,
            0.5,
        )
        for number in range(4)
    ]
    texts = [f"Machine {n} is <em>old</em>. {ODD[n % 4]}" for n in range(400)]
    store = MemoryStore()
    store.add([Document(text, f"d{n}") for n, text in enumerate(texts)], torch.ones(400, 2))
    last = {"eval_loss": 0.3}
    closing = Round(4, {site: SiteRound(10, last) for site in sites}, {}, (), last, 9, 0, 0.1)
    return {
        "before": report(0.2, 60, 1),
        "after": report(0.8, 60, 2),
        "more": {"half way": report(0.5, 60, 3)},
        "log": log,
        "history": History(rounds, closing),
        "store": store,
        "by": "hall",
        "title": "The handbook, tuned & <measured>",
    }
