"""Run docs/deployment.md on this machine: a real server and two real sites, with TLS, node keys, pins and workers.

The page's commands run in its order, in a temporary folder. Its host becomes `localhost`, its ports free ones, its
models the tiny ones that come with fedrag; what it does for the site north is done for south as well. Commands that
stay (server, site, worker) run in the background until the end. Then it tries what must not work: code that is not
pinned, and the control API from a site. Anything unexpected ends it with status 1 and the last lines of every log.

    python scripts/deploy_on_loopback.py [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from readme import blocks

from fedrag.federated.deployment.processes import Group, environment, free_port

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "deployment.md"
SITES = ("north", "south")
STAYS = {"server": "ready", "site": "SuperNode ID", "worker": "worker at"}  # and what they say once they are up
SECONDS = 180.0  # a single step takes no longer
HOSTILE = 'import os, pathlib; pathlib.Path({folder!r}, "ran-" + str(os.getpid())).write_text(os.getcwd())\n'


class Unexpected(Exception):
    """A step did not go as it should; the message says which, and how it went."""


class Loopback:
    """The machines of the page, as folders and processes of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet, self.control = free_port(), free_port()
        self.groups: list[Group] = []
        self.env = environment() | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self.models = folder / "models"
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """One line, with the time since the beginning."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", flush=True)

    def prepare(self) -> None:
        """What the page takes for granted: base models, and each site's documents and questions."""
        from fedrag.quickstart.world import world_retriever

        world_retriever().save(str(self.models / "encoder"), create_model_card=False)
        for first, site in enumerate(SITES):
            docs = self.folder / site / "docs"
            docs.mkdir(parents=True)
            rows: list[str] = []
            for number in range(first * 8, first * 8 + 8):
                (docs / f"{number}.txt").write_text(f"The key of clerk {number} is {number * 3} .")
                rows.append(f'{{"question": "Which key has clerk {number} ?", "answers": ["{number * 3}"]}}')
            (self.folder / site / "train.jsonl").write_text("\n".join(rows))

    def here(self, command: str) -> str:
        """A command of the page, with this machine's addresses and models."""
        from fedrag.quickstart.world import BASE

        changes = {
            "fl.example.org:8000": f"localhost:{self.fleet}",
            "fl.example.org": "localhost",
            "127.0.0.1:8001": f"127.0.0.1:{self.control}",
            "sentence-transformers/all-MiniLM-L6-v2": str(self.models / "encoder"),
            "Qwen/Qwen3-0.6B": str(BASE),
            "federate server ": f"federate server --host 127.0.0.1 --port {self.fleet} --control-port {self.control} ",
        }
        for old, new in changes.items():
            command = command.replace(old, new)
        return command

    def block(self, code: str) -> None:
        """Run a block of the page; one that is of a site runs for each."""
        of_a_site = "north" in code and "south" not in code
        for site in SITES if of_a_site else SITES[:1]:
            for line in code.strip().splitlines():
                self.command(self.here(line.replace("north", site)), site)

    def command(self, command: str, site: str) -> None:
        """Run a line, or start it if it stays. Raises `Unexpected` when it fails."""
        self.say(f"$ {command}")
        kind = re.match(r"fedrag federate (\w+)", command)
        if kind and kind[1] in STAYS:
            return self.stay(command, kind[1], site)
        done = self.run(command)
        print("".join(f"          {line}\n" for line in done.stdout.splitlines()[-12:]), end="", flush=True)
        if done.returncode:
            raise Unexpected(f"status {done.returncode}: {command}\n{done.stdout}\n{done.stderr}")
        if "federate init" in command:
            for name in SITES:
                text = (self.folder / "app" / "site.toml").read_text()
                (self.folder / name / "site.toml").write_text(text.replace('name = "north"', f'name = "{name}"'))

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line to its end."""
        words = ["bash", "-euo", "pipefail", "-c", command]
        return subprocess.run(words, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=SECONDS)

    def stay(self, command: str, kind: str, site: str) -> None:
        """Start what stays, and wait until it says that it is up."""
        log = self.folder / (f"{kind}.log" if kind == "server" else f"{kind}-{site}.log")
        with log.open("wb") as output:
            words = ["bash", "-c", f"exec {command}"]
            group = Group(words, env=self.env, output=output, cwd=self.folder)
        self.groups.append(group)
        deadline = time.monotonic() + SECONDS
        while STAYS[kind] not in log.read_text(errors="replace"):
            if group.ended() is not None or time.monotonic() > deadline:
                raise Unexpected(f"{command} is not up: {'it ended' if group.ended() is not None else 'too late'}")
            time.sleep(0.1)
        self.say(f"  up: {kind}, process {group.pid}")

    def check_result(self) -> None:
        """What the run should have left: a state at the server and at each site, all the same, and trained."""
        from fedrag.federated.exchange import from_bytes, unpack

        (server,) = self.folder.glob("run/v*/state.safetensors")
        kept = [server, *(path for site in SITES for path in self.folder.glob(f"{site}/state/*/final.safetensors"))]
        if len(kept) != 1 + len(SITES):
            raise Unexpected(f"{len(kept)} final states are there, wanted is one at the server and at each site")
        states = [unpack(from_bytes(path.read_bytes())[0]) for path in kept]
        if any(state.keys() != states[0].keys() for state in states):
            raise Unexpected("the sites' final states do not have the server's names")
        if not all(bool((state[name] == value).all()) for state in states for name, value in states[0].items()):
            raise Unexpected("the sites' final states are not the server's")
        # LoRA's B starts as zeros, so what is not zero was trained
        if not any(".lora_B" in name and bool(value.any()) for name, value in states[0].items()):
            raise Unexpected("nothing was trained: every B of the adapters is zero")
        self.say(f"the server and {len(SITES)} sites hold the same trained state of {len(states[0])} tensors")

    def refuse_other_code(self) -> None:
        """Submit an app that was not pinned; no site may run any of it."""
        marks = self.folder / "marks"
        marks.mkdir()
        task = (self.folder / "task.py").read_text().replace('checkpoint="run"', 'checkpoint="other"')
        (self.folder / "app" / "task.py").write_text(HOSTILE.format(folder=str(marks)) + task)
        authority = f"--app app --ca keys/server/ca.crt --wait {SECONDS / 2:.0f}"
        done = self.run(f"fedrag federate submit 127.0.0.1:{self.control} {authority}")
        if done.returncode == 0:
            raise Unexpected("a run of code that is not pinned completed")
        refused = [
            site for site in SITES if "REFUSED" in (self.folder / f"site-{site}.log").read_text(errors="replace")
        ]
        if refused != list(SITES):
            raise Unexpected(f"refused at {refused or 'no site'}, wanted at {', '.join(SITES)}: {done.stderr}")
        if len(list(marks.iterdir())) != 1:  # the server's half, which its operator submitted
            raise Unexpected(f"the app ran {len(list(marks.iterdir()))} times, wanted is once, at the server")
        self.say("code that is not pinned was refused at every site, and none of it ran there")

    def keep_sites_out(self) -> None:
        """What a site holds must not open the control API."""
        done = self.run(f"fedrag federate status localhost:{self.fleet} --ca keys/north/ca.crt")
        if done.returncode == 0 or "403" not in done.stderr:
            raise Unexpected(f"the control API answers a site: {done.stdout}{done.stderr}")
        self.say("the control API is closed to sites")

    def logs(self) -> str:
        """The end of everything that was logged."""
        return "\n".join(
            f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:])
            for path in sorted(self.folder.glob("*.log"))
        )


def deploy(folder: Path) -> None:
    here = Loopback(folder)
    try:
        here.prepare()
        for block in blocks(PAGE.read_text(encoding="utf-8"), PAGE.name):
            if block.language == "python":
                (folder / "task.py").write_text(block.code)
            else:
                here.block(block.code)
        here.check_result()
        here.keep_sites_out()
        here.refuse_other_code()
    except (Unexpected, subprocess.TimeoutExpired) as error:
        print(f"{here.logs()}\n\nFAILED: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        for group in reversed(here.groups):
            group.stop()
        here.say("every process has ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, help="run in this folder, and leave it there")
    settings = parser.parse_args()
    if settings.keep:
        settings.keep.mkdir(parents=True)
        return deploy(settings.keep.resolve())
    # short, for a socket's path is
    with tempfile.TemporaryDirectory(prefix="fedrag-", ignore_cleanup_errors=True) as folder:
        deploy(Path(folder))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
