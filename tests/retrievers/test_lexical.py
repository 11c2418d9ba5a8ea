"""BM25 against the formula, word by word."""

import math

import pytest

from fedrag.errors import InputError
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.types import Document

TEXTS = ["the key is old", "rotate the key, rotate it", "a river runs", "Key! key? KEY_9"]
DOCUMENTS = [Document(text, id=str(n), metadata={"n": n}) for n, text in enumerate(TEXTS)]


def lucene(query, words, everything, k1=1.5, b=0.75):
    mean = sum(map(len, everything)) / len(everything)
    score = 0.0
    for word in query:
        df = sum(word in other for other in everything)
        idf = math.log(1 + (len(everything) - df + 0.5) / (df + 0.5))
        tf = words.count(word)
        score += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
    return score


def test_scores_are_those_of_the_formula():
    words = [
        ["the", "key", "is", "old"],
        ["rotate", "the", "key", "rotate", "it"],
        ["a", "river", "runs"],
        ["key"] * 3 + ["9"],
    ]
    hits = LexicalRetriever(DOCUMENTS).retrieve(["Rotate the key"], 4)[0]
    expected = {str(n): lucene(["rotate", "the", "key"], row, words) for n, row in enumerate(words)}
    assert {hit.document.id: hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)
    assert [hit.document.id for hit in hits] == sorted(expected, key=lambda id: -expected[id])


def test_unknown_words_rank_by_order_and_filters_come_first():
    bm25 = LexicalRetriever(DOCUMENTS)
    assert [hit.document.id for hit in bm25.retrieve(["zzz"], 2)[0]] == ["0", "1"]
    where = {"field": "n", "operator": ">=", "value": 2}
    assert [hit.document.id for hit in bm25.retrieve(["key"], 3, where)[0]] == ["3", "2"]


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="at least one document"):
        LexicalRetriever([])
    with pytest.raises(InputError, match="k must be at least 1"):
        LexicalRetriever(DOCUMENTS).retrieve(["key"], 0)
