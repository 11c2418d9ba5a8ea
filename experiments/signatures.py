"""Reading default values from real signatures: what the retriever and the reader each gain, and what guessing gets.

    python experiments/signatures.py                 # one seed, about 20 minutes of one core
    python experiments/signatures.py --seeds 3
    python experiments/signatures.py --quick         # shows that everything runs, not what it can do

The task is in `signatures_data.py`, the reader made from nothing in `signatures_reader.py`. Everything here goes
FedRAG's own way: `MemoryStore`, `DenseRetriever`, `Prompt`, `CausalLM`, `RALT`, `Contrastive`, `LSR`, `evaluate`. The
answer must be the default's source text to the character. Intervals resample whole modules. What is finished lies in
the folder `--out` and is not made again; to make all of it again, remove the folder.
"frozen" is near 0 because the base has never met a question; in statements of its own it reads well (`restated`).
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from signatures_data import READ, Task, answer_of, contradicted, four, make_task
from signatures_reader import TEMPLATE, Prose, make_model, make_tokenizer, pretrain, restated
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from fedrag.durable import replace_text
from fedrag.encoders.sentence import SentenceEncoder
from fedrag.evaluation import Report, evaluate, summarize
from fedrag.evaluation.comparison import table
from fedrag.evaluation.report import Record
from fedrag.generators.causal import CausalLM
from fedrag.objectives.contrastive import Contrastive
from fedrag.objectives.lsr import LSR
from fedrag.objectives.ralt import RALT
from fedrag.prompts import Prompt
from fedrag.quickstart.loop import Contexts
from fedrag.quickstart.static_encoder import static_encoder
from fedrag.quickstart.training import train
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document, Example, Retriever

SMALL = {"numpy": READ["numpy"], "scipy": READ["scipy"]}
GOLD, FOUR, RETRIEVED, RANDOM, NONE = "gold", "gold among four", "end to end", "random passage", "no passage"
PARTS: Mapping[str, Callable[[Task, Example], bool]] = {
    "all": lambda task, example: True,
    "hard": lambda task, example: example.metadata["hard"],
    "contradicted": contradicted,
}
STEPS = {"base": 1200, "ralt": 300, "contrastive": 200, "lsr": 100}
COMPARED = (
    # what is shown, regime after, regime before, setting
    ("RALT reads one passage", "RALT", "frozen", GOLD),
    ("RALT reads four", "RALT", "frozen", FOUR),
    ("passages help: RALT against answers without", "RALT", "control: answers without passages", GOLD),
    ("LSR finds for the reader", "LSR, RALT", "RALT", RETRIEVED),
    ("LSR against contrastive", "LSR, RALT", "contrastive, RALT", RETRIEVED),
)
PROMPT = Prompt(template=TEMPLATE, document_template="{text}")


def make_base(task: Task, folder: Path, seed: int, steps: int) -> None:
    """Pre-train the reader on the passages of training modules and write it into a folder."""
    if (folder / "made.json").exists():
        return
    torch.manual_seed(seed)
    passages = [document for document in task.documents if document.metadata["split"] == "train"]
    tokenizer = make_tokenizer([document.text for document in passages], 3000)
    model = make_model(len(tokenizer))
    seconds = pretrain(model, Prose(passages, tokenizer, seed), steps=steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = {"weights": model.num_parameters(), "cpu_seconds": round(seconds)}
    for setting, given in ((GOLD, lambda q: [task.passages[q.positives[0]]]), (FOUR, lambda q: four(task, q))):
        asked = [(given(q), q.positives[0], q.metadata["parameter"], answer_of(q)) for q in task.test]
        made[f"restated, {setting}"] = round(restated(model, tokenizer, asked), 4)
    replace_text(folder / "made.json", json.dumps(made))


def make_system(task: Task, base: Path, seed: int) -> RAGSystem:
    """The untrained system: word pieces of training text with random vectors, the base with new adapters."""
    torch.manual_seed(seed)  # of the adapters
    texts = [text for e in task.train for text in (e.question, task.passages[e.positives[0]].text)]
    retriever = DenseRetriever(SentenceEncoder(static_encoder(texts, width=512, seed=seed)), MemoryStore())
    rag = RAGSystem(retriever=retriever, generator=CausalLM(base, lora=16, max_new_tokens=14), top_k=1, prompt=PROMPT)
    rag.add(task.documents, progress=False)
    return rag


def practice(task: Task) -> Callable[[Example, Sequence[Document], random.Random], list[Document]]:
    """Training contexts: the gold passage alone, or among four by the rule of the test with training passages."""

    def contexts(example: Example, retrieved: Sequence[Document], dice: random.Random) -> list[Document]:
        if dice.random() < 0.3:
            return [task.passages[example.positives[0]]]
        return four(task, example, seed=dice.randrange(10**6))

    return contexts


def strangers(task: Task) -> Callable[[Example, Sequence[Document], random.Random], list[Document]]:
    """A control's contexts: four passages of other modules, the right kind of text and no help."""

    def contexts(example: Example, retrieved: Sequence[Document], dice: random.Random) -> list[Document]:
        drawn = dice.sample(task.documents, 8)
        return [d for d in drawn if d.metadata["module"] != example.metadata["module"]][:4]

    return contexts


