"""Retrieval metrics: where the documents that matter stand in a ranking.

Two kinds, which do not measure the same and so have different names:

- with labels, the ids of the relevant documents: `recall@k` (share of them in the first k), `hit@k` (any of them),
  `mrr@k`, `ndcg@k`, `map@k`, computed by `pytrec_eval` (trec_eval; binary relevance);
- without labels: `answer_recall@k`, whether any of the first k passages holds a gold answer, matched on whole tokens
  and without regard to case (the top-k accuracy of DPR: Karpukhin et al. 2020, arXiv:2004.04906, section 5).
  It credits a passage that has the right word for the wrong reason; golds such as "yes" are better left out.

trec_eval orders documents by score and breaks ties by id. A ranking is in order already, so it is handed over with
strictly falling scores and without its ids: neither ties nor odd characters in ids can change a figure.

>>> values = label_metrics([["d3", "d1", "d7"]], [["d1", "d2"]], depth=3)[0]
>>> values["recall@3"], values["mrr@3"]
(0.5, 0.5)
>>> answer_recall([["It rained.", "She was born in New York."]], [["new york", "NYC"]], depth=2)
[{'answer_recall@1': 0.0, 'answer_recall@2': 1.0}]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytrec_eval

from fedrag.errors import InputError
from fedrag.ops.matching import whole_tokens

_CUTOFFS = (1, 5, 10, 20, 100)


def cutoffs(depth: int) -> list[int]:
    """Return the ranks k at which a ranking is judged: those of 1, 5, 10, 20, 100 below its depth, and the depth.

    Raises `InputError` for a depth below 1.
    """
    if depth < 1:
        raise InputError(f"a ranking is judged down to a depth of at least 1, got {depth}")
    return [*(k for k in _CUTOFFS if k < depth), depth]


def label_metrics(
    rankings: Sequence[Sequence[str]], relevant: Sequence[Collection[str]], depth: int
) -> list[dict[str, float]]:
    """Return, per query, its metrics by name; nothing for a query without relevant documents.

    A query with a relevant document has all the metrics, also when nothing was retrieved for it. An id that comes
    twice in a ranking counts at its first place; its other places are wasted. Ranks beyond `depth` do not count.
    """
    names = {"recip_rank": f"mrr@{depth}", f"ndcg_cut_{depth}": f"ndcg@{depth}", f"map_cut_{depth}": f"map@{depth}"}
    recalls = {f"recall_{k}": f"recall@{k}" for k in cutoffs(depth)}
    hits = {f"success_{k}": f"hit@{k}" for k in cutoffs(depth)}
    # with one relevant document per query, hit@k is recall@k
    names = recalls | (hits if any(len(set(ids)) > 1 for ids in relevant) else {}) | names
    run: dict[str, dict[str, float]] = {}
    qrel: dict[str, dict[str, int]] = {}
    for query, (ranking, ids) in enumerate(zip(rankings, relevant, strict=True)):
        if not ids:
            continue
        first = {id: rank for rank, id in reversed(list(enumerate(ranking[:depth])))}
        run[str(query)] = {str(rank): float(-rank) for rank in range(len(ranking[:depth]))}
        qrel[str(query)] = {str(first.get(id, f"missed {id!a}")): 1 for id in ids}
    measured = pytrec_eval.RelevanceEvaluator(qrel, set(names)).evaluate(run) if qrel else {}
    rows = [measured.get(str(query)) for query in range(len(rankings))]
    return [{ours: float(row[theirs]) for theirs, ours in names.items()} if row else {} for row in rows]


def answer_recall(
    passages: Sequence[Sequence[str]], answers: Sequence[Sequence[str]], depth: int
) -> list[dict[str, float]]:
    """Return, per query, `answer_recall@k` by name; nothing for a query without a gold answer to look for.

    `passages` are the retrieved texts of each query, best first; those beyond `depth` do not count.
    """
    seen: dict[str, str] = {}  # the same passages come back for many queries
    rows: list[dict[str, float]] = []
    for ranking, golds in zip(passages, answers, strict=True):
        wanted = [tokens for tokens in map(whole_tokens, golds) if tokens.strip()]
        rank = depth + 1
        for place, passage in enumerate(ranking[:depth], start=1):
            text = seen.get(passage) or seen.setdefault(passage, whole_tokens(passage))
            if any(tokens in text for tokens in wanted):
                rank = place
                break
        rows.append({f"answer_recall@{k}": float(rank <= k) for k in cutoffs(depth)} if wanted else {})
    return rows
