"""The folder of a run, `tuned.run` beside `tuned`: what is needed to go on after a stop, and what to read later.

    tuned.run/run.json           the recipe, the digests of its data, and whether the run has ended
    tuned.run/before.json        the report before, as `Report.save` writes it; after.json the one after
    tuned.run/log.jsonl          a line for each log of the trainer: time, stage, objective, step, numbers
    tuned.run/1-lsr/             a stage: its checkpoints, then `system` and `metrics.json` when it is done

A stage is done when its system is published, which happens whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fedrag import durable
from fedrag.cli.building import run_folder_of, stage_folder_of
from fedrag.cli.recipe import Recipe
from fedrag.errors import ConfigError, StoreError
from fedrag.evaluation import Report
from fedrag.rag import RAGSystem

_STATE, _STEPS = "trainer_state.json", "global_step"


class Run:
    """A run's folder.

    Args:
        recipe: what is carried out.
        resume: go on with what is there; else begin anew, unless something is there that would be lost.

    Raises:
        ConfigError: for an unfinished run without `resume`, for one of another recipe or other data with it, and for
            a folder that holds something else.
    """

    def __init__(self, recipe: Recipe, *, resume: bool) -> None:
        self.recipe = recipe
        self.folder = run_folder_of(recipe)
        self._now = now = _told(recipe)
        before = self._read()
        if before is None and self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ConfigError(f"{self.folder} is no folder of a run: move it away, or give another save_to")
        if before is None or (before["finished"] and not resume):
            resume = False
        elif resume:
            _compare(before, now, self.folder)
        elif self._kept():
            raise ConfigError(
                f"{self.folder} holds a run that did not end: go on with it by --resume, or remove it to begin anew"
            )
        self.saved = resume and before is not None and before["saved"]
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._write(now, saved=False, finished=False)

    def done(self) -> int:
        """How many stages have ended; the last one has when the tuned system is saved."""
        ended = [n for n in range(1, len(self.recipe.stages)) if durable.exists(self.system(n))]
        return len(self.recipe.stages) if self.saved else max(ended, default=0)

    def system(self, number: int) -> Path:
        """Where the system is kept as a stage leaves it, until the next one has ended."""
        return stage_folder_of(self.recipe, number) / "system"

    def checkpoint(self, number: int) -> Path | None:
        """The last checkpoint of a stage that was written whole; the Trainer writes its state after all else."""
        whole = [
            (int(path.name.rpartition("-")[2]), path)
            for path in stage_folder_of(self.recipe, number).glob("checkpoint-*")
            if path.name.rpartition("-")[2].isdecimal() and _parses(path / _STATE)
        ]
        return max(whole)[1] if whole else None

    def end_stage(self, number: int, metrics: Mapping[str, float], rag: RAGSystem) -> None:
        """Save what a stage made, the last one the tuned system, and drop what nothing goes on from any more."""
        folder, last = stage_folder_of(self.recipe, number), number == len(self.recipe.stages)
        folder.mkdir(parents=True, exist_ok=True)
        durable.replace_text(folder / "metrics.json", json.dumps(dict(metrics), indent=1))
        rag.save(self.recipe.save_to if last else self.system(number))
        if last:
            self.saved = True
            self._write(self._now, saved=True, finished=False)
        for path in (*folder.glob("checkpoint-*"), folder / "rounds"):
            shutil.rmtree(path, ignore_errors=True)
        if number > 1:
            shutil.rmtree(self.system(number - 1), ignore_errors=True)

    def metrics(self, number: int) -> dict[str, float]:
        """The numbers of a stage that has ended."""
        path = stage_folder_of(self.recipe, number) / "metrics.json"
        return cast(dict[str, float], json.loads(path.read_text(encoding="utf-8")))

    def end(self) -> None:
        """All is done: another run of this recipe begins anew."""
        self._write(self._now, saved=True, finished=True)

    def report(self, name: str) -> Report | None:
        """The report "before" or "after", where it was made."""
        path = self.folder / f"{name}.json"
        return Report.load(path) if path.is_file() else None

    def log(self, number: int, step: int, numbers: Mapping[str, float]) -> None:
        """Add a line to the log."""
        line = {"time": round(time.time(), 3), "stage": number, "objective": self.recipe.stages[number - 1].objective}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "step": step, **numbers}) + "\n")

    def forget_after(self, number: int, step: int) -> None:
        """Take back the lines of steps that will be done again."""
        path = self.folder / "log.jsonl"
        if path.is_file():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _place(line) <= (number, step)]
            durable.replace_text(path, "".join(f"{line}\n" for line in lines))

    def _kept(self) -> bool:
        """Whether there is anything that would have to be computed again."""
        places = ("before.json", "*/checkpoint-*", "*/rounds", "*/system")
        return any(True for place in places for _ in self.folder.glob(place))

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / "run.json"
        try:
            return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except ValueError:
            raise StoreError(f"{path} is not what fedrag wrote: remove {self.folder} to begin anew") from None

    def _write(self, told: Mapping[str, Any], *, saved: bool, finished: bool) -> None:
        durable.replace_text(
            self.folder / "run.json", json.dumps({**told, "saved": saved, "finished": finished}, indent=1)
        )


def _told(recipe: Recipe) -> dict[str, Any]:
    """What must be the same when a run goes on."""
    sites = recipe.federated.sites or {} if recipe.federated else {}
    data = [path for path in (recipe.train, recipe.eval, *sites.values()) if path is not None and path.is_file()]
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in data}
    told = recipe.model_dump(mode="json")
    for stage in told["stages"]:
        if token := stage["training"].get("hub_token"):  # a secret, told apart from another one and no more
            stage["training"]["hub_token"] = f"sha256 {hashlib.sha256(token.encode()).hexdigest()[:8]}"
    version = durable.current(recipe.system).name if durable.exists(recipe.system) else ""
    return {"recipe": told, "data": digests, "version": version}


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    was, is_ = dict(_flat(before["recipe"])), dict(_flat(json.loads(json.dumps(now["recipe"]))))
    for key in {**was, **is_}:
        if was.get(key) != is_.get(key):
            raise ConfigError(
                f"{folder} was begun with {key}={was.get(key)!r}, the recipe now has {is_.get(key)!r}: go on with what "
                "it was, or remove the folder to begin anew"
            )
    if not before["saved"] and before["version"] != now["version"]:
        raise ConfigError(
            f"{before['recipe']['system']} was saved again since {folder} was begun: remove that folder to begin anew"
        )
    for path, digest in before["data"].items():
        if now["data"].get(path) != digest:
            raise ConfigError(
                f"{path} is not what it was when {folder} was begun: bring it back, or remove the folder to begin anew"
            )


def _flat(value: Any, place: str = "") -> list[tuple[str, Any]]:
    """Every value of a nested structure by its dotted place."""
    if isinstance(value, dict) and value:
        pairs = cast(dict[str, Any], value).items()
    elif isinstance(value, list) and value:
        pairs = ((str(n), item) for n, item in enumerate(cast(list[Any], value)))
    else:
        return [(place, value)]
    return [found for key, item in pairs for found in _flat(item, f"{place}.{key}" if place else str(key))]


def _parses(path: Path) -> bool:
    try:
        return _STEPS in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _place(line: str) -> tuple[int, int]:
    try:
        row = json.loads(line)
        return int(row["stage"]), int(row["step"])
    except (ValueError, KeyError):  # half a line: the process died while it wrote
        return (1 << 30, 0)
