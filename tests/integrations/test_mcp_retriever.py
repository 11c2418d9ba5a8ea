"""MCP servers as a retriever: real servers in process, as processes and over HTTP; what they find, how they fail."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from mcp import StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.server import MCPServer
from mcp_types import (
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    Tool,
)

from fedrag import RALT, Document, Example, LexicalRetriever, RAGSystem, RAGTrainer, SentenceEncoder, evaluate
from fedrag.errors import ConfigError, InputError, MissingExtraError, StoreError
from fedrag.integrations import mcp_thread
from fedrag.integrations.mcp import MCPRetriever, MCPSource
from fedrag.integrations.mcp_connection import Closed, Connection
from fedrag.integrations.mcp_reading import MOST, documents, passages
from fedrag.integrations.mcp_source import search
from fedrag.integrations.mcp_thread import Loop
from mcp_servers import FOREIGN, counted, notes, over_http, telling
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system
from tiny import tiny_sentence_transformer

QUESTION = "Which key has clerk 3 ?"
STRING, NUMBER = {"type": "string"}, {"type": "integer"}
FOUND = {"id": "d1", "text": "The key turns .", "score": 0.5, "metadata": {"year": 2024}}


def texts(hits: list[Any]) -> list[str]:
    return [hit.document.text for hit in hits]


def tool(name: str = "search", required: tuple[str, ...] = (), **parameters: Any) -> Tool:
    return Tool(name=name, input_schema={"type": "object", "properties": parameters, "required": list(required)})


def clerks(name: str, found: list[Document]) -> MCPServer[Any]:
    """A server that searches by words."""
    server, bm25 = MCPServer(name, log_level="ERROR"), LexicalRetriever(found)

    @server.tool()
    def search(query: str, top_k: int = 3) -> list[dict[str, Any]]:
        hits = bm25.retrieve([query], top_k)[0]
        return [{"id": hit.document.id, "text": hit.document.text, "metadata": hit.document.metadata} for hit in hits]

    return server


# -- what a server says of itself


@pytest.mark.parametrize(
    ("offered", "wanted"),
    [
        (tool(required=("query",), query=STRING), {"query": "Q"}),
        (tool(q=STRING), {"q": "Q"}),
        (tool(required=("searchQuery",), searchQuery=STRING, lang=STRING), {"searchQuery": "Q"}),
        (tool(required=("wanted",), wanted=STRING, lang=STRING), {"wanted": "Q"}),
        (tool(required=("q",), q=STRING, text=STRING), {"q": "Q"}),
        (tool(query={"anyOf": [STRING, {"type": "null"}]}), {"query": "Q"}),
        (tool(query={"title": "Query"}), {"query": "Q"}),
        (tool(query=STRING, text={"type": "string", "enum": ["on", "off"]}), {"query": "Q"}),
        (tool(query=STRING, top_k=NUMBER), {"query": "Q", "top_k": 30}),
        (tool(query=STRING, maxResults={"type": "number"}), {"query": "Q", "maxResults": 30}),
        (tool(query=STRING, limit={**NUMBER, "maximum": 10}), {"query": "Q", "limit": 10}),
        (tool(query=STRING, k={"anyOf": [{**NUMBER, "maximum": 9}, {"type": "null"}]}), {"query": "Q", "k": 9}),
        (tool(query=STRING, limit=STRING), {"query": "Q"}),
    ],
)
def test_the_parameters_are_found_in_the_schema(offered: Tool, wanted: dict[str, Any]) -> None:
    assert search(MCPSource("s", telling("s")), [offered]).arguments("Q", 30) == wanted


def test_given_arguments_stay_as_they_are() -> None:
    source = MCPSource("s", telling("s"), arguments={"limit": 2, "text": "fixed"})
    offered = tool(required=("query", "text"), query=STRING, text=STRING, limit=NUMBER)
    assert search(source, [offered]).arguments("Q", 30) == {"query": "Q", "limit": 2, "text": "fixed"}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["anything"], "anything"),
        (["ask", "search"], "search"),
        (["read_file", "searchDocs", "list"], "searchDocs"),
        (["query_db", "retrieve_passages"], "retrieve_passages"),
        (["find-notes", "research"], "find-notes"),
    ],
)
def test_the_tool_that_searches_is_found(names: list[str], wanted: str) -> None:
    assert search(MCPSource("s", telling("s")), [tool(name, query=STRING) for name in names]).tool == wanted


@pytest.mark.parametrize(
    ("settings", "tools", "message"),
    [
        ({}, [tool("search_a"), tool("search_b")], r"it has 'search_a', 'search_b': pass tool="),
        ({}, [], r"it has none: pass tool="),
        ({"tool": "find"}, [tool("search")], r"cannot be 'find'; it has 'search': pass tool="),
        ({}, [tool(required=("q", "text"), q=STRING, text=STRING)], r"it has 'q', 'text': pass query="),
        ({}, [tool(required=("a", "b"), a=STRING, b=STRING)], r"is not plain; it has 'a', 'b': pass query="),
        ({}, [tool(a=STRING)], r"is not plain; it has 'a': pass query="),
        ({"query": "c"}, [tool(a=STRING)], r"cannot be 'c'; it has 'a': pass query="),
        ({}, [tool(required=("query", "index"), query=STRING, index=NUMBER)], r"needs 'index' too: pass arguments="),
    ],
)
def test_what_is_not_plain_is_asked_for(settings: Any, tools: list[Tool], message: str) -> None:
    with pytest.raises(ConfigError, match=f"MCP source 's'.*{message}"):
        search(MCPSource("s", telling("s"), **settings), tools)


def test_what_is_not_plain_is_an_error_of_the_first_question() -> None:
    server = MCPServer("s", log_level="ERROR")
    for name in ("search_notes", "search_mails"):
        server.add_tool(lambda query: [query], name=name)
    with (
        MCPRetriever(MCPSource("s", server), MCPSource("t", telling("t", "A ."))) as retriever,
        pytest.raises(ConfigError, match=r"'search_mails', 'search_notes': pass tool="),
    ):
        retriever.retrieve([QUESTION], k=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"timeout": 0}, r"timeout=0"),
        ({"target": "localhost:8000"}, "must be an http"),
        ({"target": "http://me:pass-4711@host/mcp"}, "without a user or password"),
        ({"token": "pass-4711"}, "need a URL"),
        ({"name": "s:t"}, "without a colon"),
    ],
)
def test_a_source_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        MCPSource(**{"name": "s", "target": telling("s"), **settings})
    assert "pass-4711" not in str(refused.value)


# -- what it answers


@pytest.mark.parametrize(
    "value",
    [
        FOUND,
        [FOUND],
        {"result": [FOUND]},
        {"total": 1, "results": [FOUND], "summary": "one found"},
        {"result": {"documents": [FOUND]}},
        {"whatever": [FOUND], "count": 1},
        [{"document": {"id": "d1", "text": "The key turns .", "metadata": {"year": 2024}}, "score": 0.5}],
        '{"result": [{"id": "d1", "text": "The key turns .", "score": 0.5, "metadata": {"year": 2024}}]}',
        {"chunk_id": "d1", "id": "page", "page_content": "The key turns .", "metadata": {"year": 2024}, "score": 0.5},
    ],
)
def test_every_shape_gives_the_same_document(value: Any) -> None:
    (found,) = passages(value, "s")
    assert (found.id, found.text) == ("s:d1", "The key turns .")
    assert {**found.metadata, "id": 0} == {"source": "s", "year": 2024, "score": 0.5, "id": 0}


def test_texts_without_an_id_are_known_by_their_hash() -> None:
    for value in (
        "The key turns .",
        {"result": "The key turns ."},
        [["The key turns ."]],
        {"snippet": "The key turns ."},
    ):
        (found,) = passages(value, "s")
        assert (found.id, found.text) == (Document("The key turns .").id, "The key turns .")


def test_an_id_of_two_texts_is_the_first_ones() -> None:
    ids = [document.id for document in passages([{"id": 1, "text": text} for text in ("one", "two", "one")], "s")]
    assert ids == ["s:1", Document("two").id, "s:1"]


@pytest.mark.parametrize("value", [None, 3, "", "  ", [], {}, {"results": []}, {"text": ""}, {"a": 1, "b": {"c": 2}}])
def test_what_holds_no_text_is_no_document(value: Any) -> None:
    assert passages(value, "s") == []


def test_a_server_cannot_pass_for_another() -> None:
    (found,) = passages({"text": "a", "source": "t", "metadata": {"page": 3}}, "s")
    assert found.metadata == {"source": "s", "origin": "t", "page": 3}


def test_a_server_cannot_say_that_others_found_it_too() -> None:
    for members in ({"text": "a", "also": ["t"]}, {"text": "a", "metadata": {"also": ["t"]}}):
        (found,) = passages(members, "s")
        assert found.metadata == {"source": "s"}


def test_an_answer_without_end_is_read_so_far() -> None:
    assert len(passages([str(n) for n in range(9 * MOST)], "s")) == MOST
    deep: Any = "bottom"
    for _ in range(500):
        deep = [deep]
    assert passages(deep, "s") == []
    assert texts_of("[" * 100_000) == ["[" * 100_000]


def texts_of(text: str) -> list[str]:
    return [document.text for document in passages(text, "s")]


def test_structured_content_comes_before_the_blocks() -> None:
    block = TextContent(type="text", text="from a block")
    assert [
        d.text for d in documents(CallToolResult(content=[block], structured_content={"result": ["A ."]}), "s")
    ] == ["A ."]
    assert [d.text for d in documents(CallToolResult(content=[block], structured_content={"count": 0}), "s")] == [
        block.text
    ]
    picture = ImageContent(type="image", data="AA==", mime_type="image/png")
    page = EmbeddedResource(type="resource", resource=TextResourceContents(uri="notes://1", text="from a page"))
    found = documents(CallToolResult(content=[picture, page, TextContent(type="text", text='["B .", "C ."]')]), "s")
    assert [document.text for document in found] == ["from a page", "B .", "C ."]
    assert found[0].metadata == {"source": "s", "uri": "notes://1"}


def test_links_are_read_through_the_session() -> None:
    server, reads = MCPServer("s", log_level="ERROR"), []

    @server.resource("notes://{n}")
    def note(n: str) -> str:
        reads.append(n)
        if n == "1":
            raise ValueError("gone")
        return f"Note {n} ."

    @server.tool()
    def search(query: str) -> CallToolResult:
        ends = [ResourceLink(type="resource_link", name=str(n), uri=f"notes://{n}") for n in range(20)]
        return CallToolResult(content=[*ends])

    with MCPRetriever(MCPSource("s", server)) as retriever:
        (hits,) = retriever.retrieve([QUESTION], k=20)
    assert texts(hits) == [f"Note {n} ." for n in range(8) if n != 1]
    assert len(reads) == 8
    assert hits[0].document.metadata == {"source": "s", "uri": "notes://0"}


# -- over any number of servers


def test_one_connection_serves_all_questions(tmp_path: Path) -> None:
    starts, (server, connections) = tmp_path / "starts", counted()
    server.add_tool(lambda query: [f"{query} here ."], name="search")
    sources = [MCPSource("process", notes(starts)), MCPSource("here", server)]
    assert not starts.exists()  # nothing is opened before the first question
    with MCPRetriever(*sources) as retriever:
        for n in range(10):
            (hits,) = retriever.retrieve([f"question {n}"], k=31)
            assert f"question {n} here ." in texts(hits)
            assert f"question {n} 29 ." in texts(hits)
        pid = int(starts.read_text())  # one line: one start
        assert len(connections) == 1
        assert alive(pid)
    assert not alive(pid)
    assert retriever.retrieve(["again"], k=1)  # opens anew
    retriever.close()
    retriever.close()
    assert [alive(int(line)) for line in starts.read_text().split()] == [False, False]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_that_was_killed_is_started_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    with MCPRetriever(MCPSource("notes", notes(starts))) as retriever:
        wanted = texts(retriever.retrieve(["a"], k=3)[0])
        os.kill(int(starts.read_text()), signal.SIGKILL)
        assert texts(retriever.retrieve(["a"], k=3)[0]) == wanted
        assert len(starts.read_text().split()) == 2
        with pytest.raises(StoreError, match="notes: MCPError"):
            retriever.retrieve(["die"], k=3)
        assert texts(retriever.retrieve(["a"], k=3)[0]) == wanted


def test_a_server_over_http_that_was_restarted_is_found_again() -> None:
    def app() -> Any:
        return clerks("http", DOCUMENTS).streamable_http_app()

    with over_http(app()) as url:
        retriever = MCPRetriever(MCPSource("http", f"{url}/mcp"))
        wanted = retriever.retrieve([QUESTION], k=3)
    with pytest.raises(StoreError, match="no MCP source answered"):
        retriever.retrieve([QUESTION], k=3)
    with over_http(app(), int(url.rpartition(":")[2])):
        assert retriever.retrieve([QUESTION], k=3) == wanted
        retriever.close()


@pytest.mark.parametrize("manner", ["refuse", pytest.param("ignore", marks=pytest.mark.slow)])
def test_a_server_of_an_old_protocol_is_asked(manner: str) -> None:
    command = StdioServerParameters(command=sys.executable, args=["-c", FOREIGN, manner])
    with MCPRetriever(MCPSource("old", command)) as retriever:
        assert texts(retriever.retrieve(["keys"], k=2)[0]) == ["All about keys ."]


def failing() -> MCPServer[Any]:
    server = MCPServer("failing", log_level="CRITICAL")

    @server.tool()
    async def search(query: str) -> str:
        if query != "fine":
            await asyncio.sleep(60) if query == "hang" else None
            raise ValueError("pass-4711 of the server")
        return "A fine one ."

    return server


@pytest.mark.parametrize(
    ("query", "target", "kind"),
    [
        ("hang", failing(), "TimeoutError"),
        ("raise", failing(), "Refused"),
        ("any", StdioServerParameters(command="/no/such-pass-4711", env={"KEY": "pass-4711"}), "FileNotFoundError"),
        ("any", StdioServerParameters(command=sys.executable, args=["-c", "'pass-4711'"]), "MCPError"),
        (
            "any",
            StdioServerParameters(command=sys.executable, args=["-c", "import time; time.sleep(60)"]),
            "TimeoutError",
        ),
        ("any", "http://127.0.0.1:9/mcp?key=pass-4711", "ConnectError"),
    ],
)
def test_a_source_that_fails_is_left_out(query: str, target: Any, kind: str) -> None:
    patience = 0.5 if kind == "TimeoutError" else 30
    bad = MCPSource("bad", target, timeout=patience, **({"token": "pass-4711"} if isinstance(target, str) else {}))
    wanted = rf"^the MCP source 'bad' was left out for 1 of 1 queries: {kind}$"
    with MCPRetriever(bad, MCPSource("good", telling("good", "A ."))) as retriever:
        with pytest.warns(RuntimeWarning, match=wanted) as caught:
            assert texts(retriever.retrieve([query], k=2)[0]) == ["A ."]
        assert [Path(one.filename).name for one in caught] == [Path(__file__).name]  # it points at who asked
        assert "pass-4711" not in repr(retriever) + repr(bad)
    with MCPRetriever(bad) as retriever:
        with pytest.raises(StoreError, match=rf"no MCP source answered \(bad: {kind}\)") as none:
            retriever.retrieve([query], k=2)
        assert "pass-4711" not in "".join(traceback.format_exception(none.value))


def test_a_refused_query_is_not_the_others_affair() -> None:
    good = telling("good", "A .")
    with MCPRetriever(MCPSource("failing", failing()), MCPSource("good", good)) as retriever:
        with pytest.warns(RuntimeWarning, match="left out for 1 of 3 queries: Refused"):
            found = retriever.retrieve(["fine", "raise", "fine"], k=2)
        assert [texts(row) for row in found] == [["A fine one .", "A ."], ["A ."], ["A fine one .", "A ."]]
    with MCPRetriever(MCPSource("failing", failing())) as retriever, pytest.raises(StoreError):
        retriever.retrieve(["fine", "raise"], k=2)


def test_a_silent_source_holds_up_a_batch_once_and_is_connected_to_anew() -> None:
    server, connections = counted()

    @server.tool()
    async def search(query: str) -> str:
        if query == "hang":
            await asyncio.sleep(60)
        return "A ."

    with MCPRetriever(MCPSource("slow", server, timeout=1)) as retriever:
        began = time.monotonic()
        with pytest.raises(StoreError, match="slow: TimeoutError"):
            retriever.retrieve(["hang"] * 320, k=1)  # twenty times what it gets at once
        assert time.monotonic() - began < 10
        assert texts(retriever.retrieve(["fine"], k=1)[0]) == ["A ."]
        assert len(connections) == 2


@pytest.mark.capability("MCP", "batch")
def test_questions_of_a_batch_are_asked_together() -> None:
    server, inside, most = MCPServer("s", log_level="ERROR"), 0, 0

    @server.tool()
    async def search(query: str) -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.05)
        inside -= 1
        return f"All about {query} ."

    questions = [str(n) for n in range(40)]
    with MCPRetriever(MCPSource("s", server)) as retriever:
        found = retriever.retrieve(questions, k=1)
    assert [texts(row) for row in found] == [[f"All about {question} ."] for question in questions]
    assert most == 16


# -- ranking


def test_ranks_are_fused_and_texts_come_once() -> None:
    sources = [
        MCPSource("a", telling("a", "one", "two", "one")),
        MCPSource("b", telling("b", "three", " two ", "four")),
    ]
    with MCPRetriever(*sources) as retriever:
        (hits,) = retriever.retrieve([QUESTION], k=9)
    assert texts(hits) == ["two", "one", "three", "four"]
    assert [hit.score for hit in hits] == pytest.approx([2 / 62, 1 / 61, 1 / 61, 1 / 63])
    assert [dict(hit.document.metadata) for hit in hits[:2]] == [{"source": "a", "also": ["b"]}, {"source": "a"}]


def test_an_encoder_ranks_over_all_sources() -> None:
    encoder = SentenceEncoder(tiny_sentence_transformer(kind="static"))
    halves = DOCUMENTS[:14], DOCUMENTS[10:]
    sources = [MCPSource(name, clerks(name, half)) for name, half in zip("ab", halves, strict=True)]
    questions = [QUESTION, "The key of clerk 20 ?", "Rome ?"]
    with MCPRetriever(*sources, rerank=encoder) as retriever:
        rows = retriever.retrieve(questions, k=5)
        single = [retriever.retrieve([question], k=5)[0] for question in questions]
    with torch.no_grad():
        table = encoder.encode_queries(questions) @ encoder.encode_documents([d.text for d in DOCUMENTS]).T
    for row, alone, scores in zip(rows, single, table, strict=True):
        best = scores.argsort(descending=True)[:5].tolist()
        assert texts(row) == texts(alone) == [DOCUMENTS[i].text for i in best]
        assert [hit.score for hit in row] == pytest.approx(scores[best].tolist(), abs=1e-5)


def test_a_cross_encoder_ranks() -> None:
    class Shortest:
        def predict(self, pairs: list[tuple[str, str]]) -> list[float]:
            assert {query for query, _ in pairs} == {"a", "b"}
            return [-float(len(text)) for _, text in pairs]

    sources = [MCPSource("a", telling("a", "one two", "one")), MCPSource("b", telling("b", "one two three"))]
    with MCPRetriever(*sources, rerank=Shortest()) as retriever:
        assert [texts(row) for row in retriever.retrieve(["a", "b"], k=2)] == [["one", "one two"]] * 2


@pytest.mark.capability("MCP", "filter")
def test_a_filter_is_applied_before_k_is_taken() -> None:
    even = {"field": "even", "operator": "==", "value": True}
    with MCPRetriever(MCPSource("s", clerks("s", DOCUMENTS)), fetch=24) as retriever:
        (hits,) = retriever.retrieve([QUESTION], k=12, where=even)
        assert len(hits) == 12
        assert all(hit.document.metadata["even"] for hit in hits)
        named = {"field": "source", "operator": "==", "value": "t"}
        assert retriever.retrieve([QUESTION], k=12, where=named) == [[]]
        with pytest.raises(InputError, match="unknown operator"):
            retriever.retrieve([QUESTION], k=1, where={"field": "even", "operator": "~", "value": 1})


def test_what_no_retriever_takes_is_refused() -> None:
    source = MCPSource("s", telling("s", "A ."))
    with pytest.raises(ConfigError, match="each with its own name, got"):
        MCPRetriever(source, source)
    with pytest.raises(ConfigError, match="one source or more"):
        MCPRetriever()
    with pytest.raises(ConfigError, match="fetch=0"):
        MCPRetriever(source, fetch=0)
    with MCPRetriever(source) as retriever:
        with pytest.raises(InputError, match="got one string"):
            retriever.retrieve(QUESTION, k=1)
        with pytest.raises(InputError, match="k must be at least 1, got 0"):
            retriever.retrieve([QUESTION], k=0)
        assert retriever.retrieve([], k=1) == []


# -- secrets


def test_headers_reach_the_server_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    inner, seen = clerks("http", DOCUMENTS).streamable_http_app(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            seen.append((headers.get(b"authorization"), headers.get(b"x-team")))
        await inner(scope, receive, send)

    caplog.set_level("INFO")
    with over_http(app) as url:
        source = MCPSource("http", f"{url}/mcp", token="pass-4711", headers={"X-Team": "pass-4712"})
        with MCPRetriever(source) as retriever:
            (hits,) = retriever.retrieve([QUESTION], k=3)
            assert len(hits) == 3
    assert set(seen) == {(b"Bearer pass-4711", b"pass-4712")}
    said = repr([source, retriever, hits, *vars(retriever).values()]) + caplog.text
    assert "pass-471" not in said
    assert QUESTION not in caplog.text


NOISY = """
import sys
from mcp.server import MCPServer

