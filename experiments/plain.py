"""The plain scripts that FedRAG is compared with: the other libraries as their own pages use them, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset

from fedrag.objectives.contexts import Contexts
from fedrag.objectives.rows import sft_rows
from fedrag.rag import RAGSystem
from fedrag.types import Example


def sft(rag: RAGSystem, examples: Sequence[Example], contexts: Contexts, **training: Any) -> None:
    """Tune the system's language model with TRL's `SFTTrainer`, on prompts that hold what `contexts` puts there."""
    from trl import SFTConfig, SFTTrainer

    generator: Any = rag.generator
    rows = sft_rows(rag, examples, contexts=contexts, k=0, progress=False)
    with TemporaryDirectory() as folder:
        SFTTrainer(
            generator.model,
            args=SFTConfig(folder, max_length=None, gradient_checkpointing=False, **arguments(32, **training)),
            train_dataset=Dataset.from_list(rows),
            processing_class=generator.tokens.tokenizer,
        ).train()
    generator.model.eval()


def ranking(rag: RAGSystem, examples: Sequence[Example], **training: Any) -> None:
    """Tune the system's encoder with sentence-transformers' trainer and `MultipleNegativesRankingLoss`."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model: Any = rag.dense.encoder.model
    positives = rag.dense.store.get([example.positives[0] for example in examples])
    rows = [{"anchor": e.question, "positive": d.text} for e, d in zip(examples, positives, strict=True)]
    with TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model,
            args=SentenceTransformerTrainingArguments(folder, **arguments(128, **training)),
            train_dataset=Dataset.from_list(rows),
            loss=MultipleNegativesRankingLoss(model, scale=20.0),
        ).train()
    model.eval()
    rag.dense.refresh(progress=False)


def arguments(batch_size: int, *, steps: int, rate: float, seed: int) -> dict[str, Any]:
    """The settings that `fedrag.quickstart.training` trains with."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": rate,
        "warmup_steps": 10,
        "adam_beta2": 0.98,
        "seed": seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
