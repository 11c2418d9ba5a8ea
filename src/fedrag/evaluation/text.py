"""Answer metrics: how a generated text compares with the gold answers, and with the documents it was given.

`exact_match` and `f1` follow SQuAD 2.0 (Rajpurkar et al. 2018, its `evaluate-v2.0.py`): texts are normalised, the best
of several golds counts, golds that normalise to nothing are dropped, and a question without golds wants the empty
answer. `rouge_l` is Google's `rouge_score` package; `support` is K-Precision (Adlakha et al. 2023, arXiv:2307.16877).

All are in [0, 1]. Normalisation knows English articles and ASCII punctuation only, and tokens are what whitespace
separates: languages written without spaces are compared as whole phrases. A gold such as "A" is an article, so it is
dropped; write out the option's text in multiple-choice data.

>>> exact_match("The Eiffel Tower!", ["Eiffel tower", "La tour Eiffel"])
1.0
>>> round(f1("in Paris, France", ["Paris"]), 2), contains("in Paris, France", ["paris"]), contains("business", ["us"])
(0.5, 1.0, 0.0)
>>> exact_match("", []), exact_match("Paris", [])
(1.0, 0.0)
>>> support("Paris, Texas", ["Paris is the capital of France."])
0.5
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# left to choose its default tokenizer, RougeScorer says so in a way that configures the program's root logger
_ROUGE = RougeScorer(["rougeL"], tokenizer=DefaultTokenizer(use_stemmer=True))


def normalize(text: str) -> str:
    """Lower the case, delete ASCII punctuation, put a space for each article, collapse whitespace; in this order.

    Punctuation is deleted, not replaced: "U.S." becomes "us", and "A-B" becomes "ab".
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals one of the normalised golds, else 0.0."""
    return float(normalize(prediction) in _golds(answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall (as multisets) against the best gold.

    When either side is empty, 1.0 if both are, else 0.0.
    """
    tokens = normalize(prediction).split()
    return max(_f1(tokens, gold.split()) for gold in _golds(answers))


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the tokens of a gold stand, whole and in a row, in the prediction; "us" is not in "business".

    An unanswerable question wants the empty prediction.
    """
    text = normalize(prediction)
    return float(any(f" {gold} " in f" {text} " if gold else not text for gold in _golds(answers)))


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L F-measure against the best gold, by `rouge_score` with its Porter stemmer, on the raw texts.

    That package knows only the ASCII letters and digits: a text in another script scores 0.
    An unanswerable question wants the empty prediction, as for `f1`.
    """
    if _golds(answers) == [""]:
        return float(not normalize(prediction))
    return max(float(_ROUGE.score(answer, prediction)["rougeL"].fmeasure) for answer in answers)


def support(prediction: str, documents: Sequence[str]) -> float | None:
    """Share of the prediction's normalised tokens that the documents, taken together, also hold (K-Precision).

    Tokens count as often as they occur: the second "Paris" of an answer needs a second one in the documents. No judge
    is asked, so a true paraphrase scores low, and words that meet by chance score. No documents support nothing: 0.0.
    An empty prediction claims nothing and has no support to measure: `None`, which leaves it out of the mean.
    """
    tokens = Counter(normalize(prediction).split())
    if not tokens:
        return None
    held = Counter(token for document in documents for token in normalize(document).split())
    return (tokens & held).total() / tokens.total()


def answer_metrics(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Return the metrics of one prediction against its golds by name."""
    return {metric.__name__: metric(prediction, answers) for metric in (exact_match, f1, rouge_l, contains)}


def _golds(answers: Sequence[str]) -> list[str]:
    """Normalise the golds; those that normalise to nothing are dropped, and without any the empty answer is gold."""
    return [gold for gold in map(normalize, answers) if gold] or [""]


def _f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = (Counter(prediction) & Counter(gold)).total()
    # 2pr / (p + r) with p = common / |prediction| and r = common / |gold|
    return 2 * common / (len(prediction) + len(gold))