print("pass-4711 on stdout", flush=True)
print("pass-4712 on stderr", file=sys.stderr, flush=True)
server = MCPServer("noisy", log_level="ERROR")

@server.tool()
def search(query: str) -> str:
    raise ValueError("pass-4713 when asked")

server.run("stdio")
"""


def test_what_a_process_prints_is_not_repeated(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, command = (
        logging.getLogger("mcp.client.stdio"),
        StdioServerParameters(command=sys.executable, args=["-c", NOISY]),
    )
    # mcp took stderr when it was imported; here it is what a program's is
    monkeypatch.setattr(stdio_client.__wrapped__, "__defaults__", (sys.stderr,))
    before = list(log.filters)
    with MCPRetriever(MCPSource("noisy", command)) as retriever:
        with pytest.raises(StoreError, match="noisy: Refused"):
            retriever.retrieve([QUESTION], k=1)
        log.warning("said by the program")
    assert "pass-471" not in caplog.text + "".join(capfd.readouterr())
    assert "said by the program" in caplog.text
    assert log.filters == before


# -- in a program


@pytest.mark.capability("MCP", "sync", "async")
def test_many_ask_at_once_from_an_event_loop() -> None:
    questions = [f"Which key has clerk {n} ?" for n in range(20)]
    with MCPRetriever(MCPSource("s", clerks("s", DOCUMENTS))) as retriever:
        wanted = retriever.retrieve(questions, k=3)

        async def ask() -> list[Any]:
            return await asyncio.gather(*(retriever.aretrieve([question], k=3) for question in questions))

        assert [row for (row,) in asyncio.run(ask())] == wanted


def test_a_question_that_nobody_waits_for_is_cancelled() -> None:
    server, ended = MCPServer("s", log_level="ERROR"), []

    @server.tool()
    async def search(query: str) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(query)
        return "never"

    async def ask(retriever: MCPRetriever) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(retriever.aretrieve(["a"], k=1), 0.3)
        for _ in range(100):
            if ended:
                return
            await asyncio.sleep(0.01)

    with MCPRetriever(MCPSource("s", server)) as retriever:
        asyncio.run(ask(retriever))
        assert ended == ["a"]


def hanging() -> tuple[MCPServer[Any], list[str], threading.Event]:
    """A server of tools that hang: who connected, and whether it is asked."""
    server, connections = counted()
    asked = threading.Event()

    @server.tool()
    async def search(query: str) -> str:
        if query == "hang":
            asked.set()
            await asyncio.sleep(100)
        return "A ."

    return server, connections, asked


def test_closing_gives_up_what_is_asked() -> None:
    (server, connections, asked), said = hanging(), []
    retriever = MCPRetriever(MCPSource("s", server, timeout=60))

    def ask() -> None:
        with pytest.raises(StoreError) as error:
            retriever.retrieve(["hang"], k=1)
        said.append(str(error.value))

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(30)
    began = time.monotonic()
    retriever.close()
    thread.join(30)
    assert time.monotonic() - began < 10
    assert "(s: Closed)" in said[0]
    assert len(connections) == 1  # nothing was opened for it again
    assert texts(retriever.retrieve(["fine"], k=1)[0]) == ["A ."]
    retriever.close()


def test_a_question_of_an_event_loop_ends_with_an_error_when_closed() -> None:
    (server, _, asked) = hanging()
    retriever = MCPRetriever(MCPSource("s", server, timeout=60))

    async def ask() -> None:
        asking = asyncio.create_task(retriever.aretrieve(["hang"], k=1))
        await asyncio.to_thread(asked.wait, 30)
        await asyncio.to_thread(retriever.close)
        with pytest.raises(StoreError, match=r"\(s: Closed\)"):
            await asking

    asyncio.run(ask())


def test_closing_does_not_wait_for_a_server_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    server, go, asked = MCPServer("s", log_level="ERROR"), threading.Event(), threading.Event()

    @server.tool()
    async def search(query: str) -> str:
        asked.set()
        go.wait(30)  # and with it the whole event loop
        return "A ."

    monkeypatch.setattr(mcp_thread, "PATIENCE", 0.2)
    retriever = MCPRetriever(MCPSource("s", server))

    def ask() -> None:
        with suppress(StoreError):  # what was on its way may come yet
            retriever.retrieve([QUESTION], k=1)

    asking = threading.Thread(target=ask)
    asking.start()
    assert asked.wait(30)
    began, thread = time.monotonic(), retriever._loop.thread
    retriever.close()
    assert time.monotonic() - began < 5
    go.set()
    for one in (asking, thread):
        one.join(30)
        assert not one.is_alive()


def test_what_is_closed_opens_nothing() -> None:
    server, connections = counted()

    async def ask() -> Any:
        connection = Connection(MCPSource("s", server))
        await connection.close()
        return await connection.ask_all([QUESTION], 1)

    assert [type(one) for one in asyncio.run(ask())] == [Closed]
    loop = Loop([MCPSource("s", server)])
    loop.end()
    with pytest.raises(StoreError, match="was closed while it was asked"):
        loop.ask([QUESTION], 1)
    assert connections == []


def test_closing_and_asking_at_once_ends_in_answers_or_errors() -> None:
    retriever, until, seen = MCPRetriever(MCPSource("s", telling("s", "A ."))), time.monotonic() + 2, []

    def ask() -> None:
        while time.monotonic() < until:
            try:
                seen.append(texts(retriever.retrieve([QUESTION], k=1)[0]))
            except StoreError as error:
                seen.append("Closed" in str(error) or "was closed" in str(error))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        time.sleep(0.03)
        retriever.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    retriever.close()
    assert [one for one in seen if one not in (["A ."], True)] == []
    assert ["A ."] in seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("manner", ["ask", "close", "drop"])
def test_a_forked_child_leaves_the_connections_to_its_parent(manner: str, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    retriever = MCPRetriever(MCPSource("notes", notes(starts)))
    wanted = texts(retriever.retrieve(["a"], k=3)[0])
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(30)  # a child that hangs is killed
            if manner == "ask":
                status = int(texts(retriever.retrieve(["a"], k=3)[0]) != wanted)
            if manner != "drop":
                retriever.close()
            del retriever
            status = 0 if manner != "ask" else status
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert texts(retriever.retrieve(["a"], k=3)[0]) == wanted
    assert len(starts.read_text().split()) == (2 if manner == "ask" else 1)
    retriever.close()


FORGETFUL = """
import sys
from pathlib import Path
from fedrag.integrations.mcp import MCPRetriever, MCPSource
from mcp_servers import notes

