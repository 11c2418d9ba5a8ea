"""A generator behind an address, against a real server on this machine, which also fails in every way that it may."""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import logging
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from haystack.dataclasses import ChatMessage
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from llama_index.core.base.llms.types import ChatMessage as LlamaMessage

import fedrag.integrations.openai as module
from fedrag import LSR, RALT, Contrastive, LexicalRetriever, RAGSystem, RAGTrainer, evaluate
from fedrag.errors import ConfigError, FedRAGError, InputError, MissingExtraError
from fedrag.integrations.answering import chats
from fedrag.integrations.langchain_model import ChatFedRAG
from fedrag.integrations.llamaindex_model import LanguageModel
from fedrag.integrations.openai import RemoteError, RemoteLM
from fedrag.types import Generator, Streamer
from haystack_integrations.components.generators.fedrag import FedRAGChatGenerator
from serving.serving import TOKEN, chatty_system, running
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system

KEY, HEADER, SECRET = "sk-canary-key", "canary-header", "canary prompt"
QUESTION = "Which key has clerk 3 ?"

Fault = Callable[["Handler", dict[str, Any]], None]


class Server(ThreadingHTTPServer):
    """Answers with the words of the prompt, last first; the first of `faults` says it otherwise, once each."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.lock = threading.Lock()
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, dict[str, str], dict[str, Any], float]] = []
        self.now = self.most = 0
        self.delay: Callable[[str], float] = lambda prompt: 0.0
        self.gone = threading.Event()  # a client went away in the middle of a stream

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body, _ in self.seen]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no defect."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.seen.append((self.path, headers, body, time.monotonic()))
            fault = self.server.faults.pop(0) if self.server.faults else None
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            time.sleep(self.server.delay(asked(body)))
            (fault or Handler.answer)(self, body)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def answer(self, body: dict[str, Any]) -> None:
        text = said(asked(body), **{name: body[name] for name in ("max_tokens", "stop") if name in body})
        if not body["stream"]:
            return self.reply(200, completion(body, text, "stop"))
        words = [" ", *(f"{word} " for word in text.split())]  # with outer white space, as models write it
        self.events([completion(body, word, None) for word in words] + [completion(body, None, "stop")])

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def events(self, events: list[Any], *, done: bool = True, whole: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in [*events, *(["[DONE]"] if done else [])]:
            line = event if isinstance(event, str) else json.dumps(event)
            data = f"data: {line}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True


def asked(body: dict[str, Any]) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def said(prompt: str, max_tokens: int = 10**6, stop: tuple[str, ...] = ()) -> str:
    text = " ".join(prompt.split()[::-1][:max_tokens])
    for end in stop:
        text = text.split(end)[0]
    return text.strip()


def completion(body: dict[str, Any], text: str | None, reason: str | None) -> dict[str, Any]:
    if "prompt" in body:
        choice: dict[str, Any] = {"text": text or ""}
    else:
        choice = {"delta" if body["stream"] else "message": {"role": "assistant", "content": text}}
    return {
        "id": "1",
        "object": "x",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": reason} | choice],
    }


def status(number: int, headers: dict[str, str] | None = None, **error: Any) -> Fault:
    """An error, whose body holds the request, as servers send it back."""
    told = {"Retry-After": "0.01", **(headers or {})}
    return lambda handler, body: handler.reply(
        number, {"error": {"message": f"{body} {dict(handler.headers)}", **error}}, told
    )


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server: Server, **settings: Any) -> RemoteLM:
    return RemoteLM("m", base_url=server.url, **{"timeout": 10, **settings})


def system(generator: Any) -> RAGSystem:
    return RAGSystem(retriever=tiny_system().retriever, generator=generator, top_k=2)


@contextmanager
def refused(match: str) -> Iterator[None]:
    """A `RemoteError` that says this, and nothing that is secret, and drags nothing along."""
    with pytest.raises(RemoteError, match=match) as caught:
        yield
    error = caught.value
    assert isinstance(error, FedRAGError)
    assert error.__cause__ is None
    assert error.__context__ is None
    told = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    # of the source, which a traceback quotes, there is a question and no prompt
    assert not [secret for secret in (KEY, HEADER, SECRET) if secret in told]


# -- answers


@pytest.mark.capability("OpenAI", "batch")
def test_answers_are_those_of_the_server_in_order(server: Server) -> None:
    model = remote(server, concurrency=4)
    assert isinstance(model, Generator)
    assert isinstance(model, Streamer)
    prompts = [f"{n} clerks and {n * 3} keys" for n in range(24)]
    server.delay = lambda prompt: int(prompt.split()[0]) * 7 % 5 * 0.01
    assert model.generate(prompts) == [said(prompt) for prompt in prompts]
    assert model.generate([]) == []
    assert 1 < server.most <= 4


def test_the_bound_on_requests_is_one_for_all_threads(server: Server) -> None:
    model = remote(server, concurrency=3)
    server.delay = lambda prompt: 0.02
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda n: model.generate([f"a {n}", f"b {n}"]), range(6)))
    assert found == [[f"{n} a", f"{n} b"] for n in range(6)]
    assert server.most == 3


@pytest.mark.capability("OpenAI", "stream")
@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_is_what_generate_returns(server: Server, chat: bool) -> None:
    model = remote(server, chat=chat)
    prompt = "Wo wohnt Käthe ? \N{SNOWMAN} Äpfel"
    pieces = list(model.stream(prompt))
    assert len(pieces) == 6
    assert "".join(pieces) == model.generate([prompt])[0] == said(prompt)
    assert list(model.stream("")) == []
    assert model.generate([""]) == [""]
    assert {path for path, *_ in server.seen} == {"/v1/chat/completions" if chat else "/v1/completions"}


def test_the_settings_of_a_call_reach_the_server(server: Server) -> None:
    model = remote(server, max_new_tokens=5)
    prompt = "six words are in this prompt"
    assert model.generate([prompt]) == ["prompt this in are words"]
    assert model.generate([prompt], max_new_tokens=2) == ["prompt this"]
    assert model.generate([prompt], stop=["in", "x"]) == ["prompt this"]
    assert "".join(model.stream(prompt, max_new_tokens=3, stop=["in"])) == "prompt this"
    first, _, third, _ = server.bodies
    message = {"role": "user", "content": prompt}
    assert first == {"model": "m", "messages": [message], "max_tokens": 5, "temperature": 0, "stream": False}
    assert third["stop"] == ["in", "x"]
    with pytest.raises(InputError, match="max_new_tokens=0"):
        model.generate([prompt], max_new_tokens=0)
    with pytest.raises(InputError, match="wrap it in a list"):
        model.generate(prompt)


def test_fields_of_a_request_are_added_replaced_and_left_out(server: Server) -> None:
    extra = {"seed": 7, "temperature": 0.5, "max_tokens": None, "max_completion_tokens": 9}
    remote(server, extra_body=extra, headers={"X-Tenant": "a b"}).generate(["x"])
    body = server.bodies[0]
    assert {name: body.get(name, "absent") for name in extra} == {**extra, "max_tokens": "absent"}
    assert server.seen[0][1]["x-tenant"] == "a b"


def test_conversations_go_as_they_are_after_the_system_message(server: Server) -> None:
    model = remote(server, system="Be brief .")
    talk = [{"role": role, "content": f"{role} <|im_end|> {n}"} for n, role in enumerate(["user", "assistant", "user"])]
    assert "".join(model.chat(talk)) == "2 <|im_end|> user"
    own = [{"role": "system", "content": "Be long ."}, *talk]
    assert list(model.chat(own, max_new_tokens=1)) == ["2"]
    model.generate(["x"])
    brief = {"role": "system", "content": "Be brief ."}
    assert [body["messages"] for body in server.bodies] == [
        [brief, *talk],
        own,
        [brief, {"role": "user", "content": "x"}],
    ]
    with pytest.raises(ConfigError, match="chat=False"):
        remote(server, chat=False).chat(talk)


# -- in a system


@pytest.mark.capability("OpenAI", "sync", "async")
def test_it_is_the_generator_of_a_system(server: Server) -> None:
    rag = system(remote(server))
    answer = rag.query(QUESTION)
    hits = rag.retrieve(QUESTION)
    assert answer.text == said(rag.prompt_for(QUESTION, [hit.document for hit in hits]), 64)
    assert all(hit.document.text in asked(server.bodies[0]) for hit in hits)
    assert [hit.document for hit in answer.hits] == [hit.document for hit in hits]
    assert asyncio.run(rag.aquery(QUESTION)) == answer
    assert "".join(stream := rag.stream(QUESTION)) == answer.text
    assert stream.hits == answer.hits
    assert rag.query_batch([e.question for e in EXAMPLES[:5]]) == [rag.query(e.question) for e in EXAMPLES[:5]]
    report = evaluate(rag, EXAMPLES[:8], progress=False)
    assert report.metrics["f1"].n == 8
    assert report.metrics["contains"].mean > 0  # what it says holds the documents


@pytest.mark.parametrize(
    ("objective", "told"),
    [(LSR, "LSR needs a CausalLM, .* is a RemoteLM"), (RALT, "RALT needs a CausalLM, .* is a RemoteLM")],
)
def test_objectives_that_need_its_insides_say_so(server: Server, objective: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        objective(system(remote(server)))
    with pytest.raises(ConfigError, match="got a RemoteLM: use reader='stuff'"):
        RAGSystem(retriever=tiny_system().retriever, generator=remote(server), reader="ensemble")


@pytest.mark.capability("OpenAI", "take, tune", "save and load")
def test_the_retriever_before_it_is_tuned_and_saved(server: Server, tmp_path: Path) -> None:
    rag = system(remote(server, api_key=KEY, headers={"X-Key": HEADER}))
    before = rag.retriever.retrieve([QUESTION], 1)[0][0].score
    RAGTrainer(Contrastive(rag), train_dataset=EXAMPLES, args=arguments(tmp_path / "run")).train()
    answer = rag.query(QUESTION)
    assert answer.hits[0].score != before
    rag.save(tmp_path / "rag")
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [secret for secret in (KEY, HEADER) for content in files if secret.encode() in content]
    with pytest.raises(InputError, match="RemoteLM"):
        RAGSystem.load(tmp_path / "rag")
    assert RAGSystem.load(tmp_path / "rag", generator=remote(server)).query(QUESTION).text == answer.text


def test_other_libraries_hold_conversations_with_it(server: Server) -> None:
    rag = system(remote(server))
    assert chats(rag.generator)
    assert not chats(remote(server, chat=False))
    talk = [SystemMessage("Be brief ."), HumanMessage("Who ?"), AIMessage("Ada ."), HumanMessage("Where is it ?")]
    assert ChatFedRAG(rag=rag).invoke(talk).content == "? it is Where"
    turns = [ChatMessage.from_system("Be brief ."), ChatMessage.from_user("Where is it ?")]
    assert FedRAGChatGenerator(rag).run(turns)["replies"][0].text == "? it is Where"
    asked = [LlamaMessage(content="Be brief .", role="system"), LlamaMessage("Where is it ?")]
    assert LanguageModel(rag.generator).chat(asked).message.content == "? it is Where"
    assert [[m["role"] for m in body["messages"]] for body in server.bodies] == [
        ["system", "user", "assistant", "user"],
        ["system", "user"],
        ["system", "user"],
    ]


def test_it_asks_a_system_that_is_served_here() -> None:
    rag = chatty_system()
    talk = [{"role": "system", "content": "Be brief ."}, {"role": "user", "content": QUESTION}]
    wanted = [answer.text for answer in rag.query_batch([example.question for example in EXAMPLES[:6]])]
    with running(rag) as there:
        model = RemoteLM("tiny", base_url=f"{there.address}/v1", api_key=TOKEN, max_new_tokens=12)
        assert model.generate([example.question for example in EXAMPLES[:6]]) == wanted
        assert wanted[0] == "".join(model.stream(EXAMPLES[0].question))
        assert "".join(model.chat(talk))
        front = RAGSystem(
            retriever=LexicalRetriever(DOCUMENTS), generator=model, top_k=1
        )  # one system answers for another
        with running(front) as before:
            asking = RemoteLM("tiny", base_url=f"{before.address}/v1", api_key=TOKEN, max_new_tokens=12)
            assert asking.generate([QUESTION]) == [front.query(QUESTION).text]
            assert "".join(asking.stream(QUESTION)) == front.query(QUESTION).text
        with refused(r"answered 401 \(invalid_api_key\)"):
            RemoteLM("tiny", base_url=f"{there.address}/v1", api_key=KEY).generate([SECRET])
        with refused(r"answered 404 \(model_not_found\)"):
            RemoteLM("large", base_url=f"{there.address}/v1", api_key=TOKEN).generate([SECRET])


# -- a server that fails


def test_a_server_that_is_busy_is_asked_again_when_it_says(server: Server) -> None:
    server.faults = [status(429, {"Retry-After": "0.9"})]
    assert remote(server).generate(["a b"]) == ["b a"]
    (*_, first), (*_, second) = server.seen
    assert second - first >= 0.9  # unasked it waits for half a second at most
    server.faults = [status(500), status(503)]
    assert "".join(remote(server).stream("a b")) == "b a"
    server.faults = [status(500)] * 3
    with refused(r"^'m' at 127.0.0.1:\d+ answered 500: see its log, or raise retries$"):
        remote(server, api_key=KEY, headers={"X-Key": HEADER}).generate([SECRET])
    assert len(server.seen) == 2 + 3 + 3


def test_a_server_that_says_nothing_is_given_up(server: Server) -> None:
    server.delay = lambda prompt: 8.0
    started = time.monotonic()
    with refused(r"said nothing for 0.2 s: raise timeout"):
        remote(server, timeout=0.2, retries=0, api_key=KEY).generate([SECRET])
    with refused("said nothing"):
        next(remote(server, timeout=0.2, retries=0, api_key=KEY).stream(SECRET))
    assert time.monotonic() - started < 6


def test_a_connection_that_breaks_is_made_again(server: Server) -> None:
    def broken(handler: Handler, body: dict[str, Any]) -> None:
        handler.reply(200, b'{"choi', {"Content-Length": "500"})
        handler.close_connection = True

    server.faults = [broken]
    assert remote(server).generate(["a b"]) == ["b a"]
    assert len(server.seen) == 2
    server.server_close()
    with refused("cannot be reached"):
        RemoteLM("m", base_url="http://127.0.0.1:9/v1", retries=0, api_key=KEY).generate([SECRET])


@pytest.mark.parametrize(
    ("last", "how", "told"),
    [
        (None, {"whole": False}, "cannot be reached, or broke off its answer"),
        (None, {"whole": True}, "broke off in the middle of its answer: ask again"),
        ({"error": {"message": SECRET, "code": "sk-canary-key"}}, {"whole": True}, "ended its answer with an error"),
        ("{not json", {"whole": True}, "answered with what is no JSON"),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}, {}, "withheld its answer"),
    ],
)
def test_a_stream_that_breaks_off_is_no_answer(server: Server, last: Any, how: dict[str, bool], told: str) -> None:
    def fault(handler: Handler, body: dict[str, Any]) -> None:
        started = [completion(body, word, None) for word in ("one ", "two ", "three")]
        handler.events([*started, *([last] if last else [])], done=False, **how)

    server.faults = [fault]
    pieces: list[str] = []
    with refused(told):
        for piece in remote(server, api_key=KEY).stream(SECRET):
            pieces.append(piece)
    assert "".join(pieces) == "one two three"
    assert len(server.seen) == 1  # what was begun is not asked for again


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"choices": [{', "no JSON"),
        (b"<html>" + SECRET.encode(), "no JSON"),
        (b'"' + SECRET.encode() + b'"', "without a choice"),
        ({}, "without a choice"),
        ({"choices": []}, "without a choice"),
        ({"choices": [{"message": None}]}, "without a text"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "tool_calls"}]}, "without a text: see its log"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}, "a text: raise max_new_tokens"),
        ({"choices": [{"message": {"content": "he"}, "finish_reason": "content_filter"}]}, "withheld its answer"),
    ],
)
def test_an_answer_that_is_none_is_not_passed_on(server: Server, content: Any, told: str) -> None:
    server.faults = [lambda handler, body: handler.reply(200, content)]
    with refused(rf"'m' at 127.0.0.1:\d+ .*{told}"):
        remote(server, api_key=KEY).generate([SECRET])


def test_the_first_failure_ends_a_batch(server: Server) -> None:
    server.faults = [status(400)] * 2
    with refused("answered 400"):
        remote(server, concurrency=2).generate([SECRET] * 200)
    assert len(server.seen) < 150


# -- secrets


@pytest.mark.parametrize(
    ("number", "error", "step"),
    [
        (400, {"code": "context_length_exceeded"}, r"400 \(context_length_exceeded\): use fewer or shorter documents"),
        (401, {"code": "invalid_api_key"}, r"401 \(invalid_api_key\): check api_key"),
        (401, {"code": KEY, "type": SECRET, "param": HEADER}, "401: check api_key"),
        (404, {}, "404: check the model's name"),
        (422, {"code": ["list"]}, "422: use fewer"),
        (307, {}, "307: give the address that it redirects to"),
    ],
)
def test_secrets_are_in_no_error_and_no_log(
    server: Server, caplog: pytest.LogCaptureFixture, number: int, error: dict[str, Any], step: str
) -> None:
    caplog.set_level(logging.DEBUG)
    model = remote(server, api_key=KEY, headers={"X-Key": HEADER})
    other = Server()  # where a redirect would lead
    server.faults = [status(number, {"Location": other.url}, **error)] * 2
    with refused(f"answered {step}"):
        model.generate([SECRET])
    with refused(f"answered {step}"):
        next(model.stream(SECRET))
    assert server.seen[0][1]["authorization"] == f"Bearer {KEY}"
    assert server.seen[0][1]["x-key"] == HEADER
    assert asked(server.bodies[0]) == SECRET
    logged = caplog.text + repr(model) + repr(vars(model))
    assert not [secret for secret in (KEY, SECRET) if secret in logged]
    other.server_close()


def test_a_key_is_in_no_copy(server: Server) -> None:
    model = remote(server, api_key=KEY)
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InputError, match="neither pickled nor copied"):
            way(model)


def test_a_key_may_change_from_request_to_request(server: Server) -> None:
    keys = iter(["first", "second"])
    model = remote(server, api_key=lambda: next(keys), concurrency=1)
    model.generate(["a", "b"])
    assert [headers["authorization"] for _, headers, *_ in server.seen] == ["Bearer first", "Bearer second"]
    with pytest.raises(ConfigError, match="api_key must be a text, got a NoneType"):
        remote(server, api_key=lambda: None).generate(["a"])


@pytest.mark.parametrize("name", ["Authorization", "AUTHORIZATION"])
def test_an_authorization_of_ones_own_is_sent(server: Server, name: str) -> None:
    for key in (None, KEY):
        remote(server, api_key=key, headers={name: "Basic own"}).generate(["a"])
    assert [headers["authorization"] for _, headers, *_ in server.seen] == ["Basic own"] * 2


def test_the_keys_of_the_environment_are_for_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}\nX-Tenant: {KEY}\n x-MINE : {KEY}\nno")
    remote(server).generate(["a"])
    list(remote(server).stream("a"))
    assert len(server.seen) == 2
    assert not [headers for _, headers, *_ in server.seen if KEY in str(headers)]
    remote(server, api_key="own").generate(["a"])
    assert server.seen[-1][1]["authorization"] == "Bearer own"
    remote(server, headers={"X-Mine": "own"}).generate(["a"])
    assert server.seen[-1][1]["x-mine"] == "own"


def test_a_stream_that_is_closed_closes_the_connection(server: Server) -> None:
    def endless(handler: Handler, body: dict[str, Any]) -> None:
        try:
            while True:
                handler.events([completion(body, "on and ", None)] * 50, done=False, whole=False)
        except OSError:
            server.gone.set()

    server.faults = [endless]
    model = remote(server)  # kept, for what goes away closes its connections anyway
    stream = model.stream("a")
    assert next(stream) == "on and"
    assert not server.gone.is_set()
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert server.gone.wait(5)
    assert model.generate(["a b"]) == ["b a"]


# -- settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"base_url": "127.0.0.1:8000"}, "must begin with http"),
        ({"base_url": "http://"}, "must begin with http"),
        ({"base_url": f"http://user:{KEY}@host/v1"}, r"\(of host\) holds a user"),
        ({"base_url": f"http://host/v1?key={KEY}"}, r"\(of host\) holds a user, a query"),
        ({"api_key": f"{KEY}\n"}, "api_key is empty, or holds line breaks"),
        ({"api_key": ""}, "api_key is empty"),
        ({"headers": {"X-Key": f"{HEADER}\N{SNOWMAN}"}}, "the header X-Key"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: it must be at least 1"),
        ({"concurrency": 0}, "concurrency=0: it must be at least 1"),
        ({"retries": -1}, "retries=-1: it must be at least 0"),
        ({"timeout": 0}, "timeout=0: it must be more than 0"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"chat": False, "system": "Be brief ."}, "got chat=False too"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        RemoteLM("m", **{"base_url": "http://127.0.0.1:9/v1", **settings})
    assert not [secret for secret in (KEY, HEADER) if secret in str(caught.value)]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrag.optional.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"fedrag\[openai\]"):
        importlib.reload(module)
