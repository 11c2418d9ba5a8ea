"""BM25 against its formulas, word by word, over lists and over stores that change."""

import copy
import math
from threading import Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrag.errors import ConfigError, InputError
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document

TEXTS = ["the key is old", "rotate the key, rotate it", "a river runs", "Key! key? KEY_9"]
DOCUMENTS = [Document(text, id=str(n), metadata={"n": n}) for n, text in enumerate(TEXTS)]
WORDS = [
    ["the", "key", "is", "old"],
    ["rotate", "the", "key", "rotate", "it"],
    ["a", "river", "runs"],
    ["key"] * 3 + ["9"],
]
VARIANTS = ["lucene", "robertson", "atire", "bm25l", "bm25+"]


def slow(variant, query, words, everything, k1=1.5, b=0.75):
    """The published formulas; a word that no document has counts nothing."""
    size, mean = len(everything), sum(map(len, everything)) / len(everything)
    length = 1 - b + b * len(words) / mean
    score = 0.0
    for word in query:
        if not (df := sum(word in other for other in everything)):
            continue
        tf = words.count(word)
        odds = (size - df + 0.5) / (df + 0.5)
        idf = {
            "lucene": math.log(1 + odds),
            "robertson": max(0.0, math.log(odds)),
            "atire": math.log(size / df),
            "bm25l": math.log((size + 1) / (df + 0.5)),
            "bm25+": math.log((size + 1) / df),
        }[variant]
        if variant in ("lucene", "robertson"):
            share = tf / (tf + k1 * length) if tf else 0.0
        elif variant == "bm25l":
            share = (k1 + 1) * (tf / length + 0.5) / (k1 + tf / length + 0.5)
        else:
            share = ((k1 + 1) * tf / (tf + k1 * length) if tf else 0.0) + (variant == "bm25+")
        score += idf * share
    return score


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0), (0.5, 1.0)])
def test_scores_are_those_of_the_formula(variant, k1, b):
    query = ["rotate", "the", "key", "zzz"]
    expected = {str(n): slow(variant, query, row, WORDS, k1, b) for n, row in enumerate(WORDS)}
    hits = LexicalRetriever(DOCUMENTS, variant=variant, k1=k1, b=b).retrieve(["Rotate the key zzz"], 4)[0]
    assert {hit.document.id: hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)
    ranked = sorted(expected, key=lambda id: (-round(expected[id], 5), id))
    assert [hit.document.id for hit in hits] == ranked


def test_variants_rank_in_different_ways():
    assert (
        len(
            {
                tuple(round(h.score, 4) for h in LexicalRetriever(DOCUMENTS, variant=v).retrieve(["key"], 4)[0])
                for v in VARIANTS
            }
        )
        > 3
    )


def test_unknown_words_rank_by_order_and_filters_come_first():
    bm25 = LexicalRetriever(DOCUMENTS)
    assert [hit.document.id for hit in bm25.retrieve(["zzz"], 2)[0]] == ["0", "1"]
    where = {"field": "n", "operator": ">=", "value": 2}
    assert [hit.document.id for hit in bm25.retrieve(["key"], 3, where)[0]] == ["3", "2"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_share_a_word(variant):
    bm25 = LexicalRetriever(
        [*DOCUMENTS, Document("", id="empty"), *(Document("moss", id=f"m{n}") for n in range(4))], variant=variant
    )
    found = bm25.matches(["key", "river zzz", "zzz", ""], 9)
    assert [{hit.document.id for hit in row} for row in found] == [{"0", "1", "3"}, {"2"}, set(), set()]
    where = {"field": "n", "operator": "==", "value": 1}
    assert [hit.document.id for hit in bm25.matches(["key"], 9, where)[0]] == ["1"]


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="at least one document"):
        LexicalRetriever([])
    with pytest.raises(InputError, match="k must be at least 1"):
        LexicalRetriever(DOCUMENTS).retrieve(["key"], 0)
    with pytest.raises(ConfigError, match=r"variant='okapi'.*'lucene'"):
        LexicalRetriever(DOCUMENTS, variant="okapi")
    for settings_ in ({"k1": -0.1}, {"b": 1.1}, {"k1": math.nan}):
        with pytest.raises(ConfigError, match="k1 >= 0 and b from 0 to 1"):
            LexicalRetriever(DOCUMENTS, **settings_)


