"""A tiny system behind a real server: in a thread of this process, or in a process of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedrag import CausalLM, DenseRetriever, MemoryStore, RAGSystem, SentenceEncoder
from fedrag.serving.http import application, web_server
from fedrag.serving.served import Served
from systems import DOCUMENTS
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

TOKEN = "a-token-of-the-tests-only"
QUESTION = "Which key has clerk 3 ?"


def chatty_system(*, max_new_tokens: int = 12, positions: int = 2048, **settings: Any) -> RAGSystem:
    """A system over `DOCUMENTS` whose generator has a chat template, and ends no answer by itself."""
    tokenizer = tiny_tokenizer(chat=True)
    llama = tiny_llama(vocab=len(tokenizer), positions=positions)
    with torch.no_grad():  # the likeliest of some hundred tokens has a logit above 0
        llama.lm_head.weight[[2, tokenizer.eos_token_id]] = 0
    generator = CausalLM(llama, tokenizer, max_new_tokens=max_new_tokens)
    encoder = SentenceEncoder(tiny_sentence_transformer(kind="static"))
    encoder.model.prompts = {"query": "river ", "document": "Ada "}  # a text is another vector as a query
    retriever = DenseRetriever(encoder, MemoryStore())
    rag = RAGSystem(retriever=retriever, generator=generator, top_k=3, **settings)
    rag.add(DOCUMENTS, progress=False)
    return rag


@dataclass(frozen=True)
class Running:
    """A server: where it is, and what it serves."""

    address: str
    served: Served

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@contextmanager
def running(
    rag: RAGSystem, *, token: str | None = TOKEN, slots: int = 2, waiting: int = 64, mcp: bool = False, grace: float = 5
) -> Iterator[Running]:
    """Serve a system as "tiny" on a free port of 127.0.0.1."""
    served = Served(rag, name="tiny", slots=slots, waiting=waiting)
    app = application(served, token=token, hosts={"127.0.0.1", "localhost", "::1"}, mcp=mcp)
    server = web_server(app, grace=grace)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # a client that does not read is felt soon
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield Running(address, served)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def serving_process(*words: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`fedrag serve` with these words, as a process."""
    command = [sys.executable, "-c", "from fedrag.cli import main; main()", "serve", *words]
    settings = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=settings,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
