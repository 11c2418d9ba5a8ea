"""Law 8: metrics equal reference implementations on fuzzed input, and slow restatements where the references differ."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import ir_measures
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, R, Success, nDCG
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text.squad import squad

from fedrag.evaluation.ranking import answer_recall, cutoffs, label_metrics
from fedrag.evaluation.text import answer_metrics, contains, exact_match, f1, normalize, rouge_l, support

WORDS = ["the", "The", "a", "an", "Paris", "paris", "PARIS!", "France", "U.S.", "us", "A-B", "ab", "é", "é", "–", "“x”"]
WORDS += [
    "7",
    "1,000",
    "",
    " ",
    "\n",
    "\u00a0",
    "running",
    "runs",
    "naïve",
    "東京",
    "東京 タワー",
    "हिन्दी",
    "İ",
    "ß",
    "\x00",
    "the-the",
]
# code points that this Python does not know yet may be letters to a newer Unicode table
known = st.characters(exclude_categories=("Cs", "Cn"))
texts = st.one_of(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), st.text(known, max_size=12))
golds = st.lists(texts, max_size=4)


def squad_normal_form(text: str) -> str:
    """SQuAD's normalisation, one character and one word at a time."""
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    out, word = "", ""
    for c in [*kept, " "]:
        if c.isalnum() or c == "_":
            word += c
        else:
            out += (" " if word in ("a", "an", "the") else word) + c
            word = ""
    return " ".join(out.split())


@given(texts)
def test_normal_form_equals_a_restatement(text: str) -> None:
    assert normalize(text) == squad_normal_form(text)


@given(texts, golds)
@settings(max_examples=300)
def test_exact_match_and_f1_equal_torchmetrics(prediction: str, answers: list[str]) -> None:
    # SQuAD 2.0 drops golds that normalise to nothing before it scores; torchmetrics leaves that to its caller
    wanted = [answer for answer in answers if squad_normal_form(answer)] or [""]
    reference = squad(
        {"prediction_text": prediction, "id": "0"}, {"answers": {"text": wanted, "answer_start": [0]}, "id": "0"}
    )
    assert 100 * exact_match(prediction, answers) == reference["exact_match"].item()
    assert 100 * f1(prediction, answers) == pytest.approx(reference["f1"].item(), abs=1e-4)


@given(texts, texts)
def test_empty_sides_follow_squad_2(prediction: str, answer: str) -> None:
    empty = (not squad_normal_form(prediction), not squad_normal_form(answer))
    if any(empty):
        assert f1(prediction, [answer]) == exact_match(prediction, [answer]) == float(all(empty))


@given(texts, golds)
@settings(max_examples=200)
def test_rouge_l_equals_rouge_score(prediction: str, answers: list[str]) -> None:
    if not any(map(squad_normal_form, answers)):
        assert rouge_l(prediction, answers) == float(not squad_normal_form(prediction))
    else:
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        assert rouge_l(prediction, answers) == max(
            scorer.score(gold, prediction)["rougeL"].fmeasure for gold in answers
        )


@given(*[st.lists(st.sampled_from(["w", "x", "y", "z"]), min_size=1, max_size=7)] * 2)
def test_rouge_l_is_the_longest_common_subsequence(one: list[str], two: list[str]) -> None:
    def longest(x: Sequence[str], y: Sequence[str]) -> int:
        if not x or not y:
            return 0
        if x[0] == y[0]:
            return 1 + longest(x[1:], y[1:])
        return max(longest(x[1:], y), longest(x, y[1:]))

    expected = 2 * longest(one, two) / (len(one) + len(two))
    assert rouge_l(" ".join(one), [" ".join(two)]) == pytest.approx(expected)


@given(texts, golds)
def test_containment_equals_a_search_over_token_windows(prediction: str, answers: list[str]) -> None:
    tokens = squad_normal_form(prediction).split()
    wanted = [words for gold in answers if (words := squad_normal_form(gold).split())]
    windows = [tokens[i:j] for i in range(len(tokens)) for j in range(i + 1, len(tokens) + 1)]
    expected = any(gold in windows for gold in wanted) if wanted else not tokens
    assert contains(prediction, answers) == float(expected)


@given(texts, golds)
def test_support_is_the_share_of_tokens_that_can_be_crossed_off_in_the_documents(
    text: str, documents: list[str]
) -> None:
    left = [token for document in documents for token in squad_normal_form(document).split()]
    tokens = squad_normal_form(text).split()
    crossed = 0
    for token in tokens:
        if token in left:
            left.remove(token)
            crossed += 1
    assert support(text, documents) == (crossed / len(tokens) if tokens else None)


@given(texts, golds, st.randoms())
def test_answer_metrics_are_in_bounds_ordered_and_do_not_depend_on_the_order_of_golds(
    prediction: str, answers: list[str], random: object
) -> None:
    values = answer_metrics(prediction, answers)
    assert all(0.0 <= value <= 1.0 for value in values.values())
    assert values["exact_match"] <= values["f1"]
    assert values["exact_match"] <= values["contains"]
    assert answer_metrics(prediction, answers[::-1]) == values
    more = answer_metrics(prediction, [*answers, prediction])
    if normalize(prediction):
        assert more["exact_match"] == more["f1"] == more["contains"] == 1.0


ids = st.sampled_from([f"d{number}" for number in range(12)])
queries = st.lists(
    st.tuples(st.lists(ids, unique=True, max_size=10), st.lists(ids, unique=True, max_size=4)), min_size=1, max_size=6
)


