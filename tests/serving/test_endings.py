"""How answers end: by themselves, cut off, since the client has left or the server stops, or since they broke off."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import httpx
import pytest
import torch

from fedrag import RAGSystem
from fedrag.errors import InputError
from fedrag.integrations.openai import RemoteLM
from fedrag.serving.served import Busy, Served
from serving.serving import QUESTION, TOKEN, Running, chatty_system, running

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
LONG = 1000


class Scripted(torch.nn.Module):
    """The head of a model that says these tokens, over and over."""

    def __init__(self, inner: Any, tokens: Sequence[int], pause: float = 0.0) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight
        self.tokens, self.pause, self.passes = tokens, pause, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.full_like(self.inner(hidden), -1e4)
        logits[..., self.tokens[self.passes % len(self.tokens)]] = 1
        self.passes += 1
        time.sleep(self.pause)
        return logits


def saying(words: str, *, end: bool = False, pause: float = 0.0) -> tuple[RAGSystem, Scripted]:
    """A system whose model says these words, and the head that makes it do so."""
    rag = chatty_system(max_new_tokens=64)
    tokenizer = rag.generator.tokenizer
    ids = tokenizer.encode(words, add_special_tokens=False)
    head = Scripted(rag.generator.model.lm_head, [*ids, *([tokenizer.eos_token_id] if end else [])], pause)
    rag.generator.model.lm_head = head
    return rag, head


def in_front_of(server: Running, **settings: Any) -> RAGSystem:
    """A system whose model is another system that is served."""
    generator = RemoteLM("tiny", base_url=f"{server.address}/v1", api_key=TOKEN, retries=0, **settings)
    return RAGSystem(retriever=chatty_system().retriever, generator=generator)


def client_of(server: Running, timeout: float = 30) -> httpx.Client:
    return httpx.Client(base_url=server.address, headers=HEADERS, timeout=timeout)


def wait(done: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# -- who leaves


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_ends_what_writes_nothing_visible(streams: bool) -> None:
    rag, head = saying("\n", pause=0.005)
    with running(rag, slots=1) as server:
        with client_of(server, 0.5) as client:
            body = {**ASK, "stream": streams, "max_tokens": LONG}
            with pytest.raises(httpx.ReadTimeout), client.stream("POST", CHAT, json=body) as events:
                list(events.iter_lines())
        wait(lambda: server.served.inside == 0)
        assert 0 < head.passes < LONG


def test_the_grace_is_the_end_of_what_writes_nothing_visible() -> None:
    rag, head = saying("\n", pause=0.01)
    with running(rag, grace=1) as server:

        def ask() -> None:
            with client_of(server) as client, suppress(httpx.TransportError):
                assert client.post(CHAT, json={**ASK, "max_tokens": LONG}).status_code == 500

        asking = threading.Thread(target=ask)
        asking.start()
        wait(lambda: head.passes > 0)
    wait(lambda: server.served.inside == 0, 1)
    assert 0 < head.passes < LONG
    asking.join(10)
    assert not asking.is_alive()


def test_a_client_that_leaves_is_left_by_the_model_behind_an_address_too() -> None:
    rag, head = saying("Paris", pause=0.005)
    with running(rag, slots=1) as behind, running(in_front_of(behind), slots=1) as server:
        body = {**ASK, "stream": True, "max_tokens": LONG}
        with client_of(server) as client, client.stream("POST", CHAT, json=body) as events:
            assert any('"content":"P' in line.replace(" ", "") for line in events.iter_lines())
        wait(lambda: server.served.inside == behind.served.inside == 0)
        assert 0 < head.passes < LONG


# -- why an answer ends


@pytest.mark.parametrize("remote", [False, True])
def test_an_answer_says_why_it_ends(remote: bool) -> None:
    rag, head = saying("Paris Rome", end=True)
    words = len(head.tokens) - 1

    def reason(server: Running, **more: Any) -> str:
        head.passes = 0
        with client_of(server) as client:
            whole = client.post(CHAT, json={**ASK, **more}).json()["choices"][0]["finish_reason"]
            head.passes = 0
            events = client.post(CHAT, json={**ASK, **more, "stream": True}).text.split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == whole
        return whole

    with running(rag) as there, running(in_front_of(there)) as front:
        server = front if remote else there
        assert reason(server) == "stop"
        assert reason(server, max_tokens=words + 1) == "stop"  # its end is the last token that it may have
        assert reason(server, max_tokens=words) == "length"
        assert reason(server, max_tokens=words, stop="Rome") == "stop"


# -- generators of others


class Slow:
    """A generator that only writes whole answers, when it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[str]:
        assert self.let.wait(30)
        return ["done"] * len(prompts)


