"""Tiny trainers of every kind, as a recipe builds them at a site: the same arguments make the same trainer, to the bit.

An epoch is six steps. With `dropout=0` and `sequential=True` nothing is left to chance.
"""

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from fedrag import LSR, RALT, Contrastive, Example, Joint, RAGTrainer, Ranking
from systems import EXAMPLES, arguments, tiny_system, two_stages
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

UNSEEN = [Example(f"Where is the key of clerk {n} ?", [str(n * 3)], positives=[f"d{n}"]) for n in range(3)]


class Rates(TrainerCallback):
    """The learning rates of every step, a group each."""

    def __init__(self):
        self.rates: list[list[float]] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def _common(folder: Any, sequential: bool, settings: dict[str, Any]) -> dict[str, Any]:
    order = {"train_sampling_strategy": "sequential"} if sequential else {}
    length = {} if "max_steps" in settings else {"max_steps": -1, "num_train_epochs": 1}
    return {"max_grad_norm": 0.0, "lr_scheduler_type": "cosine", "warmup_steps": 3, **length, **order, **settings}


def _rag(make):
    def build(folder, *, dropout=0.0, sequential=False, rows=None, lora=None, rag=None, **settings):
        torch.manual_seed(0)
        rag = rag or tiny_system(kind="bert", dropout=dropout, lora=lora)
        extra = {name: settings.pop(name) for name in ("callbacks", "optimizers", "refresh") if name in settings}
        args = arguments(folder, **_common(folder, sequential, settings))
        rows = EXAMPLES if rows is None else rows
        return RAGTrainer(make(rag), train_dataset=rows, eval_dataset=UNSEEN, args=args, **extra)

    return build


def sft(folder, *, dropout=0.0, sequential=False, rows=None, rank=4, evaluate=True, **settings):
    """TRL's SFTTrainer with adapters."""
    torch.manual_seed(0)
    extra = {name: settings.pop(name) for name in ("callbacks", "optimizers") if name in settings}
    args = SFTConfig(**_trl(folder, sequential, settings), max_length=48)
    texts = [f"Which key has clerk {n} ? {n * 3}" for n in (range(24) if rows is None else rows)]
    data = Dataset.from_dict({"text": texts})
    lora = LoraConfig(r=rank, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
    return SFTTrainer(
        model=_llama(dropout), args=args, train_dataset=data, eval_dataset=data.select(range(3)) if evaluate else None,
        processing_class=tiny_tokenizer(), peft_config=lora, **extra,
    )  # fmt: skip


def dpo(folder, *, dropout=0.0, sequential=False, lora=True, **settings):
    """TRL's DPOTrainer, with adapters, or whole with a reference model."""
    torch.manual_seed(0)
    args = DPOConfig(**_trl(folder, sequential, settings), max_length=48, disable_dropout=False)
    rows = [{"prompt": f"Clerk {n} ?", "chosen": f" {n * 3}", "rejected": " none"} for n in range(24)]
    adapters = {"peft_config": LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj"])}
    return DPOTrainer(
        model=_llama(dropout), args=args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(),
        **(adapters if lora else {"ref_model": _llama(0.0)}),
    )  # fmt: skip


def sentence(folder, *, dropout=0.0, sequential=False, rows=24, evaluator=None, **settings):
    """sentence-transformers' trainer, with a loss that has weights of its own."""
    torch.manual_seed(0)
    model = tiny_sentence_transformer(kind="bert", dropout=dropout)
    args = SentenceTransformerTrainingArguments(
        **_arguments(folder, _common(folder, False, settings)),
        **({"batch_sampler": _in_order} if sequential else {}),
    )
    data = Dataset.from_dict(
        {
            "premise": [f"Which key has clerk {n} ?" for n in range(rows)],
            "hypothesis": [f"The key of clerk {n} is {n * 3} ." for n in range(rows)],
            "label": [n % 3 for n in range(rows)],
        }
    )
    return SentenceTransformerTrainer(
        model=model, args=args, train_dataset=data, evaluator=evaluator,
        eval_dataset=None if evaluator else data.select(range(3)), loss=SoftmaxLoss(model, 32, 3),
    )  # fmt: skip


def _in_order(dataset, batch_size, drop_last, **_):
    return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)


def _llama(dropout: float) -> Any:
    return tiny_llama(vocab=len(tiny_tokenizer()), attention_dropout=dropout)


def _trl(folder: Any, sequential: bool, settings: dict[str, Any]) -> dict[str, Any]:
    settings = {"bf16": False, "activation_checkpointing": False, **settings}
    return _arguments(folder, _common(folder, sequential, settings))


def _arguments(folder: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "per_device_train_batch_size": 4, "learning_rate": 1e-2, "disable_tqdm": True, "use_cpu": True, **settings,
    }  # fmt: skip


RECIPES = {
    "ralt": _rag(lambda rag: RALT(rag, shuffle=False)),
    "lsr": _rag(lambda rag: LSR(rag, k=4, train="both")),
    "contrastive": _rag(Contrastive),
    "joint": _rag(lambda rag: Joint(LSR(rag, k=4, train="both"), RALT(rag, shuffle=False), turns=4)),
    "ranking": _rag(lambda rag: Ranking(two_stages(rag), k=4)),
    "sft": sft,
    "dpo": dpo,
    "sentence": sentence,
}
