"""Make the quickstart's base language model: about six minutes of one CPU thread, nothing downloaded.

    python scripts/make_base.py

The model must have learned, before any fine-tuning, what every real base model can do: say again in other words what
it has just read. So it reads prose about invented facts, each told twice in different words ("Sailors on Ramon obey
Tilu ." ... "The captain of Ramon is Tilu ."). No fact occurs in two pieces of prose but by accident, hence nothing can
be known by heart, and the facts of a piece share entities or relations, hence both must be minded. It never sees a
question, nor the words "Context" and "Answer" in their places: that is left to fine-tuning.

What made it learn within minutes, each found by trial: short convolutions below one
attention layer (LFM2); attention that starts near the identity, so that equal tokens look at each other at once; random
repeated sequences, mixed in at first and faded out; and a loss on the second telling only, since the first is noise.

The folder is written in float32, since `from_pretrained` keeps the dtype it finds and float16 does not train on a CPU.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import Lfm2Config, Lfm2ForCausalLM, PreTrainedTokenizerFast

from fedrag.quickstart.facts import DOMAINS, ENTITIES, FILLERS, VALUES, Relation
from fedrag.quickstart.world import BASE, words

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
POSITIONS = 512
BATCH = 32
AGAIN = "Again , in other words :"
RELATIONS = [(domain, relation) for domain, relations in DOMAINS.items() for relation in relations]

Fact = tuple[Relation, str, str]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer of the world's words; white space, newlines included, only separates."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
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


def make_model(vocabulary: int, width: int = 128) -> Lfm2ForCausalLM:
    """Return an LFM2 of two short-convolution layers and one attention layer that starts near the identity."""
    config = Lfm2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        layer_types=["conv", "conv", "full_attention"],
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


def facts(rng: random.Random, n: int) -> list[Fact]:
    """Return n new facts of one domain in random order, most of which share an entity or the relation with another."""
    domain, relation = rng.choice(RELATIONS)
    chosen = [(relation, rng.choice(ENTITIES))]
    while len(chosen) < n:
        kind = rng.random()
        if kind < 0.4:
            pair = (relation, rng.choice(ENTITIES))
        elif kind < 0.8:
            pair = (rng.choice(DOMAINS[domain]), rng.choice(chosen)[1])
        else:
            pair = (rng.choice(DOMAINS[domain]), rng.choice(ENTITIES))
        if pair not in chosen:
            chosen.append(pair)
    rng.shuffle(chosen)
    return [(relation, entity, rng.choice(VALUES)) for relation, entity in chosen]


def prose(rng: random.Random, n: int) -> tuple[str, str]:
    """Return n facts told, and told again in another order and other words; every sentence ends in its value."""
    told: list[str] = []
    again: list[str] = []
    for relation, entity, value in facts(rng, n):
        first, second = rng.sample([*relation.passages, *relation.prose, *relation.prose], 2)
        while second == first:
            second = rng.choice([*relation.passages, *relation.prose])
        told.append(first.format(e=entity, v=value))
        again.append(second.format(e=entity, v=value))
        if rng.random() < 0.2:
            told.append(rng.choice(FILLERS))
    rng.shuffle(again)
    return " ".join(told), " ".join([AGAIN, *again])


def prose_rows(tokenizer: PreTrainedTokenizerFast, rng: random.Random, n: int) -> tuple[list[int], list[int]]:
    """Return the token ids and labels of one piece of prose: the second telling is supervised."""
    told, again = prose(rng, n)
    first = tokenizer(told)["input_ids"]
    second = [*tokenizer(again, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return first + second, [-100] * len(first) + second


def repeat_rows(vocabulary: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Return a random sequence said twice, half of it names; the second saying is supervised."""
    names = vocabulary - len(ENTITIES) - len(VALUES)
    once = [rng.randrange(names if rng.random() < 0.5 else len(SPECIAL), vocabulary) for _ in range(rng.randint(8, 32))]
    return [1, *once, *once], [-100] * (1 + len(once)) + once


def batch(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Return right-padded ids and labels, `[n, t]` each."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return ids, labels


@torch.no_grad()
def restated(
    model: Lfm2ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, n: int = 4, pieces: int = 100, seed: int = 1
) -> float:
    """Return the share of values, in fresh prose of n facts each, that the model gets right at their second telling."""
    rng = random.Random(f"restated {seed}")
    rows = [prose_rows(tokenizer, rng, n) for _ in range(pieces)]
    ids, labels = batch(rows)
    stop = tokenizer.convert_tokens_to_ids(".")
    model.eval()
    guesses = model(input_ids=ids).logits[:, :-2].argmax(-1)
    values = (labels[:, 1:-1] != -100) & (ids[:, 2:] == stop)  # a value is what stands before a full stop
    return (guesses == ids[:, 1:-1])[values].float().mean().item()


def train(model: Lfm2ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int) -> None:
    """Pre-train in place: AdamW, 30 steps of warm-up, the second half of the steps linearly down to a twentieth."""
    rng, peak, vocabulary = random.Random(seed), 2e-3, len(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    bar = tqdm(range(steps), desc="pre-training", unit="step", mininterval=2)
    for step in bar:
        done = step / steps
        repeats = 0.5 * max(0.0, 1 - 1.5 * done)
        rows = [
            repeat_rows(vocabulary, rng) if rng.random() < repeats else prose_rows(tokenizer, rng, rng.randint(2, 6))
            for _ in range(BATCH)
        ]
        ids, labels = batch(rows)
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # [n, t, d]
        supervised = labels[:, 1:] != -100
        loss = cross_entropy(model.lm_head(hidden[supervised]), labels[:, 1:][supervised])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 30, max(0.05, 2 * (1 - done)))
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            bar.set_postfix(loss=f"{loss.item():.2f}", restated=f"{restated(model, tokenizer, pieces=50, seed=2):.2f}")
            model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the quickstart's base language model.")
    parser.add_argument("--out", type=Path, default=BASE, help="folder to write (default: the shipped one)")
    parser.add_argument("--steps", type=int, default=1500, help="pre-training steps (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and prose (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    train(model, tokenizer, steps=arguments.steps, seed=arguments.seed)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.iterdir()) / 1e6
    print(f"{arguments.out}: {model.num_parameters():,} parameters, {size:.2f} MB")
    for n in (2, 4, 6):
        print(f"values told again rightly, {n} facts each: {restated(model, tokenizer, n=n, pieces=200):.3f}")


if __name__ == "__main__":
    main()
