"""Measure what federating costs beside training, and print one JSON object.

Claims, each for two sites:

    overhead   (wall time of a run - building - the trainers' own training) / that training, for 10 MB of state and
               10 s of training a site and round: messages, packing, screening, averaging, checkpoint       <= 0.05
    bytes      on the messages of a round, of full weights, LoRA of rank 8, and the same in bf16           = as computed
    engines    wall time of a deployment with resident workers / of a run in one process, two rounds        <= 3

`overhead` comes with its parts in seconds, each without what other parts do inside it; "rest" is what no part has.
"schedule" is what a round adds to a trainer's `train()`: seeds, learning rate, random state. Runs with and without a
checkpoint take turns.

`bytes` are those of the arrays in Flower's messages, both ways, against the parameters' sizes and 128 bytes of NumPy's
header for each array that is not bf16.

`engines`: the same task (LoRA on a frozen Llama; two rounds of few steps) in one process, in Ray's, and in a deployment
(SuperLink, gate, two SuperNodes, TLS) without and with resident workers, in turning order; ratios are taken within a
round. Time goes from the start of the process that runs the task, or of `fedrag federate submit`, to its end, a
deployment being up already; in a deployment both sites train at once, in one process one after the other. Memory is the
most of all processes together (PSS, Linux), SuperLink and SuperNodes included. Every process has one thread.
`largest_difference` is that of the final states to the state of the run in one process.

The exit status tells only whether the measurement ran.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("north", "south")
MEASURES = ("overhead", "bytes", "engines")
ENGINES = ("process", "ray", "deployed", "resident")
UP = {"server": "ready", "site": "SuperNode ID", "worker": "worker at"}  # what each says once it is up
SECONDS = 900.0  # for anything that is waited for
PARTS = {  # of a run: what is timed, as module:name
    "packing": ("client:pack", "client:unpack", "rounds:pack"),
    "messages": ("messages:to_record", "messages:from_record", "engines.local:copied"),
    "state at the sites": ("trainers:FromTrainer.exchange_state", "trainers:FromTrainer.load_exchange_state"),
    "schedule": ("trainers:FromTrainer.train",),
    "fingerprint": ("trainers:FromTrainer.fingerprint",),
    "screening": ("rounds:screened",),
    "averaging": ("strategies.averaging:Averaging.add", "strategies.averaging:Averaging.finish"),
    "checkpoint": ("checkpoint:save",),
    "final state at the sites": ("kept:Kept.keep_final",),
}
TASK = """
import torch
from transformers import PrinterCallback, TrainingArguments

from fedrag import LexicalRetriever, RALT, CausalLM, Prompt, RAGSystem, RAGTrainer
from fedrag.federated import FederatedTask, Plan, Site
from fedrag.quickstart.world import TEMPLATE, make_world


def build(site: Site):
    torch.manual_seed(0)
    world, index = make_world(seed=1, train=40, dev=0, test=0), site.settings["index"]
    generator = CausalLM({model!r}, lora={lora!r}, max_new_tokens=3)
    prompt = Prompt(template=TEMPLATE, document_template="{{text}}")
    rag = RAGSystem(retriever=LexicalRetriever(world.documents), generator=generator, top_k=1, prompt=prompt)
    args = TrainingArguments(
        {trash!r}, max_steps={steps}, per_device_train_batch_size=32, learning_rate=1e-3, save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )
    trainer = RAGTrainer(RALT(rag), train_dataset=world.train[index::2], args=args)
    trainer.remove_callback(PrinterCallback)  # the output is one JSON object
    return trainer