def measure(
    task: Task, questions: Sequence[Example], rag: RAGSystem, retriever: Retriever, settings: Sequence[str]
) -> dict[str, Report]:
    """Ask the questions in some settings; `exact` is equality of the source text, to the character."""
    dice = random.Random(0)
    others = {q.question: [dice.choice([d for d in task.documents if d.id not in q.positives])] for q in questions}
    given: dict[str, tuple[Retriever, int]] = {
        GOLD: (Contexts({q.question: [task.passages[q.positives[0]]] for q in questions}), 1),
        FOUR: (Contexts({q.question: four(task, q) for q in questions}), 4),
        RETRIEVED: (retriever, 1),
        RANDOM: (Contexts(others), 1),
        NONE: (retriever, 0),
    }
    reports: dict[str, Report] = {}
    for setting in settings:
        source, k = given[setting]
        asked = RAGSystem(retriever=source, generator=rag.generator, top_k=k, prompt=rag.prompt)
        depth = 10 if setting == RETRIEVED else None
        found = evaluate(asked, questions, depth=depth, batch_size=64, progress=False, cluster="module")
        reports[setting] = summarize([_exact(record) for record in found.records], cluster="module")
    return reports


def _exact(record: Record) -> Record:
    right = (record.answer or "").strip() == answer_of(record.example)
    return Record(record.example, {**record.values, "exact": float(right)}, record.answer, record.hits)


def run_seed(task: Task, seed: int, steps: Mapping[str, int], out: Path, most: int | None) -> dict[str, Any]:
    """Train and measure every regime of one seed: reports by regime and setting."""
    questions = task.test[:most]
    base, here = out / "base", out / "reports"
    make_base(task, base, seed, steps["base"])
    done: dict[str, dict[str, Report]] = {}

    def system(name: str, make: Callable[[RAGSystem], object], *, start: str | None = None) -> RAGSystem:
        folder = out / name
        if not folder.exists():
            tqdm.write(f"  seed {seed}: training {name}")
            rag = RAGSystem.load(out / start) if start else make_system(task, base, seed)
            began = time.process_time()
            make(rag)
            tqdm.write(f"  seed {seed}: {name} took {time.process_time() - began:.0f} CPU seconds")
            rag.save(folder)
        return RAGSystem.load(folder)

    def report(name: str, rag: Callable[[], RAGSystem], settings: Sequence[str], lexical: bool = False) -> None:
        files = {setting: here / f"{name}.{setting}.json".replace(" ", "_") for setting in settings}
        if not all(file.exists() for file in files.values()):
            made = rag()
            retriever = LexicalRetriever(task.documents) if lexical else made.retriever
            for setting, one in measure(task, questions, made, retriever, settings).items():
                one.save(files[setting])
        done[name] = {setting: Report.load(file) for setting, file in files.items()}
        tqdm.write(
            f"  seed {seed}: {name}: " + ", ".join(f"{s} {r.metrics['exact'].mean:.3f}" for s, r in done[name].items())
        )

    def tune(contexts: Any) -> Callable[[RAGSystem], None]:
        return lambda rag: train(
            RALT(rag, k=0, contexts=contexts), task.train, steps=steps["ralt"], seed=seed, rate=5e-3
        )

    def contrastive(rag: RAGSystem) -> None:
        train(Contrastive(rag), task.train, steps=steps["contrastive"], seed=seed, rate=0.1, batch_size=128)

    def lsr(rag: RAGSystem) -> None:
        objective = LSR(rag, k=8, train="both")
        train(objective, task.train, steps=steps["lsr"], seed=seed, rate=0.08, refresh=25)

    everything = (GOLD, FOUR, RETRIEVED, RANDOM, NONE)
    report("frozen", lambda: make_system(task, base, seed), everything)
    report("RALT", lambda: system("ralt", tune(practice(task))), everything)
    report("RALT, with BM25", lambda: system("ralt", tune(practice(task))), (RETRIEVED,), lexical=True)
    report("contrastive, RALT", lambda: system("contrastive", contrastive, start="ralt"), (RETRIEVED,))
    report("LSR, RALT", lambda: system("lsr", lsr, start="ralt"), (RETRIEVED,))
    report("control: answers without passages", lambda: system("closed", tune(None)), (GOLD, FOUR, NONE))
    report("control: others' passages", lambda: system("strangers", tune(strangers(task))), (GOLD, FOUR, NONE))
    return done


