"""Questions for a corpus that has none: a generator writes them, and retrieval checks them on the way back.

For a passage d the generator writes a question q. It is kept when the way back holds: asked q, the retriever finds d
among its `within` best (round-trip consistency: Alberti et al. 2019, arXiv 1906.05416; Promptagator, Dai et al. 2022,
arXiv 2209.11755). The system then answers q from d alone, and an answer whose words do not stand in d refuses the
question, too. What is left are examples with d for a positive, to train and to measure on.

    examples = generate_questions(rag, n=1000).examples
    train, test = split(examples, {"train": 0.8, "test": 0.2}, by="document").values()

The retriever that checks decides what is kept: one that is to be tuned afterwards keeps what it finds already. Let
another one check (`judge=LexicalRetriever(rag.dense.store)`), or take a larger `within`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fedrag.data.splits import normalize
from fedrag.errors import ConfigError, InputError
from fedrag.ops.matching import whole_tokens
from fedrag.progress import track
from fedrag.prompts import Tokens
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example, Generator, Retriever

QUESTION_PROMPT = (
    "Write one question that the text below answers. Name what it asks about, so that it can be understood without "
    "the text. Write nothing but the question.\nText: {text}\nQuestion:"
)
_WORDS = 64  # a longer line is no question
_LABEL = re.compile(r"""^(?:[-*\s"'>]|\d{1,2}[.)]|(?:question|q)\s*\d*\s*[:.])+""", re.IGNORECASE)

Refusal = Literal["", "no question", "copied", "repeated", "not found", "no answer"]
"""Why a question was not kept; empty where it was."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A question written from a document, and what became of it.

    `rank` is the place at which the retriever found the document again, from 1; `None` where it was not asked or did
    not find it. `answers` is `None` where none was asked for.
    """

    document: str
    question: str
    answers: tuple[str, ...] | None = None
    rank: int | None = None
    refused: Refusal = ""

    def example(self) -> Example:
        """The draft as an example whose metadata names the document, to split by."""
        return Example(self.question, self.answers, [self.document], metadata={"document": self.document})


@dataclass(frozen=True, slots=True)
class Generated:
    """The examples that were kept, and how many drafts were refused for which reason."""

    examples: list[Example]
    refused: Counter[str]

    @classmethod
    def of(cls, drafts: Sequence[Draft]) -> Generated:
        """What drafts came to."""
        kept = [draft.example() for draft in drafts if not draft.refused]
        return cls(kept, Counter(draft.refused for draft in drafts if draft.refused))

    def __str__(self) -> str:
        why = ", ".join(f"{count} {reason}" for reason, count in self.refused.most_common())
        return f"{len(self.examples)} questions kept; refused: {why or 'none'}"


def generate_questions(
    rag: RAGSystem,
    *,
    n: int,
    answers: bool = True,
    within: int = 3,
    judge: Retriever | None = None,
    writer: Generator | None = None,
    prompt: str = QUESTION_PROMPT,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> Generated:
    """Write questions about the documents of the system's store, one a document, until `n` are kept or none is left.

    Args:
        rag: the system; its generator answers, and writes too, unless a `writer` is given.
        n: how many to keep.
        answers: answer each question from its document, for training a reader; without, for a retriever alone.
        within: how far down the document may be found again.
        judge: the retriever that looks for it; by default the system's own.
        writer: another generator that writes the questions.
        prompt: what the writer is told; `{text}` stands for the document.
        seed: of the order in which documents are taken.
        batch_size: documents at a time.
        progress: whether to show progress.

    Raises:
        ConfigError: for settings that are impossible, or a system without what they need.
        InputError: if the store is empty.
    """
    made: list[Draft] = []
    kept = 0
    told = drafts(
        rag, answers=answers, within=within, judge=judge, writer=writer, prompt=prompt, seed=seed, batch_size=batch_size
    )
    with track(total=n, desc="questions", unit="kept", disable=not progress) as bar:
        while kept < n and (draft := next(told, None)) is not None:
            made.append(draft)
            kept += not draft.refused
            bar.update(not draft.refused)
    return Generated.of(made)


def drafts(
    rag: RAGSystem,
    *,
    answers: bool = True,
    within: int = 3,
    judge: Retriever | None = None,
    writer: Generator | None = None,
    prompt: str = QUESTION_PROMPT,
    seed: int = 0,
    batch_size: int = 16,
    done: Collection[Draft] = (),
) -> Iterator[Draft]:
    """Yield a draft for each document of the store in an order that the seed decides; those `done` are not repeated.

    The settings and errors are those of `generate_questions`, and errors come at the call.
    """
    author, reader, finder = writer or rag.generator, rag.generator, judge or rag.retriever
    if author is None or (answers and reader is None):
        raise ConfigError(
            "questions are written by a generator, and this system has none: give it one, or pass writer= and "
            "answers=False"
        )
    if within < 1 or batch_size < 1:
        raise ConfigError(f"within and batch_size must be at least 1, got {within} and {batch_size}")
    if "{text}" not in prompt:
        raise ConfigError(f"the prompt {prompt[:60]!r} lacks {{text}}, the place of the document")
    ids = [document.id for document in rag.dense.store.documents()]
    if not ids:
        raise InputError("the store has no document to ask about: add some, as `fedrag index` does")
    random.Random(seed).shuffle(ids)
    over = {draft.document for draft in done}
    seen = {normalize(draft.question) for draft in done if draft.question}
    waiting = [id for id in ids if id not in over]

    def run() -> Iterator[Draft]:
        for start in range(0, len(waiting), batch_size):
            batch = rag.dense.store.get(waiting[start : start + batch_size])
            questions = _written(author, prompt, batch)
            made = [_formal(document, question, seen) for document, question in zip(batch, questions, strict=True)]
            made = _found_again(finder, made, within)
            yield from _answered(rag, made, batch) if answers else made

    return run()


def _written(author: Generator, prompt: str, documents: Sequence[Document]) -> list[str]:
    """What the author writes about each document: its first line, without a label."""
    prompts = [prompt.replace("{text}", _fitting(author, prompt, document.text)) for document in documents]
    lines = ([line.strip() for line in text.splitlines() if line.strip()] for text in author.generate(prompts))
    return [_LABEL.sub("", found[0]).strip("\"'* ") if found else "" for found in lines]


def _fitting(author: Generator, prompt: str, text: str) -> str:
    """The text as far as the author has room for it."""
    if not isinstance(author, Tokens):
        return text
    room = author.max_length - author.max_new_tokens - len(author.prompt_ids(prompt.replace("{text}", "")))
    if room < 1:
        raise ConfigError(f"the prompt leaves no room for a text in the generator's {author.max_length} tokens")
    return author.cut(text, room)


def _formal(document: Document, question: str, seen: set[str]) -> Draft:
    """Refuse what shows by itself: no words or too many, a piece of the passage, a question that was there."""
    key = normalize(question)
    if not re.search(r"\w", question) or len(question.split()) > _WORDS:
        return Draft(document.id, "", refused="no question")
    if key in normalize(document.text):
        return Draft(document.id, question, refused="copied")
    if key in seen:
        return Draft(document.id, question, refused="repeated")
    seen.add(key)
    return Draft(document.id, question)


def _found_again(finder: Retriever, made: Sequence[Draft], within: int) -> list[Draft]:
    """The way back: at which rank the retriever finds the document for the question."""
    asked = [draft for draft in made if not draft.refused]
    ranked = iter(finder.retrieve([draft.question for draft in asked], within)) if asked else iter(())
    checked: list[Draft] = []
    for draft in made:
        if not draft.refused:
            ids = [hit.document.id for hit in next(ranked)]
            rank = ids.index(draft.document) + 1 if draft.document in ids else None
            draft = Draft(draft.document, draft.question, None, rank, "" if rank else "not found")
        checked.append(draft)
    return checked


def _answered(rag: RAGSystem, made: Sequence[Draft], documents: Sequence[Document]) -> list[Draft]:
    """Answer each question from its document alone; an answer whose words do not stand there is none."""
    rows = [(draft, document) for draft, document in zip(made, documents, strict=True) if not draft.refused]
    prompts = [rag.prompt_for(draft.question, [document]) for draft, document in rows]
    texts = iter(rag.generator.generate(prompts) if rag.generator and prompts else [])
    answered: list[Draft] = []
    for draft, document in zip(made, documents, strict=True):
        if not draft.refused:
            answer = " ".join(next(texts).split())
            words = whole_tokens(answer)
            stands = bool(words.strip()) and words in whole_tokens(document.text)
            refused: Refusal = "" if stands else "no answer"
            draft = Draft(draft.document, draft.question, (answer,) if stands else (), draft.rank, refused)
        answered.append(draft)
    return answered
