"""FedRAG fine-tunes retrieval-augmented generation systems, whole: retriever, generator, each alone or together.

`import fedrag` is cheap: every name below is loaded, torch with it, when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrag.ablations import Ablation, ablation
    from fedrag.data import documents_from, examples_from, read_documents, read_examples, split
    from fedrag.encoders.cross import CrossEncoderReranker
    from fedrag.encoders.sentence import SentenceEncoder
    from fedrag.errors import FedRAGError
    from fedrag.evaluation import Report, evaluate
    from fedrag.generators.causal import CausalLM
    from fedrag.objectives.contexts import Mixture
    from fedrag.objectives.contrastive import Contrastive
    from fedrag.objectives.distillation import Distillation
    from fedrag.objectives.emdr2 import EMDR2
    from fedrag.objectives.joint import Joint
    from fedrag.objectives.lsr import LSR
    from fedrag.objectives.marginal import RAGSequence, RAGToken
    from fedrag.objectives.mining import HardNegatives, mine
    from fedrag.objectives.raft import Raft
    from fedrag.objectives.ralt import RALT
    from fedrag.objectives.ranking import Ranking
    from fedrag.objectives.rows import sft_rows
    from fedrag.objectives.sentence import SentenceLoss
    from fedrag.prompts import Prompt
    from fedrag.rag import RAGSystem
    from fedrag.retrievers.dense import DenseRetriever
    from fedrag.retrievers.hybrid import HybridRetriever
    from fedrag.retrievers.lexical import LexicalRetriever
    from fedrag.retrievers.reranked import Reranked
    from fedrag.stores.memory import MemoryStore
    from fedrag.training.trainer import RAGTrainer
    from fedrag.types import Answer, Document, Example, Hit, Media

__version__ = "0.1.0"

_HOME = {
    "Ablation": "ablations",
    "Answer": "types",
    "LexicalRetriever": "retrievers.lexical",
    "CausalLM": "generators.causal",
    "Contrastive": "objectives.contrastive",
    "CrossEncoderReranker": "encoders.cross",
    "DenseRetriever": "retrievers.dense",
    "Distillation": "objectives.distillation",
    "Document": "types",
    "EMDR2": "objectives.emdr2",
    "Example": "types",
    "FedRAGError": "errors",
    "HardNegatives": "objectives.mining",
    "Hit": "types",
    "HybridRetriever": "retrievers.hybrid",
    "Joint": "objectives.joint",
    "LSR": "objectives.lsr",
    "Media": "types",
    "MemoryStore": "stores.memory",
    "Mixture": "objectives.contexts",
    "Prompt": "prompts",
    "RAGSequence": "objectives.marginal",
    "RAGSystem": "rag",
    "RAGToken": "objectives.marginal",
    "RAGTrainer": "training.trainer",
    "RALT": "objectives.ralt",
    "Raft": "objectives.raft",
    "Ranking": "objectives.ranking",
    "Report": "evaluation",
    "Reranked": "retrievers.reranked",
    "SentenceEncoder": "encoders.sentence",
    "SentenceLoss": "objectives.sentence",
    "ablation": "ablations",
    "documents_from": "data",
    "evaluate": "evaluation",
    "examples_from": "data",
    "mine": "objectives.mining",
    "read_documents": "data",
    "read_examples": "data",
    "sft_rows": "objectives.rows",
    "split": "data",
}

__all__ = [
    "EMDR2",
    "LSR",
    "RALT",
    "Ablation",
    "Answer",
    "CausalLM",
    "Contrastive",
    "CrossEncoderReranker",
    "DenseRetriever",
    "Distillation",
    "Document",
    "Example",
    "FedRAGError",
    "HardNegatives",
    "Hit",
    "HybridRetriever",
    "Joint",
    "LexicalRetriever",
    "Media",
    "MemoryStore",
    "Mixture",
    "Prompt",
    "RAGSequence",
    "RAGSystem",
    "RAGToken",
    "RAGTrainer",
    "Raft",
    "Ranking",
    "Report",
    "Reranked",
    "SentenceEncoder",
    "SentenceLoss",
    "ablation",
    "documents_from",
    "evaluate",
    "examples_from",
    "mine",
    "read_documents",
    "read_examples",
    "sft_rows",
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
