"""The runner of the pages' snippets: it runs what is shown, says where it failed, and lets no skip rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

RUNNER = Path(__file__).parents[1] / "scripts" / "readme.py"


def run(folder: Path, *pages: str) -> tuple[int, str]:
    paths = [folder / f"page{number}.md" for number in range(1, len(pages) + 1)]
    for path, text in zip(paths, pages, strict=True):
        path.write_text(dedent(text))
    command = [sys.executable, str(RUNNER), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def test_blocks_share_names_and_files_within_a_page_only(tmp_path: Path) -> None:
    page = """\
        # Title
        ```python
        x = 41
        open("note.txt", "w").write("hello")
        ```
        1. A step
           ```bash
           test "$(cat note.txt)" = hello
           echo more >> note.txt
           ```
        ~~~python title="more"
        fence = '''
        ```
        '''
        assert x + 1 == 42
        assert open("note.txt").read() == "hellomore\\n"
        ~~~
        ```json
        {"not": "run"}
        ```
        """
    other = """\
        ```python
        import os
        assert "x" not in globals()
        assert os.listdir() == []
        ```
        """
    status, output = run(tmp_path, page, other)
    assert "snippets: 4 passed, 0 skipped, 0 failed" in output
    assert status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page1.md", "page2.md"]


def test_bash_finds_the_commands_of_this_environment(tmp_path: Path) -> None:
    status, output = run(tmp_path, "```bash\necho $(command -v python)\n```\n")
    assert str(Path(sys.executable).parent / "python") in output
    assert status == 0


@pytest.mark.parametrize(
    ("page", "where"),
    [
        ("text\n\n```python\nx = 1\n\nassert x == 2\n```\n", "page1.md:6: AssertionError"),
        ("```python\ndef f():\n    raise ValueError('no')\n\nf()\n```\n", "page1.md:3: ValueError: no"),
        ("```python\nx = 1\nx = = 2\n```\n", "page1.md:3: invalid syntax"),
        ("```python\nimport sys\nsys.exit('bad')\n```\n", "page1.md:3: SystemExit: bad"),
        ("text\n```bash\ntrue\n\nfalse\ntrue\n```\n", "page1.md:5: bash exits with 1"),
        ("```bash\nfalse | true\n```\n", "page1.md:2: bash exits with 1"),
        ("```bash\necho $unset_name\n```\n", "page1.md:2: bash exits with 1"),
        ("```bash\nexit 3\n```\n", "page1.md:2: bash exits with 3"),
        ("```python\nx = 1\n", "page1.md:1: the block that starts here has no end"),
        ("<!-- skip: -->\n```python\nx = 1\n```\n", "page1.md:1: a skip gives its reason"),
        ("<!-- skip: slow -->\ntext\n```python\nx = 1\n```\n", "page1.md:1: no python or bash block follows"),
        ("<!-- skip: slow -->\n```json\n1\n```\n", "page1.md:1: no python or bash block follows"),
        ("<!-- skip: slow -->\n\n", "page1.md:1: no python or bash block follows"),
    ],
)
def test_a_failure_names_file_and_line(tmp_path: Path, page: str, where: str) -> None:
    status, output = run(tmp_path, page)
    assert where in output
    assert "1 failed" in output
    assert status == 1


def test_after_a_failure_only_the_other_pages_run(tmp_path: Path) -> None:
    failing = "```python\n1 / 0\n```\n```python\nprint('reached')\n```\n"
    status, output = run(tmp_path, failing, "```python\nprint('other')\n```\n")
    assert "reached" not in output
    assert "other" in output
    assert "snippets: 1 passed, 0 skipped, 1 failed" in output
    assert status == 1


def test_a_skipped_block_does_not_run_and_says_why(tmp_path: Path) -> None:
    page = "<!-- skip: needs a model hub -->\n\n```python\n1 / 0\n```\n```python\nprint('next')\n```\n"
    status, output = run(tmp_path, page)
    assert "page1.md:4: python skipped: needs a model hub" in output
    assert "snippets: 1 passed, 1 skipped, 0 failed" in output
    assert status == 0


def test_a_page_that_is_not_there_is_named() -> None:
    done = subprocess.run([sys.executable, str(RUNNER), "gone.md"], capture_output=True, text=True, timeout=60)
    assert "gone.md is not there" in done.stderr
    assert done.returncode == 2
