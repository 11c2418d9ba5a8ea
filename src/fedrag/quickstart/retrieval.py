"""Act A of the quickstart: a retriever tuned on real text, the documentation of the installed packages.

The encoder is made from scratch (random vectors of word pieces), so that nothing is downloaded; BM25 stands in the
table because it is better than such an encoder, and should be shown. With `encoder`, a pre-trained one is tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.evaluation import Report, evaluate_retriever
from fedrag.objectives.contrastive import Contrastive
from fedrag.quickstart.documentation import Documentation, read_documentation
from fedrag.quickstart.static_encoder import static_encoder
from fedrag.quickstart.training import train
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Retriever

SETTING = "whole corpus"
UNTRAINED, TUNED, LEXICAL = "untrained", "contrastive", "BM25"


def collect(*, quick: bool) -> Documentation:
    """Read the documentation; the quick form keeps every fourth held-out question."""
    text = read_documentation()
    return replace(text, test=text.test[::4]) if quick else text


def run_regimes(
    text: Documentation, seed: int, *, quick: bool, encoder: str | None, announce: Callable[[str], None]
) -> dict[str, dict[str, Report]]:
    """Measure BM25, the encoder before, and the encoder after contrastive tuning, over all passages."""
    announce(LEXICAL)
    reports = {LEXICAL: _measure(LexicalRetriever(text.documents), text)}
    announce(UNTRAINED)
    passages = {document.id: document.text for document in text.documents}
    made = static_encoder([t for e in text.train for t in (e.question, passages[e.positives[0]])], width=512, seed=seed)
    model = SentenceEncoder(encoder or made)
    retriever = DenseRetriever(model, MemoryStore(), batch_size=128)
    retriever.add(text.documents)
    reports[UNTRAINED] = _measure(retriever, text)
    announce(TUNED)
    objective = Contrastive(RAGSystem(retriever=retriever))
    if encoder:
        train(objective, text.train, steps=20 if quick else 60, rate=5e-5, seed=seed)
    else:
        train(objective, text.train, steps=20 if quick else 200, rate=0.1, seed=seed, batch_size=128)
    reports[TUNED] = _measure(retriever, text)
    return reports


def _measure(retriever: Retriever, text: Documentation) -> dict[str, Report]:
    return {SETTING: evaluate_retriever(retriever, text.test, k=10, progress=False, cluster="module")}