def test_a_generator_that_cannot_stream_holds_up_no_search() -> None:
    generator = Slow()
    rag = RAGSystem(retriever=chatty_system().retriever, generator=generator)
    with running(rag, slots=1) as server, client_of(server) as client:
        got: list[str] = []

        def ask() -> None:
            got.append(client.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"])

        asking = threading.Thread(target=ask)
        asking.start()
        wait(lambda: server.served.inside == 1)
        try:
            assert client.post(EMBED, json={"model": "tiny", "input": "x"}, timeout=5).status_code == 200
        finally:
            generator.let.set()
            asking.join(10)
        assert got == ["done"]


class Refusing:
    """A generator that finds fault with what it was given, when it has begun."""

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[str]:
        return ["".join(self.stream(prompt)) for prompt in prompts]

    def stream(self, prompt: str, **settings: Any) -> Iterator[str]:
        yield "The key"
        raise InputError(f"cannot write after {prompt}")


def test_what_goes_wrong_while_writing_is_not_the_clients_fault_and_not_logged_in_words() -> None:
    log = io.StringIO()
    handler = logging.StreamHandler(log)  # as a program that runs the server itself has it
    logging.getLogger("uvicorn.error").addHandler(handler)
    rag = RAGSystem(retriever=chatty_system().retriever, generator=Refusing())
    try:
        with running(rag) as server, client_of(server) as client:
            got = client.post(CHAT, json=ASK)
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
    assert got.status_code == 500
    assert "clerk" not in got.text + log.getvalue()
    assert "InputError" in log.getvalue()


def test_a_model_behind_an_address_that_fails_is_a_bad_gateway() -> None:
    with running(chatty_system()) as there:
        rag = in_front_of(there)
    with running(rag) as server, client_of(server) as client:
        error = client.post(CHAT, json=ASK)
        assert error.status_code == 502
        assert f"127.0.0.1:{there.port} cannot be reached" in error.json()["error"]["message"]
        lines: list[str] = []
        body = {**ASK, "stream": True}
        with client.stream("POST", CHAT, json=body) as events, pytest.raises(httpx.RemoteProtocolError):
            lines.extend(events.iter_lines())
        assert "cannot be reached" in lines[lines.index("event: error") + 1]


# -- the end of a system that is served


@pytest.mark.parametrize("what", ["retrieve", "embed", "answer", "answer that is found for"])
def test_who_waits_when_it_closes_is_told_so(what: str) -> None:
    rag = chatty_system()
    begun, let = threading.Event(), threading.Event()

    def held(*args: Any, **settings: Any) -> Any:
        begun.set()
        assert let.wait(10)
        return retrieve(*args, **settings)

    retrieve = rag.retrieve
    rag.retrieve = held

    async def ask(served: Served) -> None:
        if what == "retrieve":
            await served.retrieve(QUESTION)
        elif what == "embed":
            await served.embed([QUESTION], "query")
        else:
            await served.answer([{"role": "user", "content": QUESTION}])

    async def main() -> None:
        served = Served(rag, name="tiny")
        waits = what != "answer that is found for"
        first = asyncio.create_task(served.retrieve(QUESTION) if waits else ask(served))
        assert await asyncio.to_thread(begun.wait, 10)
        asking = asyncio.create_task(ask(served)) if waits else first
        await asyncio.sleep(0.05)
        served.close()
        let.set()
        with pytest.raises(Busy, match="is stopping"):
            await asking
        if waits:
            assert await first  # it was being found
        with pytest.raises(Busy, match="is stopping"):
            await ask(served)
        assert served.inside == 0

    asyncio.run(main())


# -- bodies that are refused


@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_much_that_is_refused_reads_why(chunked: bool) -> None:
    big = b"x" * 8 * 2**20
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(big)}"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(big), big) if chunked else big
    host, token, kind = "Host: localhost", f"Authorization: Bearer {TOKEN}", "Content-Type: application/json"
    with running(chatty_system()) as server:
        for status, *lines in (
            (413, host, token, kind),
            (401, host, kind),
            (415, host, token),
            (421, "Host: evil", kind),
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
                client.sendall("\r\n".join([f"POST {CHAT} HTTP/1.1", *lines, length, "\r\n"]).encode() + body)
                got = int(client.recv(100).split()[1])
                assert got == status or (got == 413 and not chunked and token in lines)  # its length tells first


def test_who_expects_a_word_before_sending_is_told_at_once() -> None:
    with running(chatty_system()) as server, socket.create_connection(("127.0.0.1", server.port), timeout=3) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
        client.sendall(head.encode())  # nothing more is sent, and less time given than a body has
        assert client.recv(100).startswith(b"HTTP/1.1 401")


def test_wrong_dimensions_are_refused_before_the_texts_are_read() -> None:
    rag = chatty_system()
    with running(rag) as server, client_of(server) as client:
        batches: list[int] = []
        encode = rag.dense.encoder.encode_documents
        rag.dense.encoder.encode_documents = lambda texts: batches.append(len(texts)) or encode(texts)
        body = {"model": "tiny", "input": [QUESTION] * 500}
        got = client.post(EMBED, json={**body, "dimensions": 3})
        assert got.status_code == 400
        assert got.json()["error"]["param"] == "dimensions"
        assert batches == [1]
        width = encode([QUESTION]).shape[1]
        assert len(client.post(EMBED, json={**body, "dimensions": width}).json()["data"]) == 500
