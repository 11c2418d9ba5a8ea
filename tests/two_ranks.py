"""What each rank of `test_distributed` runs. Without a launcher it is one process with twice the batch."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedrag import LSR, RALT, DenseRetriever, MemoryStore, RAGSystem, RAGTrainer, evaluate
from fedrag.objectives.joint import Joint
from fedrag.objectives.marginal import RAGSequence
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system


class Counting(DenseRetriever):
    """Counts the questions that it is asked."""

    asked = 0

    def retrieve(self, queries, k, where=None):
        Counting.asked += len(queries)
        return super().retrieve(queries, k, where)


def system():
    tiny = tiny_system(kind="bert")
    retriever = Counting(tiny.dense.encoder, MemoryStore())
    retriever.add(DOCUMENTS, progress=False)
    return RAGSystem(retriever=retriever, generator=tiny.generator, top_k=2)


MAKERS = {
    "ralt": lambda rag, _: RALT(rag, shuffle=False),
    "lsr": lambda rag, _: LSR(rag, k=3, train="both"),
    # ranks read in chunks and twice, one process all at once: the same gradient
    "rag-sequence": lambda rag, world: RAGSequence(rag, k=3, train="both", chunk=1 if world > 1 else None),
    "joint": lambda rag, _: Joint(LSR(rag, k=3), RALT(rag, shuffle=False), turns=2),
}


def train_all(folder, rank, world):
    """Each objective on a system of its own, made before there are ranks: only the first one saves models."""
    systems = [system() for _ in MAKERS]
    for (name, make), rag in zip(MAKERS.items(), systems, strict=True):
        train(name, make(rag, world), folder, rank, world)


def train(name, objective, folder, rank, world):
    """Three steps over 24 examples in order; leave the weights and the count in `folder`."""
    rag = objective.rag
    Counting.asked = 0
    args = arguments(
        folder / f"{name}-run-{rank}", max_steps=3, per_device_train_batch_size=8 // world, optim="sgd",
        learning_rate=0.05, train_sampling_strategy="sequential", save_strategy="steps", save_steps=3,
        eval_strategy="steps", eval_steps=2, **({"ddp_backend": "gloo"} if world > 1 else {}),
    )  # fmt: skip
    trainer = RAGTrainer(
        objective, train_dataset=EXAMPLES, eval_dataset=EXAMPLES[:5], args=args, evaluator=_closed_book, refresh=2
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    state = {key: p.detach().clone() for key, p in rag.named_parameters().items()}
    numbers = {"asked": torch.tensor(Counting.asked), "eval_loss": torch.tensor(losses)}
    save_file(state | numbers, folder / f"{name}-{rank}of{world}.safetensors")


def _closed_book(rag, examples):
    return evaluate(rag, examples, k=0, progress=False)


if __name__ == "__main__":
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    train_all(folder, rank, world)
    if world > 1:
        torch.distributed.destroy_process_group()