def restated(ranking: Sequence[str], relevant: Sequence[str], depth: int) -> dict[str, float]:
    """Every metric by its definition."""
    gains = [float(id in relevant) for id in ranking[:depth]]
    gains += [0.0] * (depth - len(gains))
    ideal = [1.0] * min(len(relevant), depth)
    precision = [sum(gains[: rank + 1]) / (rank + 1) for rank in range(depth)]
    values = {
        f"mrr@{depth}": max((gain / (rank + 1) for rank, gain in enumerate(gains)), default=0.0),
        f"map@{depth}": sum(p * gain for p, gain in zip(precision, gains, strict=True)) / len(relevant),
        f"ndcg@{depth}": sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))
        / sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal)),
    }
    for k in cutoffs(depth):
        values[f"recall@{k}"] = sum(gains[:k]) / len(relevant)
        values[f"hit@{k}"] = float(any(gains[:k]))
    return values


@given(queries, st.integers(1, 12))
def test_label_metrics_equal_their_definitions(batch: list[tuple[list[str], list[str]]], depth: int) -> None:
    found = label_metrics([ranking for ranking, _ in batch], [relevant for _, relevant in batch], depth)
    several = any(len(relevant) > 1 for _, relevant in batch)
    for row, (ranking, relevant) in zip(found, batch, strict=True):
        expected = restated(ranking, relevant, depth) if relevant else {}
        assert row == pytest.approx({k: v for k, v in expected.items() if several or not k.startswith("hit")})


@given(queries)
def test_label_metrics_equal_pytrec_eval_and_ir_measures_on_scores_without_ties(
    batch: list[tuple[list[str], list[str]]],
) -> None:
    depth = 10
    found = label_metrics([ranking for ranking, _ in batch], [relevant for _, relevant in batch], depth)
    kept = {f"q{n}": (ranking, relevant, found[n]) for n, (ranking, relevant) in enumerate(batch) if relevant}
    if not kept:
        assert found == [{}] * len(batch)
        return
    run = {q: {id: 1.0 / (2 + rank) for rank, id in enumerate(ranking)} for q, (ranking, _, _) in kept.items()}
    qrel = {q: dict.fromkeys(relevant, 1) for q, (_, relevant, _) in kept.items()}
    judged = pytrec_eval.RelevanceEvaluator(qrel, {"map", "ndcg", "recip_rank", "recall.5", "success.5"}).evaluate(run)
    for q, (_, relevant, row) in kept.items():
        assert row["map@10"] == pytest.approx(judged[q]["map"])
        assert row["ndcg@10"] == pytest.approx(judged[q]["ndcg"])
        assert row["mrr@10"] == pytest.approx(judged[q]["recip_rank"])
        assert row["recall@5"] == pytest.approx(judged[q]["recall_5"])
        assert row.get("hit@5", row["recall@5"] if len(relevant) == 1 else None) == judged[q]["success_5"]
    names = {AP @ 10: "map@10", nDCG @ 10: "ndcg@10", RR @ 10: "mrr@10", R @ 5: "recall@5", R @ 1: "recall@1"}
    names |= {Success @ 1: "hit@1"} if any(len(relevant) > 1 for _, relevant in batch) else {}
    # ir_measures leaves out queries without any result; ours are all there, with 0
    seen = set()
    for value in ir_measures.iter_calc(list(names), qrel, {q: docs for q, docs in run.items() if docs}):
        assert kept[value.query_id][2][names[value.measure]] == pytest.approx(value.value)
        seen.add(value.query_id)
    for q in set(kept) - seen:
        assert not kept[q][0]
        assert set(kept[q][2].values()) == {0.0}


def test_a_ranking_is_taken_in_its_order_where_trec_eval_would_break_ties_by_id() -> None:
    ranking = ["a", "b", "c"]
    tied = pytrec_eval.RelevanceEvaluator({"q": {"a": 1}}, {"recip_rank"}).evaluate({"q": dict.fromkeys(ranking, 1.0)})
    assert tied["q"]["recip_rank"] == pytest.approx(1 / 3)
    assert label_metrics([ranking], [["a"]], 3)[0]["mrr@3"] == 1.0


@given(st.lists(st.text(st.characters(), max_size=5), unique=True, min_size=1, max_size=6), st.data())
def test_ids_are_opaque(names: list[str], data: st.DataObject) -> None:
    """Ids with NUL, lone surrogates, spaces or nothing in them give the figures of plain ids."""
    relevant = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    ranking = data.draw(st.lists(st.sampled_from(names), unique=True))
    plain = {name: f"d{number}" for number, name in enumerate(names)}
    assert label_metrics([ranking], [relevant], 5) == label_metrics(
        [[plain[id] for id in ranking]], [[plain[id] for id in relevant]], 5
    )


def dpr_tokens(text: str) -> list[str]:
    """The tokens of DPR's answer matching, one character at a time."""
    tokens: list[str] = []
    open = False
    for c in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(c)[0]
        if kind in "LNM":
            tokens[-1:] = [tokens[-1] + c] if open else [*tokens[-1:], c]
        elif kind not in "ZC":
            tokens.append(c)
        open = kind in "LNM"
    return [token.lower() for token in tokens]


@given(st.lists(texts, max_size=7), golds, st.integers(1, 7))
def test_answer_recall_equals_a_search_over_dprs_token_windows(
    passages: list[str], answers: list[str], depth: int
) -> None:
    wanted = [tokens for answer in answers if (tokens := dpr_tokens(answer))]
    holds = []
    for passage in passages[:depth]:
        tokens = dpr_tokens(passage)
        holds.append(any(gold == tokens[i : i + len(gold)] for gold in wanted for i in range(len(tokens))))
    expected = {f"answer_recall@{k}": float(any(holds[:k])) for k in cutoffs(depth)} if wanted else {}
    assert answer_recall([passages], [answers], depth) == [expected]
