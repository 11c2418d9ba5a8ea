"""`fedrag serve` as a person runs it: a process, its token, its end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from typer.testing import CliRunner

from fedrag import RAGSystem
from fedrag.cli import app
from fedrag.errors import ConfigError, MissingExtraError, StoreError
from serving.serving import QUESTION, serving_process

ASK = {"model": "my-rag", "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture
def folder(rag: RAGSystem, tmp_path: Path) -> Path:
    rag.save(tmp_path / "my-rag")
    return tmp_path


def address(process: subprocess.Popen[str]) -> str:
    """Where a process says that it listens."""
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + process.stderr.read()
    return found[0]


def test_help_fits_a_screen() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    assert len(result.output.rstrip().splitlines()) <= 30
    assert all(f"--{name}" in result.output for name in ("host", "port", "token-file", "slots", "grace", "mcp"))


def refused(folder: Path, *words: str) -> Exception:
    result = CliRunner().invoke(app, ["serve", str(folder / "my-rag"), *words])
    assert result.exit_code == 1
    assert result.exception is not None
    return result.exception


def test_mistakes_are_one_error_before_a_model_is_read(folder: Path) -> None:
    error = refused(folder, "--no-token", "--host", "0.0.0.0")
    assert isinstance(error, ConfigError)
    assert "--no-token with --host 0.0.0.0" in str(error)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = refused(folder, "--port", str(taken.getsockname()[1]))
    assert isinstance(error, ConfigError)
    assert "cannot be listened on" in str(error)
    (folder / "weak").write_text("secret words")
    for file, said in (("weak", "holds no token"), ("my-rag", "cannot be read"), ("no/folder", "cannot be written")):
        error = refused(folder, "--token-file", str(folder / file))
        assert isinstance(error, ConfigError)
        assert said in str(error)
        assert "secret" not in str(error)
    open_to_all = folder / "open to all"
    open_to_all.write_text("a-secret-token-of-some-length")
    open_to_all.chmod(0o640)
    error = refused(folder, "--token-file", str(open_to_all))
    assert isinstance(error, ConfigError)
    assert f"chmod 600 '{open_to_all}'" in str(error)
    assert "secret" not in str(error)
    assert isinstance(refused(folder / "elsewhere"), StoreError)
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize("library", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(library: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    error = refused(tmp_path)
    assert isinstance(error, MissingExtraError)
    assert "pip install 'fedrag[serve]'" in str(error)


def test_the_token_lies_beside_the_folder_however_it_is_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "my-rag.token").write_text("secret words")
    monkeypatch.chdir(folder / "my-rag")
    for system in (".", "../my-rag/", "./../my-rag"):
        result = CliRunner().invoke(app, ["serve", system, "--port", "0"])
        assert str(folder / "my-rag.token") in str(result.exception)
    assert sorted(path.name for path in folder.iterdir()) == ["my-rag", "my-rag.token"]


@pytest.mark.slow
def test_it_serves_ends_open_answers_and_comes_back_with_the_same_token(folder: Path, rag: RAGSystem) -> None:
    expected = rag.generator.generate([rag.query(QUESTION).prompt], max_new_tokens=900)[0]
    with serving_process("my-rag", "--port", "0", cwd=folder) as process:
        place = address(process)
        file = folder / "my-rag.token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        token = file.read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        assert httpx.post(f"{place}/v1/chat/completions", json=ASK).status_code == 401
        assert asyncio.run(searched(place, headers)) == [hit.document.id for hit in rag.retrieve(QUESTION)]
        body = {**ASK, "stream": True, "max_tokens": 900}
        with httpx.stream("POST", f"{place}/v1/chat/completions", json=body, headers=headers, timeout=60) as events:
            lines = (line.removeprefix("data: ") for line in events.iter_lines() if line)
            pieces = [piece(next(lines)) for _ in range(5)]
            process.send_signal(signal.SIGTERM)
            pieces += list(map(piece, until_done(lines)))
        assert "".join(pieces) == expected
        out, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
        assert token not in out + log
        assert "clerk" not in out + log
    port = place.rpartition(":")[2]
    with serving_process("my-rag", "--port", port, "--mcp", "off", "--grace", "1", cwd=folder) as process:
        assert address(process) == place
        assert httpx.get(f"{place}/v1/models", headers=headers).json()["data"][0]["id"] == "my-rag"
        assert httpx.post(f"{place}/mcp", json={}, headers=headers).status_code == 404
        body = {**ASK, "stream": True, "max_tokens": 1900}
        with httpx.stream("POST", f"{place}/v1/chat/completions", json=body, headers=headers, timeout=60) as events:
            lines = (line.removeprefix("data: ") for line in events.iter_lines() if line)
            assert "sources" in next(lines)
            process.send_signal(signal.SIGINT)
            with pytest.raises((httpx.TransportError, AssertionError)):
                list(until_done(lines))  # longer than the grace
        process.communicate(timeout=30)
        assert process.returncode == 0


def until_done(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line == "[DONE]":
            return
        yield line
    raise AssertionError("the stream broke off")


def piece(line: str) -> str:
    return json.loads(line)["choices"][0]["delta"].get("content", "")


async def searched(place: str, headers: dict[str, str]) -> list[str]:
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(f"{place}/mcp", http_client=http)) as client,
    ):
        found = await client.call_tool("search", {"query": QUESTION})
        return [source["id"] for source in found.structured_content["result"]]


@pytest.mark.slow
def test_a_restart_under_load_loses_no_answer() -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "serving.py"
    words = ["--clients", "8", "--seconds", "5", "--restarts", "1"]
    done = subprocess.run([sys.executable, str(benchmark), *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["lost"], told["wrong"], told["broken_streams"], told["failures"]) == (0, 0, 0, [])
    assert [restart["exit_code"] for restart in told["restarts"]] == [told["last_exit_code"]] == [0]
    assert told["questions"] > told["undisturbed"]["questions"] >= 8
