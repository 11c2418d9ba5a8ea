"""Tiny whole RAG systems for the tests: real parts, random weights."""

from typing import Any

from transformers import TrainingArguments

from fedrag import (
    CausalLM,
    CrossEncoderReranker,
    DenseRetriever,
    Document,
    Example,
    HybridRetriever,
    LexicalRetriever,
    MemoryStore,
    RAGSystem,
    Reranked,
    SentenceEncoder,
)
from judges import tiny_cross_encoder
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

DOCUMENTS = [
    Document(f"The key of clerk {n} is {n * 3} .", id=f"d{n}", metadata={"even": n % 2 == 0}) for n in range(24)
]
EXAMPLES = [Example(f"Which key has clerk {n} ?", [str(n * 3)], positives=[f"d{n}"]) for n in range(24)]


def tiny_system(*, kind: Any = "static", dropout: float = 0.0, lora: int | None = None, top_k: int = 3) -> RAGSystem:
    """A system over `DOCUMENTS`; dropout in the encoder ("bert" only) and in the generator's attention."""
    encoder = SentenceEncoder(tiny_sentence_transformer(kind=kind, dropout=dropout))
    llama = tiny_llama(vocab=len(tiny_tokenizer()), attention_dropout=dropout)
    generator = CausalLM(llama, tiny_tokenizer(), lora=lora, max_new_tokens=6)
    rag = RAGSystem(retriever=DenseRetriever(encoder, MemoryStore()), generator=generator, top_k=top_k)
    rag.add(DOCUMENTS, progress=False)
    return rag


def two_stages(rag: RAGSystem, *, depth: int = 8, **settings: Any) -> RAGSystem:
    """The same vectors and generator, with words beside the vectors and a reranker, with its dropout, above both."""
    dropout = rag.generator.model.config.attention_dropout
    hybrid = HybridRetriever([rag.dense, LexicalRetriever(rag.dense.store)])
    whole = Reranked(hybrid, CrossEncoderReranker(tiny_cross_encoder(dropout=dropout)), depth=depth)
    return RAGSystem(retriever=whole, generator=rag.generator, top_k=rag.top_k, **settings)


def arguments(folder: Any, **settings: Any) -> TrainingArguments:
    """Quiet training arguments: four steps of four examples at a rate that shows, unless told otherwise."""
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "report_to": "none",
            "save_strategy": "no",
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            **settings,
        }
    )