class Untold:
    """A store that does not tell of changes: the protocol's members, and no `version`."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        if name == "version":
            raise AttributeError(name)
        return getattr(self._store, name)

    def __len__(self):
        return len(self._store)

    def __contains__(self, id):
        return id in self._store


def put(store, *documents):
    store.add(documents, torch.ones(len(documents), 2))


@pytest.mark.parametrize("wrap", [lambda store: store, Untold])
def test_every_change_of_a_store_is_seen(wrap):
    store = MemoryStore()
    bm25 = LexicalRetriever(wrap(store))

    def found(query):
        return [hit.document.text for hit in bm25.matches([query], 9)[0]]

    assert bm25.retrieve(["key"], 3) == [[]]
    put(store, Document("an old key", id="1"), Document("a river", id="2"))
    assert found("key") == ["an old key"]
    put(store, Document("an old door", id="1"))  # as many as before
    assert found("key") == []
    assert found("door") == ["an old door"]
    store.remove(["2"])
    put(store, Document("a lake", id="3"))  # as many as before
    assert found("river") == []
    assert found("lake") == ["a lake"]
    put(store, Document("a lake", id="3", metadata={"n": 7}))  # the same words
    assert bm25.retrieve(["lake"], 1, {"field": "n", "operator": "==", "value": 7})[0]
    store.remove(["1", "3"])
    assert bm25.retrieve(["lake"], 3) == [[]]


def test_a_store_that_has_not_changed_is_indexed_once():
    store = MemoryStore()
    put(store, *DOCUMENTS)
    bm25 = LexicalRetriever(store)
    bm25.retrieve(["key"], 1)
    before = bm25._index
    store.update_vectors(["1"], torch.zeros(1, 2))
    bm25.retrieve(["river"], 1)
    assert bm25._index is before
    told = LexicalRetriever(Untold(store))
    told.retrieve(["key"], 1)
    scorer = told._index.scorer
    told.retrieve(["key"], 1)
    assert told._index.scorer is scorer


def test_a_copy_over_another_store_copies_no_document():
    store, other = MemoryStore(), MemoryStore()
    put(store, *DOCUMENTS)
    put(other, Document("a key of another store", id="other"))
    bm25 = LexicalRetriever(store)
    bm25.retrieve(["key"], 1)
    same, moved = (copy.deepcopy(bm25, {id(store): to}) for to in (store, other))
    assert same._fresh() is moved._index is bm25._index
    assert [hit.document.id for hit in moved.matches(["key"], 9)[0]] == ["other"]
    assert same.retrieve(["key"], 3) == bm25.retrieve(["key"], 3)


CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "remove"]), st.sampled_from("abc"), st.sampled_from(["key", "door", "lake"])),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_over_a_store_is_over_its_documents(changes):
    store = MemoryStore()
    bm25 = LexicalRetriever(store)
    for what, id, text in changes:
        if what == "add":
            put(store, Document(text, id=id))
        else:
            store.remove([id])
        now = list(store.documents())
        wanted = LexicalRetriever(now).retrieve(["key lake"], 3) if now else [[]]
        assert bm25.retrieve(["key lake"], 3) == wanted


def test_threads_ask_while_documents_come():
    store = MemoryStore()
    bm25 = LexicalRetriever(store)
    wrong = []

    def ask():
        for _ in range(50):
            rows = bm25.matches(["key"], 100)[0]
            if any("key" not in hit.document.text for hit in rows):
                wrong.append(rows)

    threads = [Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(50):
        put(store, Document(f"key {n}", id=f"k{n}"), Document(f"door {n}", id=f"d{n}"))
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(bm25.matches(["key"], 100)[0]) == 50
