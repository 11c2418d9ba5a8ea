"""The plain scripts that FedRAG is compared with: the other libraries as their own pages use them, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset

from fedrag.rag import RAGSystem
from fedrag.types import Document, Example


def sft(
    rag: RAGSystem,
    examples: Sequence[Example],
    contexts: Sequence[Sequence[Document]],
    *,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Tune the system's language model with TRL's `SFTTrainer` on prompts that hold these documents."""
    from trl import SFTConfig, SFTTrainer

    generator: Any = rag.generator
    rows = [
        {"prompt": rag.prompt_for(example.question, documents), "completion": f" {(example.answers or ('',))[0]}"}
        for example, documents in zip(examples, contexts, strict=True)
    ]
    with TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=rate,
            warmup_steps=10,
            adam_beta2=0.98,
            seed=seed,
            max_length=None,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        SFTTrainer(
            generator.model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=generator.tokens.tokenizer,
        ).train()
    generator.model.eval()
