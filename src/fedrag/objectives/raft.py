"""Retrieval-augmented fine-tuning: answer by quoting the right passage, and ignore the others.

Zhang et al. 2024, "RAFT" (arXiv 2403.10131), section 3: a share P of the training prompts holds the gold passage among
k distractors, the rest distractors alone; the target quotes the gold passage word for word, and then answers.

    golds = [rag.dense.store.get([example.positives[0]])[0] for example in train]
    quoting = [replace(e, answers=[raft_answer(e, gold)]) for e, gold in zip(train, golds)]
    RAGTrainer(RALT(rag, k=20, contexts=Raft(rag.dense.store)), train_dataset=quoting).train()

Where the paper's figure has k passages without the gold one and k + 1 with it, the authors' code and this one keep
k + 1, so that their number is no clue.

>>> passage = Document("Keys are kept in room 12. They are rotated every month.")
>>> raft_answer(Example("How often are keys rotated?", ["every month"]), passage)
'##begin_quote##They are rotated every month.##end_quote## <ANSWER>: every month'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from random import Random

from fedrag.errors import DataError
from fedrag.objectives.contexts import Mixture
from fedrag.types import Document, Example, KnowledgeStore

BEGIN, END, ANSWER = "##begin_quote##", "##end_quote##", "<ANSWER>:"
"""What stands before a quote, after it, and before the answer itself."""

_QUOTE = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)
_BETWEEN = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


@dataclass(frozen=True)
class Raft:
    """Contexts by the rule of RAFT: the gold passage at any place among distractors, or distractors alone.

    Distractors are retrieved passages that are not positive; random ones where these do not suffice.

    Args:
        store: where golds and further distractors come from.
        distractors: k, beside the gold passage.
        gold: P, the share of contexts with the gold passage.
        source: the metadata key of the file that a passage was cut from; no distractor is of a positive's own.

    Relations: `Mixture(store, documents=distractors + 1, gold=gold, apart=source)`.
    """

    store: KnowledgeStore
    _: KW_ONLY
    distractors: int = 4
    gold: float = 0.8
    source: str | None = "source"

    def __post_init__(self) -> None:
        _ = self._mixture  # says what is wrong with the numbers

    def __call__(self, example: Example, retrieved: Sequence[Document], dice: Random, /) -> list[Document]:
        """Draw the documents of one prompt."""
        return self._mixture(example, retrieved, dice)

    @cached_property
    def _mixture(self) -> Mixture:
        return Mixture(self.store, documents=self.distractors + 1, gold=self.gold, apart=self.source)


def raft_answer(
    example: Example, document: Document, *, reason: Callable[[Example, Document], str] | None = None
) -> str:
    """The target of an example whose gold passage is `document`: a quote of it, `<ANSWER>:`, the first answer.

    Args:
        example: has an answer.
        document: its gold passage.
        reason: writes what stands before `<ANSWER>:` (the paper has a strong language model do it), with at least one
            quote of the passage, word for word, between `BEGIN` and `END`. `None` quotes the sentence that holds the
            answer, of several the one that shares most words with the question.

    Read a tuned system's answer after its last `<ANSWER>:`.

    Raises:
        DataError: if the example has no answer, the passage does not hold it, or quotes are not of the passage.
    """
    if not example.answers:
        raise DataError("raft_answer needs an example with an answer, this one has none: leave it out")
    reasoning = reason(example, document) if reason else f"{BEGIN}{_sentence(example, document)}{END}"
    quotes = [quote.strip() for quote in _QUOTE.findall(reasoning)]
    if not len(quotes) == reasoning.count(BEGIN) == reasoning.count(END) or not quotes or ANSWER in reasoning:
        raise DataError(
            f"the reasoning about document {document.id!r} has {len(quotes)} quotes, {reasoning.count(BEGIN)} times "
            f"{BEGIN}, {reasoning.count(END)} times {END} and {reasoning.count(ANSWER)} times {ANSWER}: wanted at "
            "least one quote, every one opened and closed, and no answer"
        )
    if wrong := sum(not quote or quote not in document.text for quote in quotes):
        raise DataError(
            f"{wrong} of {len(quotes)} quotes are not in document {document.id!r} word for word: quote it exactly, or "
            "leave the example out"
        )
    return f"{reasoning.strip()} {ANSWER} {example.answers[0]}"


def _sentence(example: Example, document: Document) -> str:
    text, golds = document.text, example.answers or ()
    asked = set(re.findall(r"\w+", example.question.casefold()))
    breaks = [(found.start(), found.end()) for found in _BETWEEN.finditer(text)]
    for answer in filter(None, map(str.strip, golds)):
        sentences: list[str] = []
        for found in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE):
            start = max((after for _, after in breaks if after <= found.start()), default=0)
            end = min((before for before, _ in breaks if before >= found.end()), default=len(text))
            sentences.append(text[start:end].strip())
        if sentences:
            return max(sentences, key=lambda said: len(asked & set(re.findall(r"\w+", said.casefold()))))
    raise DataError(
        f"none of the {len(golds)} answers stands in document {document.id!r} word for word: pass reason=, which "
        "writes the quotes, or leave the example out"
    )
