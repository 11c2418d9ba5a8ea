"""The prompt that a question and its documents become: one object for asking, for scoring and for training.

The question comes before the documents. The prompts of one query then share everything up to the first document,
which scoring computes once for all of them. Text is put in in a single pass, so braces, template fields and control
tokens in a question or a document stay the characters that they are.

A prompt has a budget of tokens. `fit_documents` shortens documents, the longest first, and never the question or the
answer: an answer cut off in training teaches a model to stop in the middle.

>>> from fedrag.types import Document
>>> print(Prompt().render("Where is {Paris}?", [Document("Paris is in {country}."), Document("Rome is not.")]))
Answer the question from the documents.
Question: Where is {Paris}?
Documents:
[1] Paris is in {country}.
[2] Rome is not.
Answer:
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from fedrag.errors import BudgetError, ConfigError
from fedrag.types import Document

_FIELD = re.compile(r"\{(\w+)\}")


@runtime_checkable
class Tokens(Protocol):
    """A generator that knows tokens: how long its prompts may be, and how long a text is. `Prompt.fit` asks it."""

    max_length: int
    """Tokens of prompt and answer together."""
    max_new_tokens: int
    """Tokens that an answer may have."""

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, with everything that is put around it."""
        ...

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        ...

    def cut(self, text: str, tokens: int) -> str:
        """Return the longest prefix of a text that ends with a token and has at most `tokens` of them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How a prompt is written. `{question}` and `{documents}` stand in `template`, `{text}` in `document_template`.

    `document_template` may also use `{number}`, counted from 1, and the name of any metadata value (`{title}`), which
    is empty where a document lacks it. `order` says where the best document goes: first, or last, next to the answer.
    Documents come in best first; to train on another order, shuffle them before.

    Raises `ConfigError` for a template that lacks a field or has one that nothing fills.
    """

    template: str = "Answer the question from the documents.\nQuestion: {question}\nDocuments:\n{documents}\nAnswer:"
    document_template: str = "[{number}] {text}"
    order: Literal["best_first", "best_last"] = "best_first"

    def __post_init__(self) -> None:
        fields = set(_FIELD.findall(self.template))
        if fields != {"question", "documents"}:
            raise ConfigError(
                f"template has the fields {sorted(fields)}: it needs exactly {{question}} and {{documents}}"
            )
        if "text" not in _FIELD.findall(self.document_template):
            raise ConfigError(f"document_template {self.document_template!r} lacks {{text}}: no document would be seen")
        if self.order not in ("best_first", "best_last"):
            raise ConfigError(f"order={self.order!r}: it must be 'best_first' or 'best_last'")

    def render(self, question: str, documents: Sequence[Document]) -> str:
        """Return the whole prompt; without documents (closed book), their place stays empty."""
        ordered = list(documents) if self.order == "best_first" else list(reversed(documents))
        written = [self._document(number, document) for number, document in enumerate(ordered, 1)]
        values = {"question": question, "documents": "\n".join(written)}
        return _FIELD.sub(lambda found: values[found[1]], self.template)

    def fit(self, question: str, documents: Sequence[Document], generator: Tokens, *, reserve: int) -> str:
        """Return the prompt with its documents shortened as `fit_documents` does it. Raises what that raises."""
        return self.render(question, self.fit_documents(question, documents, generator, reserve=reserve))

    def fit_documents(
        self, question: str, documents: Sequence[Document], generator: Tokens, *, reserve: int
    ) -> list[Document]:
        """Return the documents that a prompt has room for beside `reserve` tokens, with their texts as it writes them.

        The longest documents are cut, to one common length, until the prompt leaves `reserve` tokens of
        `generator.max_length`. Where even empty documents are too many, the last ones of `documents` are left out.
        Raises `BudgetError` when the question alone does not fit.
        """
        budget = generator.max_length - reserve

        def size(some: Sequence[Document]) -> int:
            return len(generator.prompt_ids(self.render(question, some)))

        # no document can use more than the whole budget: what lies beyond it is never read again
        kept = [_cut(document, budget, generator) for document in documents]
        if size(kept) <= budget:
            return kept
        while (frame := size([replace(d, text="") for d in kept])) > budget:
            if not kept:
                raise BudgetError(_too_long(frame, reserve, generator.max_length))
            kept.pop()
        if not kept:
            return []
        lengths = [generator.count(document.text) for document in kept]

        def shortened(level: int) -> list[Document]:
            return [_cut(d, level, generator) if n > level else d for d, n in zip(kept, lengths, strict=True)]

        level = _highest(lambda level: size(shortened(level)) <= budget, _level(lengths, budget - frame), max(lengths))
        return shortened(level)

    def _document(self, number: int, document: Document) -> str:
        values = {**document.metadata, "number": number, "text": document.text}
        return _FIELD.sub(lambda found: str(values.get(found[1], "")), self.document_template)


def _cut(document: Document, tokens: int, generator: Tokens) -> Document:
    text = generator.cut(document.text, tokens)
    return document if text == document.text else replace(document, text=text)


def _too_long(question: int, answer: int, most: int) -> str:
    said = f"the question's prompt has {question} tokens without any document and the answer {answer}: together more "
    if answer > question:
        return f"{said}than max_length={most}; shorten the answer, lower max_new_tokens or raise max_length"
    return f"{said}than max_length={most}; shorten the question or raise max_length"


def _level(lengths: Sequence[int], room: int) -> int:
    # water-filling: the level L with sum(min(length, L)) = room
    ordered = sorted(lengths)
    for n, length in enumerate(ordered):
        if length * (len(ordered) - n) > room:
            return room // (len(ordered) - n)
        room -= length
    return max(lengths)


def _highest(fits: Callable[[int], bool], guess: int, most: int) -> int:
    # the guess is near: tokens at the borders of texts make the real count differ a little. Level 0 is known to fit.
    low, high, step = 0, most, 1
    if fits(guess):
        low = guess
        while low + step < high and fits(low + step):
            low, step = low + step, 2 * step
        high = min(high, low + step)
    else:
        high = guess
        while high - step > low and not fits(high - step):
            high, step = high - step, 2 * step
        low = max(low, high - step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
