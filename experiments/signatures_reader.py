"""The reader of the signatures task: a small language model made from nothing on the text of training modules.

What it must have learned before fine-tuning is what `scripts/make_base.py` describes: to say again in other words what
it has just read. So it reads signatures, real ones and ones put together from training modules' names, parameters
and values at random, and then statements about them ("numpy.mean() sets axis to None ."). It is supervised on the
values of the statements alone. It never sees a question.

Choices that this task needed beyond those of the quickstart's base:

- *Pieces*: identifiers are cut at underscores, case and digits, marks stand alone, white space is dropped, and pieces
  of byte pairs do not cross these borders. So a name has the same ids wherever it stands.
- *One attention layer* above two short convolutions, near the identity. With two ("ccaca") copying came later and all
  else was worse at the same CPU time.
- *Batches of one kind*: first random sequences said twice, and those alone until copying suddenly works (200 steps;
  with 100 nothing later is learned), then short made-up signatures, then real lengths.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import Lfm2Config, Lfm2ForCausalLM, PreTrainedTokenizerFast

from fedrag.types import Document

Row = tuple[list[int], list[int]]
"""Token ids and labels; -100 is not supervised."""
Thing = tuple[str, str, dict[str, str]]
"""A name, its passage, and the defaults that can be asked for."""

TEMPLATE = "Context : {documents} Question : {question} Answer :"
AGAIN = "Again , in other words :"
STATEMENTS = (
    "{name}() sets {parameter} to {value} .",
    "Unless told otherwise , {name}() has {parameter} as {value} .",
    "In {name}() by itself {parameter} is {value} .",
    "In {name}() , {parameter} : {value} .",
    "{name}() with {parameter} = {value} .",
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
POSITIONS = 1024
REPEATS = 0.16
"""The share of the steps that are spent on random sequences alone, until copying suddenly works."""
_LONGEST = 640  # tokens of a training row
_BORDERS = r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|_+|[^\sA-Za-z0-9_]"


def make_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of code, learned from `texts`; white space only separates."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(_BORDERS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = "What is the default in of ? Context Question Answer : Again , in other words"
    tokenizer.train_from_iterator(chain(texts, 100 * [words], 100 * STATEMENTS), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(vocabulary: int, *, layers: str = "cca", width: int = 128) -> Lfm2ForCausalLM:
    """An LFM2 of short convolutions ("c") and attention layers ("a") that start near the identity."""
    config = Lfm2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=len(layers),
        layer_types=[{"c": "conv", "a": "full_attention"}[layer] for layer in layers],
        conv_L_cache=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        block_auto_adjust_ff_dim=False,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Lfm2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, width**-0.5)
        for name, weight in model.named_parameters():
            if ".self_attn." in name and weight.shape == (width, width):
                weight.copy_(0.7 * torch.eye(width) + 0.3 * width**-0.5 * torch.randn(width, width))
    return model


class Prose:
    """Signatures and statements about them, from the passages of training modules alone."""

    def __init__(self, passages: Sequence[Document], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.rng = random.Random(f"prose {seed}")
        self.vocabulary = len(tokenizer)
        self._ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        self.things = [(d.id, d.text, _short(d.metadata["defaults"])) for d in passages]
        self.modules: dict[str, list[Thing]] = {}
        for document, thing in zip(passages, self.things, strict=True):
            self.modules.setdefault(document.metadata["module"], []).append(thing)
        self.names = [name for name, _, _ in self.things]
        self.parameters = [parameter for _, _, defaults in self.things for parameter in defaults]
        self.values = sorted({value for _, _, defaults in self.things for value in defaults.values()})
        self.summaries = [text.partition("\n")[2] for _, text, _ in self.things]

    def repeat(self) -> Row:
        """A random sequence said twice; the second saying is supervised."""
        once = [self.rng.randrange(len(SPECIAL), self.vocabulary) for _ in range(self.rng.randint(12, 40))]
        return [1, *once, *once], [-100] * (1 + len(once)) + once

    def row(self, kind: str, passages: int, statements: int) -> Row:
        """Some passages of a kind ("short" and "long" are made up, "real" are real) and statements about them."""
        rng = self.rng
        things = self._real(passages) if kind == "real" else self._made_up(passages, kind == "short")
        ids = [1, *chain.from_iterable(self._ids(text) for _, text, _ in things), *self._ids(AGAIN)]
        labels = [-100] * len(ids)
        facts = [(name, *fact) for name, _, defaults in things for fact in defaults.items()]
        rng.shuffle(facts)
        for name, parameter, value in facts[:statements]:
            before, after = rng.choice(STATEMENTS).split("{value}")
            given, wanted = self._ids(before.format(name=name, parameter=parameter)), self._ids(value)
            ids += [*given, *wanted, *self._ids(after)]
            labels += [-100] * len(given) + wanted + self._ids(after)
        return ids[:_LONGEST], labels[:_LONGEST]

    def _real(self, n: int) -> list[Thing]:
        rng = self.rng
        module = rng.choice([*self.modules.values()]) if rng.random() < 0.5 else self.things
        return rng.sample(module, min(n, len(module)))

    def _made_up(self, n: int, short: bool) -> list[Thing]:
        """Signatures that share parameters and often a module, with values at random: none can be known by heart."""
        rng = self.rng
        shared = [rng.choice(self.parameters) for _ in range(rng.randint(2, 6))]
        module = rng.choice(self.names).rpartition(".")[0]
        things: dict[str, Thing] = {}
        for _ in range(n):
            tail = rng.choice(self.names).rpartition(".")[2]
            name = f"{module if rng.random() < 0.5 else rng.choice(self.names).rpartition('.')[0]}.{tail}"
            if short:
                name = ".".join(name.split(".")[-rng.randint(1, 2) :])
            chosen = [rng.choice(shared if rng.random() < 0.7 else self.parameters) for _ in range(rng.randint(2, 6))]
            defaults = {parameter: self._value() for parameter in chosen}
            first = [rng.choice(self.parameters) for _ in range(rng.randint(0, 2))]
            text = f"{name}({', '.join([*first, *(f'{p}={v}' for p, v in defaults.items())])})"
            things[name] = name, text if short else f"{text}\n{rng.choice(self.summaries)}", defaults
        return [*things.values()]

    def _value(self) -> str:
        rng = self.rng
        return rng.choice(
            (
                lambda: rng.choice(self.values),
                lambda: rng.choice(self.values),
                lambda: rng.choice(("None", "False", "True", "0", "1")),
                lambda: str(rng.randrange(2000)) if rng.random() < 0.5 else f"{rng.random():.{rng.randint(1, 4)}f}",
                lambda: f"'{rng.choice(self.parameters)[:12]}'",
            )
        )()


def _short(defaults: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in defaults.items() if len(value) <= 16 and " " not in value}


def batch(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and labels, `[n, t]` each."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return ids, labels


def schedule(prose: Prose, done: float) -> list[Row]:
    """The batch at a share `done` of the training: one kind a batch, since short rows padded to long ones cost most."""
    rng = prose.rng
    if done < REPEATS or rng.random() < 0.15 * max(0.0, 1 - 1.5 * done):
        return [prose.repeat() for _ in range(32)]
    if rng.random() < max(0.2, 1.3 - 1.5 * done):
        passages = rng.choice((1, 1, 2, 3) if done < 0.5 else (1, 2, 3, 4))
        return [prose.row("short", passages, 4 * passages) for _ in range(24)]
    kind, passages = rng.choice(("long", "real", "real")), rng.choice((1, 2, 4))
    return [prose.row(kind, passages, 6) for _ in range(16)]


def pretrain(
    model: Lfm2ForCausalLM,
    prose: Prose,
    *,
    steps: int,
    peak: float = 3e-3,
    log: Callable[[int, float], None] | None = None,
) -> float:
    """Pre-train in place: AdamW, 30 steps of warm-up, the second half of the steps linearly down; CPU seconds taken."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    began, smooth = time.process_time(), 0.0
    bar = tqdm(range(steps), desc="pre-training", unit="step", mininterval=5)
    model.train()
    for step in bar:
        done = step / steps
        ids, labels = batch(schedule(prose, done))
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # [n, t, d]
        supervised = labels[:, 1:] != -100
        loss = cross_entropy(model.lm_head(hidden[supervised]), labels[:, 1:][supervised])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 30, max(0.05, 2 * (1 - done)))
        optimizer.step()
        optimizer.zero_grad()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 99:
            bar.set_postfix(loss=f"{smooth:.2f}")
            if log:
                log(step + 1, smooth)
    model.eval()
    return time.process_time() - began


@torch.no_grad()
def restated(
    model: Lfm2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[tuple[Sequence[Document], str, str, str]],
) -> float:
    """The share of defaults that the base says rightly in a statement of its own, given passages, name and parameter.

    What it would say is greedy: value and full stop are right at once or not. So the base can read before it is tuned;
    what it cannot do is answer a question.
    """
    right = 0
    for documents, name, parameter, value in asked:
        before, after = STATEMENTS[0].split("{value}")
        text = "\n".join([*(document.text for document in documents), AGAIN])
        given = [1, *tokenizer(f"{text} {before.format(name=name, parameter=parameter)}")["input_ids"][1:]]
        wanted = tokenizer(f"{value} {after}", add_special_tokens=False)["input_ids"]
        guesses = model(input_ids=torch.tensor([[*given, *wanted]])).logits[0, len(given) - 1 : -1].argmax(-1)
        right += guesses.tolist() == wanted
    return right / len(asked)
