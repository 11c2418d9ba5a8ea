"""Hard negatives: documents that the retriever likes and that do not answer the question, out of the whole store.

What a retriever finds beside the labelled passage is the most instructive thing to train against (ANCE, Xiong et al.
2020, arXiv 2007.00808), and often relevant without a label, which teaches the opposite of what is meant (RocketQA, Qu
et al. 2020, arXiv 2010.08191). `HardNegatives` says what is refused as a possible false negative.

    examples = mine(rag, examples, HardNegatives(relative_margin=0.05))      # once: fills Example.negatives
    Contrastive(rag, mine=HardNegatives(ranks=(0, 50)))                      # anew at each refresh, as it trains
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from fedrag.errors import ConfigError, DataError
from fedrag.generators.score_cache import CachedScorer
from fedrag.objectives.cross_encoder import Judge, PairScorer
from fedrag.objectives.objective import one_of
from fedrag.ops.matching import whole_tokens
from fedrag.ops.similarity import all_pairs
from fedrag.progress import track
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example, Hit

_log = logging.getLogger(__name__)
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HardNegatives:
    """Which documents serve as negatives of a question, and which may be relevant and are refused.

    Never admitted: the example's positives, documents with the same text, and the negatives that it has already.

    Args:
        per_example: negatives for each example; fewer where fewer are admitted.
        ranks: (start, end). The `end` best documents of the store are looked at, positives aside, and of those that
            pass all other guards the best `start` are left out.
        draw: "random" takes any of the admitted, "top" the best.
        margin: admit scores that are at least so much below the positive's (the lowest, of several).
        relative_margin: the same as a share of the positive's score: 0.05 admits up to 95 % of it (NV-Retriever,
            arXiv 2407.15831, finds this guard the best). An untrained retriever ranks most positives low, and then
            both margins refuse nearly all.
        max_score: admit scores up to this one.
        cross_encoder: a sentence-transformers `CrossEncoder`, or any object with its `predict`, whose scores of
            (question, text) are ranked and compared in place of the retriever's; what it finds relevant is refused by
            the margins (`margin=0`: as relevant as the positive) or `max_score`.
        answer_match: refuse documents that hold one of the answers, as whole tokens in a row. Answers that stand in
            many passages for other reasons ("yes", "3") refuse those too.

    Relations: the same ranks, margins and scores as sentence-transformers' `mine_hard_negatives`, which has no answer
    guard.
    """

    per_example: int = 1
    ranks: tuple[int, int] = (0, 30)
    draw: Literal["random", "top"] = "random"
    margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    cross_encoder: Judge | None = field(default=None, repr=False)
    answer_match: bool = True

    def __post_init__(self) -> None:
        start, end = self.ranks
        if self.per_example < 1 or start < 0 or end - start < self.per_example:
            raise ConfigError(
                f"HardNegatives takes per_example >= 1 and ranks=(start, end) with room for as many, "
                f"got {self.per_example} and {self.ranks}"
            )
        one_of("draw", self.draw, ("random", "top"))
        for name, value in (("margin", self.margin), ("relative_margin", self.relative_margin)):
            if value is not None and value < 0:
                raise ConfigError(f"{name}={value}: it must be 0 or more, or None for no such guard")
        if self.cross_encoder is not None and {self.margin, self.relative_margin, self.max_score} == {None}:
            raise ConfigError(
                "a cross_encoder refuses nothing by itself: give margin=0 to refuse what it finds as relevant as the "
                "positive, or a relative_margin or max_score"
            )

    def refusal(self, score: float, positive: float) -> str:
        """The name of the guard that refuses a score beside that of the positive; empty where none does."""
        if self.margin is not None and score + self.margin > positive:
            return "margin"
        if self.relative_margin is not None and score > positive - abs(positive) * self.relative_margin:
            return "relative_margin"
        return "max_score" if self.max_score is not None and score > self.max_score else ""


class Miner:
    """Finds the admitted documents of examples, and counts in `refused` what each guard refused.

    Raises:
        DataError: for examples without a positive, to which nothing could be compared.
    """

    def __init__(self, rag: RAGSystem, guards: HardNegatives) -> None:
        self.rag = rag
        self.guards = guards
        self.refused: Counter[str] = Counter()
        judge = guards.cross_encoder
        self.scorer = None if judge is None else CachedScorer(PairScorer(judge))

    @torch.no_grad()
    def find(self, examples: Sequence[Example]) -> list[list[Document]]:
        """All admitted documents per example, hardest first."""
        if bare := sum(not example.positives for example in examples):
            raise DataError(
                f"hard negatives are judged beside a positive document, {bare} of these {len(examples)} examples have "
                "none: put document ids into Example.positives, or leave them out"
            )
        retriever, end = self.rag.dense, self.guards.ranks[1]
        retriever.check_fresh()
        vectors = retriever.embed_queries([example.question for example in examples])  # [n, d]
        known = [{*example.positives, *example.negatives} for example in examples]
        found = retriever.store.search(vectors, end + max(map(len, known)))
        golds = [retriever.store.get(example.positives) for example in examples]
        tokens: dict[str, str] = {}  # the same documents come back for many questions
        rows = [
            self._without_answers(e, gold, [hit for hit in hits if hit.document.id not in ids][:end], tokens)
            for e, gold, ids, hits in zip(examples, golds, known, found, strict=True)
        ]
        if self.scorer is None:
            stored = (retriever.store.vectors(example.positives).to(vectors.device) for example in examples)
            least = [float(all_pairs(q[None], own).min()) for q, own in zip(vectors, stored, strict=True)]
        else:
            rows, least = self._judged(self.scorer, examples, golds, rows)
        return [self._admitted(row, score) for row, score in zip(rows, least, strict=True)]

    def _without_answers(
        self, example: Example, golds: Sequence[Document], hits: Sequence[Hit], tokens: dict[str, str]
    ) -> list[Hit]:
        texts = {gold.text for gold in golds}
        answers = (example.answers or ()) if self.guards.answer_match else ()
        wanted = [answer for answer in map(whole_tokens, answers) if answer.strip()]
        kept: list[Hit] = []
        for hit in hits:
            text = hit.document.text
            if text in texts:
                self.refused["positive"] += 1
            elif wanted and any(
                answer in (tokens.get(text) or tokens.setdefault(text, whole_tokens(text))) for answer in wanted
            ):
                self.refused["answer"] += 1
            else:
                kept.append(hit)
        return kept

    def _judged(
        self,
        scorer: CachedScorer,
        examples: Sequence[Example],
        golds: Sequence[Sequence[Document]],
        rows: Sequence[Sequence[Hit]],
    ) -> tuple[list[list[Hit]], list[float]]:
        """The hits with the cross-encoder's scores, and its lowest score of each example's positives."""
        documents = [[*gold, *(hit.document for hit in row)] for gold, row in zip(golds, rows, strict=True)]
        questions = [example.question for example, row in zip(examples, documents, strict=True) for _ in row]
        flat = scorer.logprobs(questions, [document.text for row in documents for document in row])
        scores = [part.tolist() for part in flat.split([len(row) for row in documents])]
        judged = [
            [Hit(document, score) for document, score in zip(row[len(gold) :], told[len(gold) :], strict=True)]
            for row, told, gold in zip(documents, scores, golds, strict=True)
        ]
        return judged, [min(told[: len(gold)]) for told, gold in zip(scores, golds, strict=True)]

    def _admitted(self, row: Sequence[Hit], positive: float) -> list[Document]:
        kept: list[Document] = []
        for hit in sorted(row, key=lambda hit: -hit.score):
            if guard := self.guards.refusal(hit.score, positive):
                self.refused[guard] += 1
            else:
                kept.append(hit.document)
        start = self.guards.ranks[0]
        self.refused["ranks"] += min(start, len(kept))
        return kept[start:]


def mine(
    rag: RAGSystem, examples: Sequence[Example], guards: HardNegatives, *, progress: bool = True, seed: int = 0
) -> list[Example]:
    """Return the examples with hard negatives from the whole store, as the retriever now ranks it, after their own.

    How many were found, and how many each guard refused, is logged at INFO.

    Args:
        rag: the system; its retriever is a `DenseRetriever` over an index that is up to date.
        examples: with at least one positive each.
        guards: what is admitted.
        progress: show a bar.
        seed: of the draw.
    """
    miner, dice = Miner(rag, guards), random.Random(seed)
    filled: list[Example] = []
    found: list[int] = []
    with track(total=len(examples), desc="mine", unit="q", disable=not progress) as bar:
        for start in range(0, len(examples), _BATCH):
            batch = examples[start : start + _BATCH]
            for example, row in zip(batch, miner.find(batch), strict=True):
                size = min(guards.per_example, len(row))
                places = range(size) if guards.draw == "top" else sorted(dice.sample(range(len(row)), size))
                negatives = (*example.negatives, *(row[place].id for place in places))
                filled.append(replace(example, negatives=negatives))
                found.append(size)
            bar.update(len(batch))
    refused = ", ".join(f"{count} by {guard}" for guard, count in miner.refused.items() if count)
    _log.info(
        "mined %d negatives for %d examples, none for %d of them; refused: %s",
        sum(found),
        len(examples),
        found.count(0),
        refused or "nothing",
    )
    return filled