kept = MCPRetriever(MCPSource("notes", notes(Path(sys.argv[1]))))
print(len(kept.retrieve(["a"], k=3)[0]))
again = MCPRetriever(MCPSource("notes", notes(Path(sys.argv[2]))))
again.retrieve(["a"], k=3)
del again
import os
pid = int(Path(sys.argv[2]).read_text())
print(os.path.exists(f"/proc/{pid}"))
"""


@pytest.mark.slow
def test_nothing_is_left_running(tmp_path: Path) -> None:
    at_exit, forgotten = tmp_path / "a", tmp_path / "b"
    words = [sys.executable, "-W", "error", "-c", FORGETFUL, str(at_exit), str(forgotten)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\nFalse\n", "")
    assert not alive(int(at_exit.read_text()))


def test_the_loops_own_thread_can_end_it() -> None:
    """As the garbage collector does, when it comes by there."""
    retriever = MCPRetriever(MCPSource("s", telling("s", "A .")))
    assert retriever.retrieve([QUESTION], k=1)
    loop = retriever._loop
    assert loop.thread in threading.enumerate()
    loop._loop.call_soon_threadsafe(loop.end)
    loop.thread.join(30)
    assert not loop.thread.is_alive()


@pytest.mark.capability("MCP", "take, tune")
def test_a_system_asks_and_learns_from_what_servers_find(tmp_path: Path) -> None:
    system = tiny_system()
    halves = DOCUMENTS[:12], DOCUMENTS[12:]
    sources = [MCPSource(name, clerks(name, half)) for name, half in zip("ab", halves, strict=True)]
    with MCPRetriever(*sources, rerank=system.dense.encoder) as retriever:
        rag = RAGSystem(retriever=retriever, generator=system.generator, top_k=3)
        answer = rag.query(QUESTION)
        assert len(answer.hits) == 3
        assert answer.text == rag.generator.generate([answer.prompt])[0]
        last = answer.hits[2].document.id
        assert last[:3] in ("a:d", "b:d")
        report = evaluate(rag, [Example(QUESTION, ["9"], positives=[last])], progress=False)
        assert report.metrics["mrr@3"].mean == pytest.approx(1 / 3)
        before = {name: weight.detach().clone() for name, weight in rag.named_parameters().items()}
        trainer = RAGTrainer(RALT(rag), args=arguments(tmp_path, max_steps=1), train_dataset=EXAMPLES[:4])
        trainer.train()
        assert any(not torch.equal(before[name], weight) for name, weight in rag.named_parameters().items())


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fedrag.integrations.mcp")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedrag\[mcp\]'"):
        import_module("fedrag.integrations.mcp")
