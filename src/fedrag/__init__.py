"""FedRAG fine-tunes retrieval-augmented generation systems, whole: retriever, generator, each alone or together.

`import fedrag` is cheap: every name below is loaded, torch with it, when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrag.data import documents_from, examples_from, read_documents, read_examples, split
    from fedrag.encoders.sentence import SentenceEncoder
    from fedrag.errors import FedRAGError
    from fedrag.evaluation import Report, evaluate
    from fedrag.generators.causal import CausalLM
    from fedrag.objectives.contrastive import Contrastive
    from fedrag.objectives.lsr import LSR
    from fedrag.objectives.ralt import RALT
    from fedrag.objectives.sentence import SentenceLoss
    from fedrag.prompts import Prompt
    from fedrag.rag import RAGSystem
    from fedrag.retrievers.dense import DenseRetriever
    from fedrag.retrievers.lexical import BM25
    from fedrag.stores.memory import MemoryStore
    from fedrag.training.trainer import RAGTrainer
    from fedrag.types import Answer, Document, Example, Hit, Media

__version__ = "0.1.0"

_HOME = {
    "Answer": "types",
    "BM25": "retrievers.lexical",
    "CausalLM": "generators.causal",
    "Contrastive": "objectives.contrastive",
    "DenseRetriever": "retrievers.dense",
    "Document": "types",
    "Example": "types",
    "FedRAGError": "errors",
    "Hit": "types",
    "LSR": "objectives.lsr",
    "Media": "types",
    "MemoryStore": "stores.memory",
    "Prompt": "prompts",
    "RALT": "objectives.ralt",
    "RAGSystem": "rag",
    "RAGTrainer": "training.trainer",
    "Report": "evaluation",
    "SentenceEncoder": "encoders.sentence",
    "SentenceLoss": "objectives.sentence",
    "documents_from": "data",
    "evaluate": "evaluation",
    "examples_from": "data",
    "read_documents": "data",
    "read_examples": "data",
    "split": "data",
}

__all__ = [
    "BM25",
    "LSR",
    "RALT",
    "Answer",
    "CausalLM",
    "Contrastive",
    "DenseRetriever",
    "Document",
    "Example",
    "FedRAGError",
    "Hit",
    "Media",
    "MemoryStore",
    "Prompt",
    "RAGSystem",
    "RAGTrainer",
    "Report",
    "SentenceEncoder",
    "SentenceLoss",
    "documents_from",
    "evaluate",
    "examples_from",
    "read_documents",
    "read_examples",
    "split",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedrag' has no attribute {name!r}")
    value = getattr(import_module(f"fedrag.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
