"""Reranking: the order of a brute force, scores with gradient, and systems saved and loaded with a reranker."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder

from fedrag import Document, LexicalRetriever, RAGSystem
from fedrag.encoders.cross import CrossEncoderReranker
from fedrag.errors import ConfigError, InputError, StaleIndexError, StoreError
from fedrag.retrievers.hybrid import HybridRetriever
from fedrag.retrievers.reranked import Reranked, Reranker
from judges import tiny_cross_encoder
from systems import DOCUMENTS, EXAMPLES, tiny_system

SHARED = CrossEncoderReranker(tiny_cross_encoder())
QUESTIONS = [example.question for example in EXAMPLES[:5]]


class Longest:
    """A reranker of ten lines: the longer a text, the better."""

    def scores(self, queries, documents):
        width = max(map(len, documents))
        rows = [[float(len(d.text)) for d in row] + [-torch.inf] * (width - len(row)) for row in documents]
        return torch.tensor(rows)


@pytest.fixture
def reranker():
    return CrossEncoderReranker(tiny_cross_encoder(dropout=0.3), batch_size=3)


def whole_system(reranker, **settings):
    rag = tiny_system()
    hybrid = HybridRetriever([rag.dense, LexicalRetriever(rag.dense.store, variant="bm25+", k1=1.1)], weights=[1, 2])
    return RAGSystem(retriever=Reranked(hybrid, reranker, depth=10), generator=rag.generator, top_k=3, **settings)


def ids(hits):
    return [hit.document.id for hit in hits]


def test_the_order_is_that_of_predict_over_what_the_first_stage_finds(reranker):
    first = tiny_system().dense
    for n, hits in enumerate(Reranked(first, reranker, depth=10).retrieve(QUESTIONS, 4)):
        found = [hit.document for hit in first.retrieve([QUESTIONS[n]], 10)[0]]
        judged = reranker.model.predict([(QUESTIONS[n], d.text) for d in found], activation_fn=torch.nn.Identity())
        best = sorted(range(10), key=lambda i: -judged[i])[:4]
        assert ids(hits) == [found[i].id for i in best]
        assert [hit.score for hit in hits] == pytest.approx([judged[i] for i in best], abs=1e-5)
    assert Reranked(first, reranker).retrieve([], 3) == []


def test_more_than_depth_is_reranked_where_more_is_asked(reranker):
    assert len(Reranked(tiny_system().dense, reranker, depth=2).retrieve(QUESTIONS, 12)[0]) == 12


def test_equal_scores_stay_in_order_and_questions_without_a_hit_stay_empty():
    texts = LexicalRetriever([Document("abcd", id="2"), Document("efgh", id="1"), Document("ijklm", id="3")])
    reranked = Reranked(texts, Longest())
    assert ids(reranked.retrieve(["efgh abcd"], 3)[0]) == ["3", "2", "1"]
    nothing = {"field": "x", "operator": "==", "value": 1}
    assert reranked.retrieve(["a", "b"], 3, nothing) == [[], []]
    assert isinstance(Longest(), Reranker)


def test_scores_do_not_depend_on_the_batch_and_carry_gradients(reranker):
    rows = [DOCUMENTS[:4], DOCUMENTS[5:6], DOCUMENTS[3:6]]
    scores = reranker.scores(QUESTIONS[:3], rows)
    assert scores.shape == (3, 4)
    assert scores.dtype == torch.float32
    assert torch.isinf(scores).sum() == 4
    for n, row in enumerate(rows):
        alone = torch.cat([reranker.scores([QUESTIONS[n]], [[d]])[0] for d in row])
        torch.testing.assert_close(scores[n, : len(row)], alone, atol=1e-5, rtol=1e-5)
    scores[torch.isfinite(scores)].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in reranker.parameters())


def test_retrieving_is_without_dropout_and_leaves_the_mode_as_it_was(reranker):
    reranked = Reranked(tiny_system().dense, reranker)
    reranker.train()
    assert reranked.retrieve(QUESTIONS, 5) == reranked.retrieve(QUESTIONS, 5)
    assert all(module.training for module in reranker.modules())


def test_long_pairs_are_cut(reranker):
    long = Document("the key of clerk 3 is nine . " * 100)
    assert torch.isfinite(reranker.scores(["which key ?"], [[long]])).all()


TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=4)), min_size=1, max_size=3))
def test_any_text_has_a_score(asked):
    queries, texts = zip(*asked, strict=True)
    scores = SHARED.scores(queries, [[Document(text, id=str(n)) for n, text in enumerate(row)] for row in texts])
    assert torch.isfinite(scores).sum() == sum(map(len, texts))


def test_wrong_input_is_named(reranker):
    with pytest.raises(InputError, match=r"lengths \[1, 0\]"):
        reranker.scores(["a", "b"], [DOCUMENTS[:1], []])
    with pytest.raises(ConfigError, match="2 labels"):
        CrossEncoderReranker(tiny_cross_encoder(labels=2))
    with pytest.raises(ConfigError, match="batch_size=0"):
        CrossEncoderReranker(tiny_cross_encoder(), batch_size=0)
    with pytest.raises(ConfigError, match="depth=0"):
        Reranked(tiny_system().dense, reranker, depth=0)
    with pytest.raises(InputError, match="needs a Reranked, the system has a DenseRetriever"):
        _ = tiny_system().reranker
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k must be at least 1, got {k}"):
            Reranked(tiny_system().dense, reranker).retrieve(["a"], k)


def test_what_is_no_reranker_is_named():
    first = tiny_system().dense
    with pytest.raises(ConfigError, match=r"a CrossEncoder has none: wrap a model or its name in CrossEncoderReranker"):
        Reranked(first, tiny_cross_encoder())
    for wrong, what in (
        (torch.zeros(2, 1), r"scores of the shape \[2, 1\] for 2 queries with up to 5 documents"),
        (torch.zeros(10), r"scores of the shape \[10\]"),
        (torch.full((2, 5), torch.nan), "NaN for 2 queries"),
    ):
        told = Longest()
        told.scores = lambda queries, documents, wrong=wrong: wrong
        with pytest.raises(InputError, match=f"the Longest gave {what}"):
            Reranked(first, told, depth=5).retrieve(QUESTIONS[:2], 3)


def test_a_system_has_its_parts_wherever_they_are(reranker):
    rag = whole_system(reranker)
    assert list(rag.parts()) == ["retriever/encoder", "reranker", "generator"]
    assert rag.reranker is reranker
    assert rag.dense is rag.retriever.inside[0].inside[0]
    assert rag.temperature == 1.0
    answer = rag.query(QUESTIONS[0])
    assert len(answer.hits) == 3
    rag.add([Document("The zebra of clerk 3 sleeps .", id="new")], progress=False)
    assert "new" in ids(rag.retriever.retriever.retrieve(["zebra"], 1)[0])


def test_a_stale_index_is_stale_behind_a_reranker(reranker):
    rag = whole_system(reranker)
    with torch.no_grad():
        next(rag.dense.encoder.parameters()).add_(0.1)
    with pytest.raises(StaleIndexError):
        rag.query(QUESTIONS[0])
    rag.dense.refresh(progress=False)
    rag.query(QUESTIONS[0])


def test_saved_then_loaded_is_the_same(reranker, tmp_path):
    reranker.batch_size = 32  # as when loaded: padding changes last bits
    rag = whole_system(reranker, temperature=0.7)
    rag.save(tmp_path / "rag")
    again = RAGSystem.load(tmp_path / "rag")
    assert again.query_batch(QUESTIONS) == rag.query_batch(QUESTIONS)
    hybrid, bm25 = again.retriever.retriever, again.retriever.retriever.inside[1]
    assert (again.retriever.depth, hybrid.depth, hybrid.constant, hybrid.weights) == (10, 50, 60, (1, 2))
    assert (bm25.variant, bm25.k1, bm25.b, bm25.store) == ("bm25+", 1.1, 0.75, again.dense.store)
    assert again.temperature == 0.7
    assert again.reranker.fingerprint == rag.reranker.fingerprint
    folder = next((tmp_path / "rag").rglob("fedrag.json")).parent
    plain = CrossEncoder(str(folder / "reranker"), device="cpu")
    pairs = [(QUESTIONS[0], document.text) for document in DOCUMENTS[:4]]
    assert plain.predict(pairs) == pytest.approx(reranker.model.predict(pairs))


def test_a_reranker_of_ones_own_is_passed_again(tmp_path):
    rag = whole_system(Longest())
    assert "reranker" not in rag.parts()
    rag.save(tmp_path / "rag")
    with pytest.raises(InputError, match="reranker=<the Longest>"):
        RAGSystem.load(tmp_path / "rag")
    for load in (RAGSystem.load, RAGSystem.from_pretrained):
        assert load(tmp_path / "rag", reranker=Longest()).query_batch(QUESTIONS) == rag.query_batch(QUESTIONS)
        with pytest.raises(InputError, match=r"a CrossEncoder, which has no scores.*: wrap it in CrossEncoderReranker"):
            load(tmp_path / "rag", reranker=tiny_cross_encoder())
    tiny_system().save(tmp_path / "plain")
    with pytest.raises(InputError, match=r"a system without a reranker.*put Reranked\(rag.retriever, <the Longest>\)"):
        RAGSystem.load(tmp_path / "plain", reranker=Longest())


def test_what_cannot_be_saved_is_named(reranker, tmp_path):
    rag = tiny_system()
    rag.retriever = HybridRetriever([rag.dense, LexicalRetriever(DOCUMENTS)])
    with pytest.raises(InputError, match="has documents of its own"):
        rag.save(tmp_path / "rag")

    class Strange:
        def retrieve(self, queries, k, where=None):
            return [[] for _ in queries]

    rag.retriever = HybridRetriever([rag.dense, Strange()])
    with pytest.raises(InputError, match="has a Strange inside"):
        rag.save(tmp_path / "rag")
    assert not (tmp_path / "rag").exists()


@pytest.mark.parametrize(
    "shape",
    [{}, {"kind": "magic"}, {"kind": "hybrid", "retrievers": [{"kind": "dense"}]}, {"kind": "lexical", "b": 9}, [], 3],
)
def test_a_damaged_shape_is_a_store_error(shape, reranker, tmp_path):
    whole_system(reranker).save(tmp_path / "rag")
    file = next((tmp_path / "rag").rglob("fedrag.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "retriever": shape}))
    with pytest.raises(StoreError, match=r"fedrag\.json is missing or damaged"):
        RAGSystem.load(tmp_path / "rag")


def test_a_system_of_format_3_has_a_dense_retriever(tmp_path):
    rag = tiny_system()
    rag.save(tmp_path / "rag")
    file = next((tmp_path / "rag").rglob("fedrag.json"))
    saved = json.loads(file.read_text())
    assert saved["format"] == 4
    del saved["retriever"], saved["reranker"]
    file.write_text(json.dumps({**saved, "format": 3}))
    assert RAGSystem.load(tmp_path / "rag").query_batch(QUESTIONS) == rag.query_batch(QUESTIONS)
