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

from fedrag.errors import ConfigError
from fedrag.prompts import Prompt, Tokens
from fedrag.types import Document, Generator, Hit, MixtureGenerator


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


def reading(
    prompt: Prompt,
    generator: Generator | None,
    question: str,
    hits: Sequence[Hit],
    alone: bool,
    temperature: float,
    answer_tokens: int,
) -> Reading:
    """What is read for these hits: all in one prompt, or each `alone`, weighed by p(document | question)."""
    documents = [hit.document for hit in hits]
    alone = alone and bool(hits)
    groups = [[document] for document in documents] if alone else [documents]
    parts = [fitting(prompt, generator, question, group, answer_tokens) for group in groups]
    weights = weights_of(hits, temperature) if alone else [1.0]
    read = tuple(document.text for part in parts for document in part)
    return Reading([prompt.render(question, part) for part in parts], weights, read)


def fitting(
    prompt: Prompt, generator: Generator | None, question: str, documents: Sequence[Document], answer_tokens: int
) -> Sequence[Document]:
    """The documents, shortened where the generator's window wants it, with room left for the answer."""
    if not isinstance(generator, Tokens):
        return documents
    return prompt.fit_documents(question, documents, generator, reserve=max(answer_tokens, generator.max_new_tokens))


def mixer(generator: Generator | None) -> MixtureGenerator:
    """The generator, where it can read several prompts for one answer. Raises `ConfigError` where it cannot."""
    if not isinstance(generator, MixtureGenerator):
        raise ConfigError(
            f"reader='ensemble' wants a generator with generate_mixture() and stream_mixture(), as CausalLM has, "
            f"got a {type(generator).__name__}: use reader='stuff'"
        )
    return generator


def weights_of(hits: Sequence[Hit], temperature: float) -> list[float]:
    """p(document | question); a score of -inf has no share, unless all are: then nothing is known, and all share."""
    scores = torch.tensor([hit.score for hit in hits], dtype=torch.float64).clamp(min=-1e30)  # [k]
    return torch.softmax(scores / temperature, dim=0).tolist()
