"""Index a million short documents in bounded memory, be killed twice, go on, and search; print one JSON object.

Claims, at 1,000,000 documents of about 12 words with a static encoder of width 512:

    peak_over_matrix   peak resident memory of the process / (documents x width x 4 bytes)      <= 1.5
    equal              killed twice with SIGKILL and resumed, the store is that of one run      true
    told, found        recall@10 as `accelerate` tells it, and as other questions find it       alike

Documents are about one of some thousand topics each and come from a seeded generator; the encoder, random vectors of
words, is made here. What indexes is the command `fedrag index` in processes of its own, whose peaks the system keeps.
The command saves once a minute: where all is over sooner, `--by library` adds and saves by the same two calls, more
often (that is the default below 500,000 documents). Exact and accelerated searches take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

K = 10
WORDS, TOPICS, OF_A_TOPIC = 8_000, 4_000, 30
ASKED = 100  # questions whose recall is told, and as many others by which it is found
TURNS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description="Index a million documents, killed twice. Prints JSON.")
    parser.add_argument("--documents", type=int, default=1_000_000, help="how many (default: 1000000)")
    parser.add_argument("--width", type=int, default=512, help="width of the vectors (default: 512)")
    parser.add_argument("--by", choices=["command", "library"], help="what indexes (default: see above)")
    parser.add_argument("--no-graph", action="store_true", help="search exactly only: the graph takes its time")
    parser.add_argument("--build-width", type=int, default=40, help="of the graph: more is better, later (default: 40)")
    parser.add_argument("--folder", type=Path, help="where to work, an empty folder (default: a temporary one)")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args)))
        return
    args.by = args.by or ("command" if args.documents >= 500_000 else "library")
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = (args.folder or Path(temporary)).absolute()
        args.folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(args), indent=2))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All of it. This process stays small, since a child's peak begins with that of its parent."""
    corpus = args.folder / "documents.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in documents(args.documents))
    step(args, "encoder")
    matrix = args.documents * args.width * 4
    whole = Run(args, "whole")
    whole.wait()
    killed: list[dict[str, Any]] = []
    chance = random.Random(0)
    peaks = []
    for _ in range(2):
        run = Run(args, "killed")
        run.kill(after=chance.uniform(0.0, 1.2))
        peaks.append(run.peak)
        killed.append({"seconds": round(run.seconds, 1), "saved": saved(args.folder / "killed")})
    last = Run(args, "killed")
    last.wait()
    peaks.append(last.peak)
    return {
        "documents": args.documents,
        "width": args.width,
        "by": args.by,
        "matrix_mb": round(matrix / 1e6, 1),
        "whole": {
            "seconds": round(whole.seconds, 1),
            "documents_per_second": round(args.documents / whole.seconds),
            "peak_over_matrix": round(whole.peak / matrix, 3),
            "saves": version(args.folder / "whole"),
        },
        "killed": killed,
        "resumed": {
            "seconds": round(last.seconds, 1),
            "peak_over_matrix": round(max(peaks) / matrix, 3),
            "saves": version(args.folder / "killed"),
        },
        "equal": step(args, "compare"),
        "search": step(args, "search"),
    }


class Run:
    """One process that indexes the corpus into a system: from the start, or from where another was killed."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        self.system: Path = args.folder / name
        corpus, encoder = str(args.folder / "documents.jsonl"), str(args.folder / "encoder")
        if args.by == "command":
            command = [
                str(Path(sys.executable).with_name("fedrag")),
                "index",
                corpus,
                str(self.system),
                "--chunk-tokens",
                "0",
            ]
            if not saved(self.system):
                command += ["--encoder", encoder, "--generator", "none"]
        else:
            command = [sys.executable, __file__, "--step", "index", "--folder", str(self.system)]
        self.began = time.perf_counter()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (it is read when the process has failed)
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.seconds, self.peak = 0.0, 0

    def kill(self, *, after: float) -> None:
        """Wait for the next save, then for some pauses between two saves, `after`, and kill the process."""
        before = version(self.system)
        while version(self.system) == before:
            time.sleep(0.02)
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.said()}\nit was done before it was killed; take more documents")
        pause = min(time.perf_counter() - self.began, 10.0) / 10 * after
        time.sleep(pause)
        self.process.send_signal(signal.SIGKILL)
        if self.end() != -signal.SIGKILL:
            raise RuntimeError(f"{self.said()}\nit was done before it was killed; take more documents")

    def wait(self) -> None:
        """Wait for the end."""
        if self.end():
            raise RuntimeError(self.said())

    def end(self) -> int:
        """Wait, and note the time and the peak."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds, self.peak = time.perf_counter() - self.began, usage.ru_maxrss * 1024
        return self.process.returncode

    def said(self) -> str:
        """What it wrote."""
        self.log.seek(0)
        return self.log.read().decode()