task = FederatedTask(build, Plan(rounds=2, quorum=2))
"""


@dataclass(frozen=True)
class Size:
    """Of what is measured: the Llama whose weights are trained, the one behind adapters, and training in seconds."""

    trained: tuple[int, int]  # width, layers
    frozen: tuple[int, int]
    seconds: float
    steps: int


FULL = Size((256, 3), (768, 8), 10.0, 4)
QUICK = Size((32, 1), (64, 2), 0.3, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of every variant, 2 at least (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny models and hardly any training: does it run?")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, help="measure no more than these")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES, help="of the engines, these")
    parser.add_argument("--measure", choices=ENGINES[:2], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return run_task(args.measure, args.folder)
    if args.rounds < 2:
        parser.error("quartiles want --rounds 2 at least")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes of a deployment end too
    size = QUICK if args.quick else FULL
    result: dict[str, Any] = {"sites": len(NAMES), "quick": args.quick, "turns": args.rounds}
    # short, for a socket's path is
    with tempfile.TemporaryDirectory(prefix="fedrag-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if "overhead" in args.only:
            result["overhead"] = overhead(folder / "overhead", size, args.rounds)
        if "bytes" in args.only:
            result["bytes"] = count_bytes(folder / "bytes", size)
        if "engines" in args.only:
            result["engines"] = engines(folder / "e", size, args.rounds, list(args.engines))
    print(json.dumps(result, indent=2))


# -- what a round costs beside training


def overhead(folder: Path, size: Size, turns: int) -> dict[str, Any]:
    """Three rounds in this process, with and without a checkpoint, in turns."""
    import torch

    from fedrag.federated import FederatedTask, Plan, Site

    torch.set_num_threads(1)
    model = make_model(folder, size.trained)
    steps = steps_for(folder, model, size.seconds)
    build = recipe(folder, model, steps=steps)
    sites = [Site(name, state=folder / name, settings={"index": i}) for i, name in enumerate(NAMES)]
    found: dict[str, list[dict[str, float]]] = {"checkpoint": [], "no_checkpoint": []}
    parts: dict[str, list[float]] = defaultdict(list)
    megabytes = 0.0
    for turn in range(turns):
        for name in list(found)[:: 1 if turn % 2 else -1]:
            clock = Clock()

            def timed(site: Site, clock: Clock = clock) -> Any:
                with clock.part("build"):
                    trainer = build(site)
                trainer.train = clock.timing("training", trainer.train)
                return trainer

            checkpoint = folder / f"run-{turn}" if name == "checkpoint" else None
            task = FederatedTask(timed, Plan(rounds=3, quorum=2, checkpoint=checkpoint))
            with clock.watching():
                began = time.perf_counter()
                done = task.run(sites, progress=False)
                wall = time.perf_counter() - began
            training, built = clock.seconds["training"], clock.seconds["build"]
            told = sum(s.metrics["train_seconds"] for r in done.history.rounds for s in r.sites.values())
            found[name].append(
                {
                    "overhead": (wall - training - built) / training,
                    "overhead_by_the_history": (wall - told - built) / told,
                    "wall": wall,
                    "training": training,
                    "building": built,
                }
            )
            megabytes = done.history.rounds[0].bytes_down / len(sites) / 1e6
            if name == "checkpoint":
                rest = wall - sum(clock.seconds.values())
                for part in (*PARTS, "rest"):
                    parts[part].append(rest if part == "rest" else clock.seconds[part])
    return {
        "claim": "overhead with a checkpoint <= 0.05",
        "state_megabytes": round(megabytes, 2),
        "rounds": 3,
        "steps": steps,
        **{name: {key: spread([row[key] for row in rows]) for key in rows[0]} for name, rows in found.items()},
        "parts_in_seconds_with_checkpoint": {part: spread(values) for part, values in parts.items()},
        "training_seconds_a_site_and_round": round(found["checkpoint"][0]["training"] / (3 * len(sites)), 2),
    }


class Clock:
    """Seconds by part; while a part is inside another, only the inner one's go on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._last = 0.0

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """What happens inside belongs to this part."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **settings: Any) -> Any:
            with self.part(name):
                return function(*args, **settings)

        return timed

    @contextmanager
    def watching(self) -> Generator[None]:
        """All of `PARTS` are timed inside."""
        undo: list[tuple[Any, str, Any]] = []
        for part, places in PARTS.items():
            for place in places:
                module, _, path = place.partition(":")
                owner: Any = importlib.import_module(f"fedrag.federated.{module}")
                *outer, name = path.split(".")
                for each in outer:
                    owner = getattr(owner, each)
                undo.append((owner, name, getattr(owner, name)))
                setattr(owner, name, self.timing(part, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, function in undo:
                setattr(owner, name, function)

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now


def steps_for(folder: Path, model: Path, seconds: float) -> int:
    """How many steps take so long at a site, what comes before the first included."""
    from fedrag.federated import Site

    took: list[float] = []
    for steps in (1, 1, 9):  # the first time is slower
        trainer = recipe(folder, model, steps=steps)(Site("trial", settings={"index": 0}))
        began = time.perf_counter()
        trainer.train()
        took.append(time.perf_counter() - began)
    each = max(took[2] - took[1], 1e-3) / 8
    return max(1, 1 + math.ceil((seconds - took[1]) / each))


# -- bytes


def count_bytes(folder: Path, size: Size) -> dict[str, Any]:
    """The second round of two, on the messages."""
    from fedrag.federated import Plan, Site

    model = make_model(folder, size.trained)
    rows: dict[str, Any] = {}
    for name, lora, settings in (
        ("full", None, {}),
        ("lora_8", 8, {}),
        ("lora_8_bf16", 8, {"precision": "bfloat16"}),
    ):
        build = recipe(folder, model, steps=1, lora=lora)
        sites = [Site(each, settings={"index": i}) for i, each in enumerate(NAMES)]
        measured = bytes_of_a_round(build, Plan(rounds=2, quorum=2, **settings), sites)
        trained = build(sites[0]).objective.trainable().values()
        each, header = (2, 0) if settings else (4, 128)
        computed = 2 * len(NAMES) * sum(each * p.numel() + header for p in trained)
        rows[name] = {"measured": measured, "computed": computed, "parameters": sum(p.numel() for p in trained)}
    rows["claim"] = "measured = computed"
    rows["full_over_lora_8"] = round(rows["full"]["measured"] / rows["lora_8"]["measured"], 2)
    rows["lora_8_over_bf16"] = round(rows["lora_8"]["measured"] / rows["lora_8_bf16"]["measured"], 2)
    return rows


def bytes_of_a_round(build: Callable[[Any], Any], plan: Any, sites: list[Any]) -> int:
    """Bytes of arrays both ways, through Flower's own serialisation."""
    from fedrag.federated.app import client_app
    from fedrag.federated.client import Participant
    from fedrag.federated.engines.local import LocalGrid, identity
    from fedrag.federated.rounds import Rounds

    participants = {site.name: Participant(build, plan, site) for site in sites}
    client = client_app(lambda node, request: participants[str(node["site"])].answer(request))
    marks: list[int] = []
    with identity(1):
        grid = LocalGrid(client, [{"site": site.name} for site in sites], run_id=1, serde=True)
        Rounds(grid, plan, lambda _: marks.append(grid.bytes_down + grid.bytes_up)).run()
    return marks[1] - marks[0]


