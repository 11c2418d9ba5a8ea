"""Training rows for other libraries' trainers: the prompts that the system will ask, and the answers, as text.

TRL's `SFTTrainer` takes them unchanged, and its loss on them is that of `RALT`:

    rows = sft_rows(rag, train, contexts=Raft(rag.dense.store), k=20)
    SFTTrainer(model, SFTConfig(max_length=None), train_dataset=Dataset.from_list(rows), processing_class=tokenizer)

Each row has its place in the prompt's token budget already: documents are shortened, the answer never is. A trainer
that cuts rows itself (SFTConfig's `max_length` is 1,024 by default) cuts at their end, where the answer stands.

What a row cannot keep is the promise of `fedrag.generators.tokens` that a document's text forges no control token: a
trainer that tokenises text reads `</s>` in it as the end of a text. Rows that come out as other tokens than the
system's own, for this reason or another, are counted in the log.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from fedrag.errors import ConfigError, DataError
from fedrag.generators.causal import CausalLM
from fedrag.objectives.contexts import Contexts
from fedrag.progress import track
from fedrag.rag import RAGSystem
from fedrag.types import Example

_log = logging.getLogger(__name__)
_BATCH = 256


def sft_rows(
    rag: RAGSystem,
    examples: Sequence[Example],
    *,
    contexts: Contexts | None = None,
    k: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, str]]:
    """Return rows of "prompt" and "completion" for supervised fine-tuning, completions alone to be learnt.

    A system that puts all documents into one prompt gives one row per example; one whose reader is the ensemble gives
    a row per document. Under a chat template the prompt is the whole frame up to the assistant's turn, as text: use the
    rows as they are, without another template. The completion ends with the tokenizer's end token.

    Args:
        rag: the system, with a `CausalLM`.
        examples: with answers; the first one is the completion, `()` has the empty one.
        contexts: draws each prompt's documents from those retrieved and others, such as `Mixture` or `Raft`; `None`
            takes those retrieved, best first.
        k: documents retrieved per example; `None` takes `rag.top_k`, 0 retrieves nothing.
        seed: of what `contexts` draws.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: if the generator is no `CausalLM`, or k is below 0.
        DataError: if examples have `answers=None`; says how many.
        BudgetError: if a question and its answer alone are too long.
    """
    depth = rag.top_k if k is None else k
    if not isinstance(rag.generator, CausalLM) or depth < 0:
        raise ConfigError(
            f"sft_rows writes prompts for a CausalLM with k >= 0, got a {type(rag.generator).__name__} and k={depth}"
        )
    if unknown := sum(example.answers is None for example in examples):
        raise DataError(f"{unknown} of {len(examples)} examples have answers=None, nothing to learn: leave them out")
    dice = random.Random(seed)
    rows: list[dict[str, str]] = []
    strange = 0
    with track(total=len(examples), desc="write rows", unit="q", disable=not progress) as bar:
        for start in range(0, len(examples), _BATCH):
            batch = examples[start : start + _BATCH]
            hits = rag.retriever.retrieve([e.question for e in batch], depth) if depth else [[] for _ in batch]
            for example, some in zip(batch, hits, strict=True):
                documents = [hit.document for hit in some]
                if contexts is not None:
                    documents = contexts(example, documents, dice)
                answer = "".join((example.answers or ())[:1])
                target = rag.generator.target_ids(answer)
                for read in [[d] for d in documents] or [[]] if rag.reader == "ensemble" else [documents]:
                    prompt = rag.prompt_for(example.question, read, answer_tokens=len(target))
                    row = _row(rag.generator, prompt, answer)
                    whole = _ids(rag.generator, row["prompt"] + row["completion"])
                    strange += whole != [*rag.generator.prompt_ids(prompt), *target]
                    rows.append(row)
            bar.update(len(batch))
    if strange:
        _log.warning(
            "%d of %d rows are other tokens to a trainer that tokenises text than to the system: their texts hold "
            "control tokens, or the prompt's end and the answer's beginning merge",
            strange,
            len(rows),
        )
    return rows


def _row(generator: CausalLM, prompt: str, answer: str) -> dict[str, str]:
    tokenizer, end, text = generator.tokenizer, str(generator.tokenizer.eos_token), answer.strip()
    if not generator.tokens.chat:
        return {"prompt": prompt, "completion": f" {text}{end}" if text else end}
    turn = [{"role": "user", "content": prompt}]
    frame = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    begin = str(tokenizer.bos_token or "")
    if begin and (first := _ids(generator, begin))[:2] == first[:1] * 2:
        frame = str(frame).removeprefix(begin)  # the tokenizer puts one there itself
    return {"prompt": str(frame), "completion": text + end}


def _ids(generator: CausalLM, text: str) -> list[int]:
    ids: list[int] = generator.tokenizer(text, verbose=False)["input_ids"]  # pyright: ignore
    return ids