def documents(count: int, seed: int = 0) -> Iterator[str]:
    """Lines of JSON: texts of about 12 words, most of them from one topic."""
    chance = random.Random(0)
    topics = [[chance.randrange(WORDS) for _ in range(OF_A_TOPIC)] for _ in range(TOPICS)]
    chance = random.Random(seed)  # another seed: other texts on the same topics
    for number in range(count):
        topic = chance.choice(topics)
        size = chance.randint(9, 15)
        words = [chance.choice(topic) if chance.random() < 0.8 else chance.randrange(WORDS) for _ in range(size)]
        yield json.dumps({"id": f"d{number}", "text": " ".join(f"w{word}" for word in words)})


def encoder(args: argparse.Namespace) -> None:
    """Make a static encoder: a random vector for every word."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0} | {f"w{n}": n + 1 for n in range(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    weights = torch.randn(WORDS + 1, args.width, generator=torch.Generator().manual_seed(0))
    layers: list[Any] = [StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()]
    SentenceTransformer(modules=layers, device="cpu").save_pretrained(str(args.folder / "encoder"))


def index(args: argparse.Namespace) -> None:
    """Add and save by turns, as `fedrag index` does, every 0.3 seconds; the folder is that of the system."""
    from fedrag import DenseRetriever, MemoryStore, RAGSystem, SentenceEncoder
    from fedrag.data import stream_documents

    retriever = DenseRetriever(SentenceEncoder(args.folder.parent / "encoder"), MemoryStore())
    fresh = not saved(args.folder)
    rag = RAGSystem(retriever=retriever) if fresh else RAGSystem.load(args.folder)
    batch, last = [], time.perf_counter()
    for document in stream_documents(args.folder.parent / "documents.jsonl", progress=False):
        batch.append(document)
        if len(batch) == 1024:
            rag.add(batch, progress=False)
            batch.clear()
            if time.perf_counter() - last > 0.3:
                rag.save(args.folder)
                last = time.perf_counter()
    if batch:
        rag.add(batch, progress=False)
    rag.save(args.folder)


def compare(args: argparse.Namespace) -> bool:
    """Whether the store that was killed twice holds what the other holds, in the same order, to the last bit."""
    import torch

    from fedrag import MemoryStore

    one, other = (MemoryStore.open(current(args.folder / name) / "store", verify=True) for name in ("whole", "killed"))
    if len(one) != args.documents or len(other) != args.documents:
        return False
    ids: list[str] = []
    for number, (document, again) in enumerate(zip(one.documents(), other.documents(), strict=True), start=1):
        if document != again or document.id != f"d{number - 1}":
            return False
        ids.append(document.id)
        if len(ids) == 4096 or number == args.documents:
            if not torch.equal(one.vectors(ids), other.vectors(ids)):
                return False
            ids.clear()
    return True


def search(args: argparse.Namespace) -> dict[str, Any]:
    """Search exactly and by the graph in turns, one question at a time."""
    import torch

    from fedrag import MemoryStore, SentenceEncoder

    exact = MemoryStore.open(current(args.folder / "whole") / "store")
    model = SentenceEncoder(args.folder / "encoder")
    with torch.no_grad():
        asked = model.encode_queries([json.loads(line)["text"] for line in documents(2 * ASKED, seed=1)])
    times: dict[str, list[float]] = {"exact": [], "graph": []}
    stores, told = {"exact": exact}, None
    if not args.no_graph:
        stores["graph"] = MemoryStore.open(current(args.folder / "whole") / "store")
        told = stores["graph"].accelerate(queries=asked[:ASKED], floor=0.0, build_width=args.build_width)
    right = 0
    for turn, query in enumerate(asked[ASKED:]):
        found = {}
        for name in list(stores) if turn % 2 else reversed(list(stores)):
            began = time.perf_counter()
            found[name] = stores[name].search(query[None], K)[0]
            if ASKED - turn <= TURNS:  # the others warm up
                times[name].append((time.perf_counter() - began) * 1e3)
        worst = found["exact"][-1].score
        right += sum(hit.score >= worst for hit in found.get("graph", []))
    return {
        "exact_ms": round(statistics.median(times["exact"]), 2),
        "graph_ms": round(statistics.median(times["graph"]), 2) if told else None,
        "found": right / (K * ASKED) if told else None,
        "told": {name: getattr(told, name) for name in told.__slots__} if told else None,
    }


def step(args: argparse.Namespace, name: str) -> Any:
    """Do one step in a process of its own, and return what it printed."""
    command = [sys.executable, __file__, "--step", name, "--folder", str(args.folder)]
    command += ["--documents", str(args.documents), "--width", str(args.width)]
    command += ["--build-width", str(args.build_width)] + ["--no-graph"] * args.no_graph
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def current(folder: Path) -> Path:
    return folder / (folder / "CURRENT").read_text().strip()


def version(folder: Path) -> int:
    """How often the system was saved."""
    return int(current(folder).name[1:]) if (folder / "CURRENT").is_file() else 0


def saved(folder: Path) -> int:
    """How many documents a saved system holds."""
    if not version(folder):
        return 0
    return int(json.loads((current(current(folder) / "store") / "store.json").read_text())["documents"])


STEPS = {"encoder": encoder, "index": index, "compare": compare, "search": search}

if __name__ == "__main__":
    main()
