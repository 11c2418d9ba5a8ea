"""Evaluation: metrics with intervals, and paired comparisons of two systems on the same questions."""

from fedrag.evaluation.comparison import Comparison, Difference
from fedrag.evaluation.report import Metric, Record, Report, summarize
from fedrag.evaluation.run import Answerer, evaluate, evaluate_retriever

__all__ = [
    "Answerer",
    "Comparison",
    "Difference",
    "Metric",
    "Record",
    "Report",
    "evaluate",
    "evaluate_retriever",
    "summarize",
]