def guessed(task: Task, questions: Sequence[Example], key: str) -> Report:
    """What a reader gets who never reads: `majority` or `by_name` of the questions' metadata."""
    rows = [Record(q, {"exact": float(q.metadata[key] == answer_of(q))}, q.metadata[key]) for q in questions]
    return summarize(rows, cluster="module")


def shown(task: Task, reports: Mapping[str, Mapping[str, Report]]) -> dict[str, Any]:
    """Means and intervals by regime, setting and part of the questions, and recall where there was retrieval."""
    content: dict[str, Any] = {}
    for regime, settings in reports.items():
        for setting, report in settings.items():
            cell = content.setdefault(regime, {})[setting] = {}
            for part, keep in PARTS.items():
                some = report.subset(lambda record, keep=keep: keep(task, record.example))
                cell[part] = asdict(some.metrics["exact"])
            if setting == RETRIEVED:
                cell["recall"] = {name: asdict(report.metrics[name]) for name in ("recall@1", "recall@10", "mrr@10")}
    return content


def printed(content: Mapping[str, Any]) -> str:
    """The table: exact answers by regime and setting, on all, hard and contradicted questions."""
    rows: list[tuple[str, ...]] = [("regime", "setting", *PARTS, "recall@1")]
    for regime, settings in content.items():
        for setting, cell in settings.items():
            shares = [f"{cell[p]['mean']:.3f} {cell[p]['low']:.2f}-{cell[p]['high']:.2f}" for p in PARTS]
            recall = f"{cell['recall']['recall@1']['mean']:.3f}" if "recall" in cell else ""
            rows.append((regime, setting, *shares, recall))
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="runs, whose questions are pooled (default: 1)")
    parser.add_argument("--quick", action="store_true", help="few steps, two packages: shows that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/signatures"), help="folder of what is made")
    parser.add_argument("--publish", type=Path, default=Path("docs/evidence"), help="folder of the page, if not quick")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
    out = arguments.out / "quick" if arguments.quick else arguments.out
    task = make_task(SMALL if arguments.quick else READ)
    steps = {name: 5 if arguments.quick else n for name, n in STEPS.items()}
    most = 40 if arguments.quick else None
    runs = [run_seed(task, seed, steps, out / f"seed{seed}", most) for seed in range(arguments.seeds)]
    pooled: dict[str, dict[str, Report]] = {
        f"guess: {key}": {"no reading": guessed(task, task.test[:most], key)} for key in ("majority", "by_name")
    }
    for regime, settings in runs[0].items():
        pooled[regime] = {
            setting: summarize([row for run in runs for row in run[regime][setting].records], cluster="module")
            for setting in settings
        }
    content = {
        "passages": len(task.documents),
        "questions": {"train": len(task.train), "test": len(task.test[:most])},
        "test modules": len({example.metadata["module"] for example in task.test}),
        "seeds": arguments.seeds,
        "steps": steps,
        "base": json.loads((out / "seed0" / "base" / "made.json").read_text()),
        "exact": shown(task, pooled),
        "compared": [
            {"what": what, "setting": setting, **_difference(pooled[after][setting], pooled[before][setting])}
            for what, after, before, setting in COMPARED
        ],
    }
    replace_text(out / "report.json", json.dumps(content, indent=1) + "\n")
    text = "\n".join([printed(content["exact"]), "", *map(_compared, content["compared"])])
    print(text)
    print(f"\n{content['questions']['test']} test questions of {content['test modules']} modules; all: {out}")
    if not arguments.quick:
        publish(content, text, arguments.publish)


def publish(content: Mapping[str, Any], text: str, folder: Path) -> None:
    """Write all figures as JSON, and the tables as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "signatures.json", json.dumps(content, indent=1) + "\n")
    about = (
        f"{content['passages']:,} passages, {content['questions']['test']} test questions of "
        f"{content['test modules']} modules that training never saw, {content['seeds']} seed(s); strict equality of "
        "the default's source text, with 95 % intervals over modules. *hard*: guessing by the parameter's name errs; "
        "*contradicted*: one of the four passages gives another default for the same parameter."
    )
    page = ["# Real text: reading the defaults of real signatures", "", about, "", "```text", text, "```", ""]
    replace_text(folder / "signatures.md", "\n".join(page))


def _compared(row: Mapping[str, Any]) -> str:
    interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['what']} ({row['setting']}): {interval}, p {max(row['p'], 0.001):.3f}"


def _difference(after: Report, before: Report) -> dict[str, Any]:
    return asdict(after.compare(before).differences["exact"])


if __name__ == "__main__":
    main()
