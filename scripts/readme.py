"""Run the snippets of README.md and of the pages in docs/, so that what the pages show is what the library does.

Fenced `python` and `bash` blocks run in the order of the page, in a temporary folder of the page's own, so that one
block may read what an earlier one wrote. The python blocks of a page share one namespace; bash blocks stop at the first
command that fails and find the commands of this environment first. A block after the comment `<!-- skip: reason -->`
does not run, and the reason is printed. After a failure the rest of that page does not run, for it may build on the
failed block.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
LANGUAGES = {"python": "python", "py": "python", "bash": "bash", "sh": "bash", "shell": "bash"}
FENCE = re.compile(r"(?P<indent>\s*)(?P<marks>`{3,}|~{3,})\s*(?P<language>[^\s`{]*)")
SKIP = re.compile(r"\s*<!--\s*skip\b:?\s*(?P<reason>.*?)\s*-->\s*")


@dataclass(frozen=True, slots=True)
class Block:
    """A runnable block: its language, its code, the line on which the code starts, and why it is skipped, if it is."""

    language: str
    code: str
    line: int
    skip: str = ""


class PageError(Exception):
    """A page cannot be read or a block failed; the message starts with file:line."""


def blocks(text: str, page: str) -> list[Block]:
    """Extract the runnable blocks. Raises `PageError` for an open fence and for a skip without a reason or a block."""
    found: list[Block] = []
    lines = iter(enumerate(text.splitlines(), 1))
    reason, reason_line = "", 0
    for number, line in lines:
        if skip := SKIP.fullmatch(line):
            reason, reason_line = skip["reason"], number
            if not reason:
                raise PageError(f"{page}:{number}: a skip gives its reason: <!-- skip: why -->")
            continue
        fence = FENCE.match(line)
        if fence:
            code: list[str] = []
            for _, inner in lines:
                if re.fullmatch(rf"\s*{fence['marks'][0]}{{{len(fence['marks'])},}}\s*", inner):
                    break
                code.append(inner.removeprefix(fence["indent"]))
            else:
                raise PageError(f"{page}:{number}: the block that starts here has no end")
            if language := LANGUAGES.get(fence["language"].lower()):
                found.append(Block(language, "\n".join(code) + "\n", number + 1, reason))
                reason = ""
        if reason and line.strip():
            raise PageError(f"{page}:{reason_line}: no python or bash block follows this skip; remove it")
    if reason:
        raise PageError(f"{page}:{reason_line}: no python or bash block follows this skip; remove it")
    return found


def run_python(block: Block, page: str, path: Path, namespace: dict[str, Any]) -> None:
    """Run the code with the page's own line numbers, so that tracebacks point into the page."""
    try:
        exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), namespace)
    except SyntaxError as error:
        raise PageError(f"{page}:{error.lineno or block.line}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever a snippet raises is the snippet's failure
        if isinstance(error, SystemExit) and not error.code:
            return
        traceback.print_exc()
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = inside[-1] if inside else block.line
        raise PageError(f"{page}:{line}: {type(error).__name__}: {error}") from None


def run_bash(block: Block, page: str) -> None:
    # No links resolved: in a virtual environment python is a link, and its neighbours are the commands.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    script = f"set -eEuo pipefail\ntrap 'echo \"failed at line $LINENO\" >&2' ERR\n{block.code}"
    done = subprocess.run(["bash", "-c", script], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = done.stderr.decode(errors="replace")
    marks = re.findall(r"^failed at line (\d+)$\n?", errors, re.MULTILINE)
    sys.stderr.write(re.sub(r"^failed at line \d+$\n?", "", errors, flags=re.MULTILINE))
    if done.returncode:
        line = block.line + int(marks[0]) - 3 if marks else block.line
        raise PageError(f"{page}:{line}: bash exits with {done.returncode}")


def run_page(path: Path, page: str) -> tuple[int, int, int]:
    """Run one page; return how many blocks passed, were skipped, failed."""
    passed = skipped = 0
    namespace: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="snippets-") as folder:
        os.chdir(folder)
        try:
            for block in blocks(path.read_text(encoding="utf-8"), page):
                label = f"{page}:{block.line}: {block.language}"
                if block.skip:
                    print(f"{label} skipped: {block.skip}", flush=True)
                    skipped += 1
                    continue
                started = time.monotonic()
                if block.language == "python":
                    run_python(block, page, path, namespace)
                else:
                    run_bash(block, page)
                print(f"{label} ok, {time.monotonic() - started:.1f} s", flush=True)
                passed += 1
        except PageError as error:
            print(error, file=sys.stderr, flush=True)
            return passed, skipped, 1
        finally:
            os.chdir(before)
    return passed, skipped, 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="pages to run (default: README.md and those in docs/)")
    pages = parser.parse_args(arguments).pages or [
        REPOSITORY / "README.md",
        *sorted((REPOSITORY / "docs").rglob("*.md")),
    ]
    if missing := [str(page) for page in pages if not page.is_file()]:
        print(f"{missing[0]} is not there; name a Markdown page", file=sys.stderr)
        return 2
    totals = [0, 0, 0]
    for path in [page.resolve() for page in pages]:
        page = str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)
        totals = [total + count for total, count in zip(totals, run_page(path, page), strict=True)]
    print("snippets: {} passed, {} skipped, {} failed".format(*totals))
    return 1 if totals[2] else 0


if __name__ == "__main__":
    sys.exit(main())
