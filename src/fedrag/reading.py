"""What a generator reads to answer a question, and the answer on its way back.

With one prompt of all documents there is one reading. A prompt for each document wants weights, which come from the
scores that the retriever gave them:

>>> best, other = Hit(Document("a"), 0.9), Hit(Document("b"), 0.9)
>>> weights_of([best, other], temperature=0.05)
[0.5, 0.5]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fedrag.prompts import Prompt, Tokens
from fedrag.types import Document, Generator, Hit


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer on its way: the hits are known at once, iterating yields the text piece by piece."""

    hits: tuple[Hit, ...]
    pieces: Iterator[str]

    def __iter__(self) -> Iterator[str]:
        return self.pieces


@dataclass(frozen=True, slots=True)
class Reading:
    """What the generator gets to answer one question: prompts, their weights, and the texts of documents in them."""

    prompts: list[str]
    weights: list[float]
    read: tuple[str, ...]


def fitting(
    prompt: Prompt, question: str, documents: Sequence[Document], generator: Generator | None, answer_tokens: int
) -> Sequence[Document]:
    """The documents, shortened where the generator's window wants it, with room left for the answer."""
    if not isinstance(generator, Tokens):
        return documents
    return prompt.fit_documents(question, documents, generator, reserve=max(answer_tokens, generator.max_new_tokens))


def weights_of(hits: Sequence[Hit], temperature: float) -> list[float]:
    """p(document | question); a score of -inf has no share, unless all are: then nothing is known, and all share."""
    scores = torch.tensor([hit.score for hit in hits], dtype=torch.float64).clamp(min=-1e30)  # [k]
    return torch.softmax(scores / temperature, dim=0).tolist()
