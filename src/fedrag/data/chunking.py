"""Cutting documents into chunks of at most so many tokens, with overlap.

A chunk is an exact piece of its source, `metadata["start"]` and `["end"]` tell which, in characters. White space
belongs to the token before it, so that without overlap the chunks put together are the source.

>>> [piece.text for piece in chunk([Document("One two, three four.", "d")], chunk_tokens=3, progress=False)]
['One two, ', 'three four.']
>>> [piece.text for piece in chunk([Document("One two three four", "d")], chunk_tokens=3, overlap=2, progress=False)]
['One two three ', 'two three four']
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fedrag.errors import ConfigError, DataError
from fedrag.progress import track
from fedrag.types import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKEN = re.compile(r"\w+|[^\w\s]")


def chunk(
    documents: Sequence[Document],
    *,
    chunk_tokens: int,
    overlap: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = True,
) -> list[Document]:
    """Cut each document; the chunks of the document `d` have the ids `d#0`, `d#1` and so on, and its metadata.

    Args:
        documents: what to cut; a short document becomes one chunk.
        chunk_tokens: tokens of a chunk, at most. Only one character of more tokens than that makes a longer one.
        overlap: tokens at the end of a chunk that the next one repeats.
        tokenizer: a fast HuggingFace tokenizer, ideally the encoder's; special tokens are not counted. By default a
            token is a run of letters, digits and underscores, or one other mark.
        progress: whether to show a progress bar when it takes longer than a second.

    A chunk of white space alone is left out. Raises `ConfigError` for impossible settings and `DataError` for a
    document whose metadata has a `start` or `end` of its own.
    """
    pieces = cutter(chunk_tokens, overlap, tokenizer)
    shown = track(documents, desc="chunk", unit="doc", disable=not progress, delay=1.0)
    return [piece for document in shown for piece in pieces(document)]


def cutter(
    chunk_tokens: int, overlap: int = 0, tokenizer: PreTrainedTokenizerBase | None = None
) -> Callable[[Document], Iterator[Document]]:
    """What cuts one document after the other; settings and errors as in `chunk`."""
    check_settings(chunk_tokens, overlap, tokenizer)
    starts_of = _word_starts if tokenizer is None else _tokenizer_starts(tokenizer)

    def pieces(document: Document) -> Iterator[Document]:
        for name in ("start", "end"):
            if name in document.metadata:
                raise DataError(
                    f"document {document.id!r} has metadata {name!r}, the name of a chunk's offset; rename it"
                )
        text = document.text
        spans = [(a, b) for a, b in _spans(text, starts_of(text), chunk_tokens, overlap) if text[a:b].strip()]
        for number, (start, end) in enumerate(spans):
            metadata = {**document.metadata, "start": start, "end": end}
            yield replace(document, text=text[start:end], id=f"{document.id}#{number}", metadata=metadata)

    return pieces


def check_settings(chunk_tokens: int, overlap: int, tokenizer: object) -> None:
    """Refuse settings that cannot work, before anything is read."""
    if chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens is the number of tokens in a chunk, at least 1, got {chunk_tokens}")
    if not 0 <= overlap < chunk_tokens:
        raise ConfigError(f"overlap is at least 0 and less than chunk_tokens={chunk_tokens}, got {overlap}")
    if tokenizer is not None and getattr(tokenizer, "is_fast", False) is not True:
        raise ConfigError(
            f"chunking needs a fast HuggingFace tokenizer, which knows where its tokens stand, got "
            f"{type(tokenizer).__name__}; load it with AutoTokenizer.from_pretrained(...)"
        )


def _word_starts(text: str) -> list[int]:
    return [match.start() for match in _TOKEN.finditer(text)]


def _tokenizer_starts(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    def starts(text: str) -> list[int]:
        encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in cast(list[tuple[int, int]], encoded["offset_mapping"])]

    return starts


def _spans(text: str, starts: Sequence[int], size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Windows over the tokens, as character offsets; a character of several tokens stays whole."""
    weights = sorted(Counter(starts).items())  # where tokens start, and how many start there
    edges = [0, *(start for start, _ in weights[1:]), len(text)]
    first = last = 0
    while last < len(weights):
        total = 0
        last = first
        while last < len(weights) and (last == first or total + weights[last][1] <= size):
            total += weights[last][1]
            last += 1
        yield edges[first], edges[last]
        # what is repeated must leave room for one more character, or the next chunk would end where this one does
        room = min(overlap, size - weights[last][1]) if last < len(weights) else 0
        back = last
        while back - 1 > first and weights[back - 1][1] <= room:
            back -= 1
            room -= weights[back][1]
        first = back
    if not weights:
        yield 0, len(text)