# -- engines


def engines(folder: Path, size: Size, turns: int, names: list[str]) -> dict[str, Any]:
    """Time and memory of the same task in every engine, in turns."""
    import torch

    folder.mkdir(parents=True)
    task = TASK.format(
        model=str(make_model(folder, size.frozen)), lora=8, trash=str(folder / "trash"), steps=size.steps
    )
    (folder / "task.py").write_text(task)
    for index, name in enumerate(NAMES):
        (folder / name).mkdir()
        (folder / name / "site.toml").write_text(f'name = "{name}"\n[settings]\nindex = {index}\n')
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[float]] = {name: [] for name in names}
    states: dict[str, dict[str, Any]] = {}
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            forget(folder)
            with Memory() as most:
                began = time.perf_counter()
                if name in ENGINES[:2]:
                    call([sys.executable, __file__, "--measure", name, "--folder", str(folder)])
                    began_run = began
                else:
                    with deployment(folder, worker=name == "resident") as submit:
                        began_run = time.perf_counter()
                        submit()
                        ended = time.perf_counter()
            if name in ENGINES[:2]:
                ended = time.perf_counter()
            print(
                f"turn {turn}: {name} took {ended - began_run:.1f} s, {began_run - began:.1f} s to be up",
                file=sys.stderr,
            )
            seconds[name].append(ended - began_run)
            start[name].append(began_run - began)
            memory[name].append(most.megabytes)
            states[name] = final_state(folder)
    first = states.get("process", next(iter(states.values())))
    result: dict[str, Any] = {
        "claim": "resident over process <= 3",
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "seconds_until_up": {name: spread(values) for name, values in start.items() if name in ENGINES[2:]},
        "peak_megabytes": {name: spread(values) for name, values in memory.items()},
        "largest_difference": {
            name: max(float((state[n].double() - value.double()).abs().max()) for n, value in first.items())
            for name, state in states.items()
        },
        "parameters_exchanged": sum(value.numel() for value in first.values()),
        "moved": bool(any(torch.count_nonzero(v) for n, v in first.items() if ".lora_B" in n)),
    }
    for name in names:
        if "process" in names and name != "process":
            result[f"{name}_over_process"] = spread(seconds[name], seconds["process"])
    return result


