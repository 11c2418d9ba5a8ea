from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer

from fedrag.data import chunk
from fedrag.errors import ConfigError, DataError
from fedrag.types import Document, Media
from tiny import tiny_tokenizer

TEXT = st.text(st.sampled_from("ab é\n.,😀字\u0301"), min_size=1, max_size=40) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40
)
KINDS = {"words": None, "bpe": "bpe", "wordpiece": "wordpiece", "metaspace": "metaspace"}


@pytest.fixture(scope="module", params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    kind = KINDS[request.param]
    return kind and tiny_tokenizer(kind, bos=kind == "bpe")  # type: ignore[arg-type]


@given(TEXT.filter(str.strip), st.integers(1, 6), st.data())
def test_chunks_are_pieces_of_the_source_and_nothing_is_lost(
    tokenizer: Any, text: str, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    document = Document(text, "d", {"source": "s"})
    pieces = chunk([document], chunk_tokens=size, overlap=overlap, tokenizer=tokenizer, progress=False)
    assert [piece.id for piece in pieces] == [f"d#{i}" for i in range(len(pieces))]
    covered = [False] * len(text)
    for piece in pieces:
        start, end = piece.metadata["start"], piece.metadata["end"]
        assert piece.text == text[start:end]
        assert piece.text.strip()
        assert piece.metadata["source"] == "s"
        covered[start:end] = [True] * (end - start)
    assert not "".join(c for c, seen in zip(text, covered, strict=True) if not seen).strip()
    starts = [piece.metadata["start"] for piece in pieces]
    ends = [piece.metadata["end"] for piece in pieces]
    assert starts == sorted(set(starts))
    assert ends == sorted(set(ends))
    if overlap == 0:
        assert all(start >= end for start, end in zip(starts[1:], ends, strict=False))


@given(st.lists(st.sampled_from(["the", "road", "is", "long", ".", "x_1"]), min_size=1, max_size=30), st.integers(1, 6))
def test_windows_of_words_by_a_slow_loop(words: list[str], size: int) -> None:
    text = " ".join(words)
    for overlap in range(size):
        windows = [words[:size]]
        while (start := len(windows) * (size - overlap)) + overlap < len(words):
            windows.append(words[start : start + size])
        pieces = chunk([Document(text)], chunk_tokens=size, overlap=overlap, progress=False)
        assert [piece.text.split() for piece in pieces] == windows


def test_an_overlap_is_said_twice() -> None:
    pieces = chunk([Document("the long road is a river")], chunk_tokens=4, overlap=2, progress=False)
    assert [piece.text for piece in pieces] == ["the long road is ", "road is a river"]


def test_chunks_of_a_tokenizer_hold_its_tokens() -> None:
    tokenizer = tiny_tokenizer("bpe", bos=True)
    text = "The river is long , the road is longer . Question : Who wrote the book ?"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
    pieces = chunk([Document(text)], chunk_tokens=4, tokenizer=tokenizer)
    assert [piece.metadata["start"] for piece in pieces] == starts[::4]
    assert len(pieces) == -(-len(ids) // 4)
    assert all(len(tokenizer(p.text, add_special_tokens=False)["input_ids"]) <= 4 for p in pieces[:1])


def test_a_character_of_many_tokens_stays_whole() -> None:
    tokenizer = tiny_tokenizer("bpe")
    assert len(tokenizer("字", add_special_tokens=False)["input_ids"]) > 1
    assert [p.text for p in chunk([Document("字a字")], chunk_tokens=1, tokenizer=tokenizer)] == ["字", "a", "字"]


def test_a_long_text_makes_no_warning() -> None:
    tokenizer = tiny_tokenizer("wordpiece")
    tokenizer.model_max_length = 4
    text = "the road " * 20
    assert "".join(p.text for p in chunk([Document(text)], chunk_tokens=10, tokenizer=tokenizer)) == text


def test_metadata_and_media_travel() -> None:
    document = Document("a b", "d", {"x": 1}, (Media(b"i", "image/png"),))
    first, second = chunk([document], chunk_tokens=1)
    assert first == Document("a ", "d#0", {"x": 1, "start": 0, "end": 2}, document.media)
    assert second.media == document.media


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_tokens": 0}, "at least 1, got 0"),
        ({"chunk_tokens": 4, "overlap": 4}, "less than chunk_tokens=4, got 4"),
        ({"chunk_tokens": 4, "overlap": -1}, "at least 0"),
        ({"chunk_tokens": 4, "tokenizer": "bert"}, "a fast HuggingFace tokenizer.*got str"),
        ({"chunk_tokens": 4, "tokenizer": PreTrainedTokenizer}, "a fast HuggingFace tokenizer"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chunk([Document("a")], **settings)


def test_taken_names() -> None:
    with pytest.raises(DataError, match="'d' has metadata 'end'"):
        chunk([Document("a", "d", {"end": 3})], chunk_tokens=1)
