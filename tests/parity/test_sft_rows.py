"""Rows that `sft_rows` writes, in TRL's SFTTrainer as they are: it trains on them, and its loss is RALT's."""

import copy

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from fedrag import RALT, CausalLM, Example, RAGSystem
from fedrag.objectives.rows import sft_rows
from systems import EXAMPLES, tiny_system
from tiny import tiny_llama, tiny_tokenizer

BATCH = [*EXAMPLES[:4], Example("Which key is lost ?", ["the key of clerk 12"]), Example("Why ?", [])]


def trainer(rag, rows, folder, **settings):
    args = SFTConfig(
        output_dir=str(folder), max_length=None, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        save_strategy="no", logging_strategy="no", activation_checkpointing=False, per_device_eval_batch_size=1,
        **settings,
    )  # fmt: skip
    data = Dataset.from_list(rows)
    model = copy.deepcopy(rag.generator.model)
    return SFTTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=rag.generator.tokenizer
    )


@pytest.mark.parametrize("chat", [False, True])
def test_trl_trains_on_the_rows_and_has_ralts_loss(chat, tmp_path):
    rag = tiny_system()
    tokenizer = tiny_tokenizer(chat=chat)
    generator = CausalLM(tiny_llama(vocab=len(tokenizer)), tokenizer, max_new_tokens=6)
    rag = RAGSystem(retriever=rag.retriever, generator=generator, top_k=3)
    made = trainer(rag, sft_rows(rag, BATCH, progress=False), tmp_path, max_steps=1, per_device_train_batch_size=6)
    ours = RALT(rag, k=3, shuffle=False).eval()(BATCH)["loss"].item()
    # one row a batch: each weighs the same, however long its answer is
    assert made.evaluate()["eval_loss"] == pytest.approx(ours, rel=1e-4)
    before = copy.deepcopy(made.model.state_dict())
    assert made.train().global_step == 1
    assert any(not torch.equal(before[name], weight) for name, weight in made.model.state_dict().items())