def run_task(engine: str, folder: Path) -> None:
    """In a process of its own: run the task."""
    from fedrag.federated import Site
    from fedrag.federated.deployment.project import load_task

    task = load_task(folder / "task.py")
    sites = [Site.open(folder / name / "site.toml") for name in NAMES]
    if engine == "process":
        task.run(sites, progress=False)
    else:
        task.simulate(sites, progress=False)


@contextmanager
def deployment(folder: Path, *, worker: bool) -> Generator[Callable[[], None]]:
    """A server and two sites, up; what submits the task and waits for its end."""
    from fedrag.federated.deployment.processes import Group, command, environment, free_port

    fedrag, env = command("fedrag"), environment()
    fleet, control = free_port(), free_port()
    groups: list[Group] = []

    def stay(kind: str, name: str, *words: str) -> None:
        log = folder / f"{kind}-{name}.log"
        with log.open("wb") as output:
            groups.append(Group([fedrag, "federate", kind, *words], env=env, output=output, cwd=folder))
        end = time.monotonic() + SECONDS
        while UP[kind] not in log.read_text(errors="replace"):
            if groups[-1].ended() is not None or time.monotonic() > end:
                raise RuntimeError(f"{kind} {name} is not up:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    if not (folder / "keys").exists():
        call([fedrag, "federate", "keys", "--out", "keys", "--server", "localhost", "--sites", ",".join(NAMES)], folder)
        call([fedrag, "federate", "init", "task.py", "--to", "app"], folder)
    pin = call([fedrag, "federate", "pin", "app"], folder).split()[-1]
    ports = ("--host", "127.0.0.1", "--port", str(fleet), "--control-port", str(control))
    try:
        stay("server", "", "--keys", "keys/server", "--home", f"link-{control}", *ports)
        for name in NAMES:
            site = f"{name}/site.toml"
            if worker:
                stay("worker", name, "app/task.py", "--site", site)
            stay("site", name, site, "--server", f"localhost:{fleet}", "--keys", f"keys/{name}", "--pin", pin)
        words = ["--app", "app", "--ca", "keys/server/ca.crt", "--wait", str(SECONDS)]
        yield lambda: void(call([fedrag, "federate", "submit", f"127.0.0.1:{control}", *words], folder))
    finally:
        for group in reversed(groups):
            group.stop()


def void(_: object) -> None:
    """Nothing."""


def call(words: list[str], folder: Path | None = None) -> str:
    """Run a command to its end; what it prints."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-4000:]}")
    return done.stdout


class Memory:
    """The most memory of all processes that this one has started, together, in proportional shares; this one apart."""

    def __enter__(self) -> Memory:
        self.megabytes = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        from fedrag.federated.deployment.processes import descendants

        while not self._over.wait(0.2):
            now = sum(map(pss, [pid for pid, _ in descendants(os.getpid())]))
            self.megabytes = max(self.megabytes, now / 1e6)


def pss(pid: int) -> int:
    """Bytes of a process, pages that it shares divided among those who do; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def forget(folder: Path) -> None:
    """Remove what sites kept of earlier runs, but for what Flower installed."""
    for name in NAMES:
        for path in (folder / name / "state").glob("*/final.safetensors"):
            path.unlink()


def final_state(folder: Path) -> dict[str, Any]:
    """What the first site ended with."""
    from safetensors.torch import load_file

    (path,) = (folder / NAMES[0] / "state").glob("*/final.safetensors")
    return load_file(path)


# -- models, and what is shared


def make_model(folder: Path, shape: tuple[int, int]) -> Path:
    """A Llama with random weights and the tokenizer of the quickstart's base, in a folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from fedrag.quickstart.world import BASE

    width, layers = shape
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def recipe(folder: Path, model: Path, *, steps: int, lora: int | None = None) -> Callable[[Any], Any]:
    """The `build` of the task, in this process."""
    names: dict[str, Any] = {}
    exec(TASK.format(model=str(model), lora=lora, trash=str(folder / "trash"), steps=steps), names)
    return names["build"]


def spread(values: list[float], over: list[float] | None = None) -> dict[str, float]:
    """Median and quartiles, of values or of their ratios turn by turn."""
    if over is not None:
        values = [a / b for a, b in zip(values, over, strict=True)]
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "low_quartile": round(low, 4), "high_quartile": round(high, 4)}


if __name__ == "__main__":
    main()
