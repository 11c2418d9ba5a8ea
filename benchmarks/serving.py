"""Put `fedrag serve` under load, restart it in between, and print one JSON object.

Claim: with 32 clients that stream answers of 64 tokens at once, and two restarts (SIGTERM, the same port) on the way,
nothing is lost: every question gets its whole, right answer, which is what `rag.query` says; no stream that has begun
breaks off; the server ends with exit code 0. A client asks again where it was refused (no connection, 503).

Times are those of the client, from the first try to the first piece of text and to the end. `undisturbed` has the
questions that no restart made ask again. Clients and server share this machine: its cores are the measure, not the
server, and `alone_per_second` is what `rag.query` does on one of them, one question after another, without any server.
The model is a random Llama that ends no answer by itself. The exit status tells only whether the measurement ran.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from lsr_step import encoder, rows, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from fedrag import CausalLM, DenseRetriever, MemoryStore, RAGSystem, SentenceEncoder

PATIENCE = 120.0  # seconds for anything that is waited for


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=32, help="that ask at once (default: 32)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of asking (default: 60)")
    parser.add_argument("--restarts", type=int, default=2, help="of the server on the way (default: 2)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (default: 64)")
    parser.add_argument("--slots", type=int, default=2, help="answers that the server writes at once (default: 2)")
    parser.add_argument("--width", type=int, default=64, help="of the model (default: 64)")
    parser.add_argument("--layers", type=int, default=2, help="of the model (default: 2)")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends too
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        expected, alone = prepare(Path(folder) / "system", args)
        result = asyncio.run(measure(Path(folder), expected, args))
        print(json.dumps({**result, "alone_per_second": round(alone, 2)}, indent=2))


def prepare(path: Path, args: argparse.Namespace) -> tuple[dict[str, str], float]:
    """Save a system; return its answers to the questions that will be asked, and how many it gave a second."""
    examples, documents = rows(32, 4, 30)
    torch.manual_seed(1)
    size = {"hidden_size": args.width, "intermediate_size": 2 * args.width, "num_hidden_layers": args.layers}
    config = LlamaConfig(
        **size, vocab_size=len(tokenizer()), num_attention_heads=4, eos_token_id=2, initializer_range=0.2
    )
    llama = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        llama.lm_head.weight[2] = 0  # never the likeliest
    rag = RAGSystem(
        retriever=DenseRetriever(SentenceEncoder(encoder(2, 64)), MemoryStore()),
        generator=CausalLM(llama, tokenizer(), max_new_tokens=args.tokens),
        top_k=4,
    )
    rag.add([document for row in documents for document in row], progress=False)
    rag.save(path)
    began = time.monotonic()
    answers = {example.question: rag.query(example.question).text for example in examples}
    return answers, len(examples) / (time.monotonic() - began)


@dataclass
class Seen:
    """What the clients saw, a row for each question: tries, seconds to the first piece and to the end."""

    rows: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])
    refused: Counter[str] = field(default_factory=Counter[str])
    asked: int = 0
    broken: int = 0
    wrong: int = 0


class Server:
    """`fedrag serve` as a process, always on the same port."""

    def __init__(self, folder: Path, slots: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-c", "from fedrag.cli import main; main()", "serve", str(folder / "system")]
        self.command = [*command, "--port", str(self.port), "--mcp", "off", "--slots", str(slots), "--name", "system"]
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, client: httpx.AsyncClient) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/health", timeout=5)).status_code == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server is not up:\n{self.log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.05)

    async def stop(self) -> int:
        """End it as an operator does; return its exit code."""
        assert self.process
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, PATIENCE)


async def measure(folder: Path, expected: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    server, seen = Server(folder, args.slots), Seen()
    limits = httpx.Limits(max_connections=args.clients + 1)
    address = f"http://127.0.0.1:{server.port}"
    try:
        async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:
            await server.start(client)
            client.headers["authorization"] = f"Bearer {(folder / 'system.token').read_text().strip()}"
            began = time.monotonic()
            end = began + args.seconds
            asking = [asyncio.create_task(ask(client, n, end, expected, seen)) for n in range(args.clients)]
            restarts: list[dict[str, Any]] = []
            for n in range(args.restarts):
                await asyncio.sleep(max(0.0, began + args.seconds * (n + 1) / (args.restarts + 1) - time.monotonic()))
                told = time.monotonic()
                code = await server.stop()
                ended = time.monotonic()
                await server.start(client)
                up = time.monotonic()
                restarts.append({"exit_code": code, "ending": round(ended - told, 2), "starting": round(up - ended, 2)})
            _, hanging = await asyncio.wait(asking, timeout=PATIENCE)
            wall = time.monotonic() - began
            for task in hanging:
                task.cancel()
            failed = [repr(task.exception()) for task in set(asking) - hanging if task.exception()]
            code = await server.stop()
    finally:
        if server.process:
            server.process.kill()
    return {
        "claim": "lost, wrong, broken_streams = 0; exit codes 0",
        "clients": args.clients,
        "slots": args.slots,
        "tokens_of_an_answer": args.tokens,
        "cores": os.cpu_count(),
        "seconds": round(wall, 1),
        "questions": len(seen.rows),
        "lost": seen.asked - len(seen.rows),
        "failures": failed,
        "wrong": seen.wrong,
        "broken_streams": seen.broken,
        "refused_and_asked_again": dict(seen.refused),
        "restarts": restarts,
        "last_exit_code": code,
        "requests_per_second": round(len(seen.rows) / wall, 2),
        "all": latency(seen.rows),
        "undisturbed": latency([row for row in seen.rows if row[0] == 1]),
    }


async def ask(client: httpx.AsyncClient, start: int, end: float, expected: dict[str, str], seen: Seen) -> None:
    """Ask one question after another; none is given up."""
    questions = list(expected)
    place = start
    while time.monotonic() < end:
        question = questions[place % len(questions)]
        place += 1
        began, tries = time.monotonic(), 0
        seen.asked += 1
        while True:
            tries += 1
            text, first, why = await stream(client, question)
            if not why:
                break
            if text:
                seen.broken += 1
            else:
                seen.refused[why] += 1
            await asyncio.sleep(min(0.1 * 2**tries, 1.0))
        seen.wrong += text != expected[question]
        seen.rows.append((tries, first - began, time.monotonic() - began))


async def stream(client: httpx.AsyncClient, question: str) -> tuple[str, float, str]:
    """The text that came, when its first piece did, and what went wrong before its end, if anything."""
    text, first, whole = "", 0.0, False
    body = {"model": "system", "messages": [{"role": "user", "content": question}], "stream": True}
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                if response.status_code != 503:
                    raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
                return text, first, "503"
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    whole = True
                elif line.startswith("data: {"):
                    piece = json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
                    first = first or (time.monotonic() if piece else 0.0)
                    text += piece
    except httpx.TransportError as error:
        return text, first, type(error).__name__
    return text, first, "" if whole else "ended early"


def latency(rows: list[tuple[int, float, float]]) -> dict[str, Any]:
    """Percentiles in seconds."""
    if not rows:
        return {"questions": 0}
    named = {"first_token": [row[1] for row in rows], "end": [row[2] for row in rows]}
    return {
        "questions": len(rows),
        **{
            name: {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 95)}
            for name, values in named.items()
        },
    }


if __name__ == "__main__":
    main()
