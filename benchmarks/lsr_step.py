"""Claim: an LSR step with a warm score cache takes at most 1.2 of sentence-transformers' DistillKL step.

Both learn from the same rows: every query has k passages of its own, none shared, so nothing is saved by encoding a
passage once. A step is everything from texts to new weights: tokens, forward, backward, AdamW. What the teacher said
is known to both: DistillKL gets it as labels, LSR looks it up (prompts and fingerprints included). Two forms of LSR
are timed: `both` moves queries and documents, as DistillKL does; `query`, LSR's default, leaves the documents as they
are and takes their vectors from the store. Rounds alternate. Prints JSON; fails when the claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedrag import LSR, CausalLM, DenseRetriever, Document, Example, MemoryStore, RAGSystem, SentenceEncoder

LIMIT = 1.2
WORDS = [f"word{n}" for n in range(5000)]


def tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<unk>", "</s>", "<mask>"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*specials, *WORDS])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", mask_token="<mask>"
    )


def encoder(layers: int, width: int) -> SentenceTransformer:
    """A BERT with random weights; the same for every call."""
    torch.manual_seed(0)
    tokens = tokenizer()
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokens.save_pretrained(folder)
        body = Transformer(folder, max_seq_length=128)
    return SentenceTransformer(modules=[body, Pooling(width, pooling_mode="mean"), Normalize()], device="cpu")


def rows(queries: int, k: int, words: int) -> tuple[list[Example], list[list[Document]]]:
    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(draw.choices(WORDS, k=length))

    examples = [Example(text(10), [text(3)]) for _ in range(queries)]
    return examples, [[Document(text(words)) for _ in range(k)] for _ in range(queries)]


def lsr(args: argparse.Namespace, train: str) -> tuple[Callable[[], float], LSR]:
    """One step of LSR, its parameters flagged as RAGTrainer flags them."""
    examples, documents = rows(args.queries, args.k, args.words)
    retriever = DenseRetriever(SentenceEncoder(encoder(args.layers, args.width)), MemoryStore())
    retriever.add([document for row in documents for document in row], progress=False)
    torch.manual_seed(1)
    size = {"hidden_size": args.width, "intermediate_size": 4 * args.width, "num_hidden_layers": args.layers}
    llama = LlamaForCausalLM(LlamaConfig(**size, vocab_size=len(tokenizer()), num_attention_heads=4, eos_token_id=2))
    rag = RAGSystem(retriever=retriever, generator=CausalLM(llama, tokenizer()))
    objective = LSR(rag, k=args.k, train="both" if train == "both" else "query", temperature=1.0)
    objective.candidates = lambda batch: documents
    moving = objective.trainable()
    for name, parameter in rag.named_parameters().items():
        parameter.requires_grad_(name in moving)
    optimizer = torch.optim.AdamW(moving.values(), lr=1e-5)

    def step() -> float:
        objective.train()
        loss = objective(examples)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step, objective


def distill(args: argparse.Namespace, objective: LSR) -> Callable[[], float]:
    """One step of DistillKLDivLoss towards the same teacher."""
    examples, documents = rows(args.queries, args.k, args.words)
    labels = objective.teacher_scores(examples, documents)
    model = encoder(args.layers, args.width)
    loss_of = DistillKLDivLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    columns = [[e.question for e in examples], *([d.text for d in place] for place in zip(*documents, strict=True))]

    def step() -> float:
        model.train()
        loss = loss_of([model.preprocess(column) for column in columns], labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"q1": round(low, 4), "median": round(median, 4), "q3": round(high, 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each kind (default: 9)")
    parser.add_argument("--queries", type=int, default=16, help="queries in a batch (default: 16)")
    parser.add_argument("--k", type=int, default=8, help="passages per query (default: 8)")
    parser.add_argument("--words", type=int, default=60, help="words in a passage (default: 60)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the encoder (default: 4)")
    parser.add_argument("--width", type=int, default=256, help="width of the encoder (default: 256)")
    args = parser.parse_args()
    both, objective = lsr(args, "both")
    query, _ = lsr(args, "query")
    steps = {"distill": distill(args, objective), "both": both, "query": query}
    for step in steps.values():
        step()  # fills the caches
    asked = objective.scorer.misses
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in tqdm(range(args.rounds), desc="rounds", unit="round"):
        names = list(steps)
        for name in names[turn % 3 :] + names[: turn % 3]:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: quartiles([ours / theirs for ours, theirs in zip(seconds[name], seconds["distill"], strict=True)])
        for name in ("both", "query")
    }
    result = {
        "claim": f"an LSR step with a warm cache takes at most {LIMIT} of a DistillKL step",
        "holds": all(ratio["median"] <= LIMIT for ratio in ratios.values()),
        "limit": LIMIT,
        "ratio_both_towers": ratios["both"],
        "ratio_query_tower": ratios["query"],
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "teacher_asked_after_warm_up": objective.scorer.misses - asked,
        "queries": args.queries,
        "k": args.k,
        "words": args.words,
        "encoder": f"BERT, {args.layers} layers, width {args.width}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=2))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
