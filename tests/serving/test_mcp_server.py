"""A system as an MCP server, asked by the official client: in process, over stdio, over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS

from fedrag import Document, LexicalRetriever, MemoryStore, RAGSystem
from fedrag.errors import StoreError
from fedrag.integrations.mcp import MCPRetriever, MCPSource
from fedrag.serving.discreet import Discreet
from fedrag.serving.http import application
from fedrag.serving.mcp import mcp_server
from fedrag.serving.served import Served
from mcp_servers import over_http
from systems import DOCUMENTS, tiny_system, two_stages

QUESTION = "Which key has clerk 3 ?"
EVEN = {"field": "even", "operator": "==", "value": True}
ODD = {"field": "even", "operator": "==", "value": False}


def asked(target: Any, calls: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    """What `calls` returns, given a client of the server."""

    async def ask() -> Any:
        async with Client(target) as client:
            return await calls(client)

    return asyncio.run(ask())


def call(target: Any, tool: str, **given: Any) -> Any:
    return asked(target, lambda client: client.call_tool(tool, given))


def text(result: Any) -> str:
    return "".join(block.text for block in result.content)


@pytest.fixture(scope="module")
def rag() -> RAGSystem:
    return tiny_system()


@pytest.fixture(scope="module")
def saved(rag: RAGSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "clerks"
    rag.save(path)
    return path


@pytest.fixture(params=["inside", pytest.param("stdio", marks=pytest.mark.slow), "http"])
def target(request: pytest.FixtureRequest, rag: RAGSystem, saved: Path) -> Any:
    if request.param == "stdio":
        command = str(Path(sys.executable).with_name("fedrag"))
        yield StdioServerParameters(command=command, args=["serve", str(saved), "--mcp", "stdio"])
        return
    server = mcp_server(Served(rag, name="clerks"))
    if request.param == "inside":
        yield server
        return
    with over_http(server.streamable_http_app(stateless_http=True)) as url:
        yield f"{url}/mcp"


def test_the_token_of_a_server_is_asked_for(rag: RAGSystem) -> None:
    token, steps = "4711" * 8, []

    async def heard(*step: Any) -> None:
        steps.append(step)

    async def calls(url: str) -> Any:
        web = httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"})
        async with web, Client(streamable_http_client(url, http_client=web)) as client:
            return await client.call_tool("ask", {"question": QUESTION}, progress_callback=heard)

    with over_http(application(Served(rag, name="clerks"), token=token, mcp=True)) as url:
        assert asyncio.run(calls(f"{url}/mcp")).structured_content["answer"] == rag.query(QUESTION).text
        assert len(steps) > 1
        with MCPRetriever(MCPSource("clerks", f"{url}/mcp", token=token)) as retriever:
            assert len(retriever.retrieve([QUESTION], k=3)[0]) == 3
        for other in ("4712" * 8, None):
            wrong = MCPRetriever(MCPSource("clerks", f"{url}/mcp", token=other))
            with wrong, pytest.raises(StoreError, match="no MCP source answered"):
                wrong.retrieve([QUESTION], k=3)


def test_every_transport_serves_all_of_it(target: Any, rag: RAGSystem) -> None:
    wanted, answer = rag.retrieve(QUESTION, k=4, where=EVEN), rag.query(QUESTION, k=2, where=ODD)
    steps: list[Any] = []

    async def heard(*step: Any) -> None:
        steps.append(step)

    async def calls(client: Client) -> Any:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        found = await client.call_tool("search", {"query": QUESTION, "top_k": 4, "where": EVEN})
        given = {"question": QUESTION, "top_k": 2, "where": ODD}
        told = await client.call_tool("ask", given, progress_callback=heard)
        page = await client.read_resource("document://d3")
        many = await asyncio.gather(
            *(client.call_tool("search", {"query": f"clerk {n} ?", "top_k": 1}) for n in range(20)),
            *(client.call_tool("ask", {"question": f"clerk {n} ?", "top_k": 1}) for n in range(20)),
        )
        return tools, found, told, page, many

    tools, found, told, page, many = asked(target, calls)
    assert set(tools) == {"search", "ask"}
    sources = found.structured_content["result"]
    assert [(one["id"], one["text"], one["metadata"]) for one in sources] == [
        (hit.document.id, hit.document.text, hit.document.metadata) for hit in wanted
    ]
    assert [one["score"] for one in sources] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
    assert told.structured_content["answer"] == answer.text
    assert [one["id"] for one in told.structured_content["sources"]] == [hit.document.id for hit in answer.hits]
    assert json.loads(told.content[0].text) == told.structured_content
    assert "".join(message for _, _, message in steps) == answer.text
    assert [step for step, _, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total, _ in steps} == {6}
    assert len(steps) > 1
    assert page.contents[0].text == "The key of clerk 3 is 9 ."
    assert page.contents[0].mime_type == "text/plain"
    for n, (first, second) in enumerate(zip(many[:20], many[20:], strict=True)):
        one = rag.query(f"clerk {n} ?", k=1)
        assert [hit["id"] for hit in first.structured_content["result"]] == [one.hits[0].document.id]
        assert second.structured_content["answer"] == one.text


def test_what_a_model_is_told_of_the_tools(rag: RAGSystem) -> None:
    tools = asked(mcp_server(Served(rag, name="clerks")), lambda client: client.list_tools()).tools
    for tool in tools:
        assert tool.annotations.read_only_hint
        assert not tool.annotations.open_world_hint
        assert "'clerks'" in tool.description
        assert tool.output_schema is not None
        for schema in tool.input_schema["properties"].values():
            assert schema["description"]
    search, ask = tools
    assert (search.input_schema["required"], ask.input_schema["required"]) == (["query"], ["question"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "query\n  Field required"),
        ({"query": ""}, "at least 1 character"),
        ({"query": "x" * 10_001}, "at most 10000 characters"),
        ({"query": QUESTION, "top_k": 0}, "greater than or equal to 1"),
        ({"query": QUESTION, "top_k": 101}, "less than or equal to 100"),
        ({"query": QUESTION, "top_k": "many"}, "valid integer"),
        ({"query": QUESTION, "where": [1]}, "valid dictionary"),
        (
            {"query": QUESTION, "where": {"field": "even", "operator": "~", "value": 1}},
            "unknown operator '~' for",
        ),
    ],
)
def test_a_wrong_argument_is_the_tools_error(rag: RAGSystem, given: Any, message: str) -> None:
    result = call(mcp_server(Served(rag, name="clerks")), "search", **given)
    assert result.is_error
    assert message in text(result)


def test_a_question_that_does_not_fit_is_the_tools_error(rag: RAGSystem) -> None:
    result = call(mcp_server(Served(rag, name="clerks")), "ask", question="key " * 600)
    assert result.is_error
    assert "max_length=512" in text(result)


def test_a_system_without_a_generator_has_no_tool_that_answers() -> None:
    server = mcp_server(Served(RAGSystem(retriever=LexicalRetriever(DOCUMENTS)), name="clerks"))
    assert [tool.name for tool in asked(server, lambda client: client.list_tools()).tools] == ["search"]
    assert asked(server, lambda client: client.list_resource_templates()).resource_templates == []
    found = call(server, "search", query="clerk 7", top_k=1)
    assert [one["id"] for one in found.structured_content["result"]] == ["d7"]


def test_documents_of_a_system_in_two_stages_are_read(rag: RAGSystem) -> None:
    server = mcp_server(Served(two_stages(rag), name="clerks"))
    read = asked(server, lambda client: client.read_resource("document://d3"))
    assert read.contents[0].text == DOCUMENTS[3].text


IDS = ["a/b c?d#e", "../../etc/passwd", "/abs", "UPPER.Case", "50%", "é ü", "a\0b", "http://x/y", "."]


@pytest.mark.parametrize("id", IDS)
def test_ids_of_any_characters_are_read(id: str) -> None:
    rag = tiny_system()
    rag.add([Document("The rare one .", id=id)], progress=False)
    server = mcp_server(Served(rag, name="clerks"))
    read = asked(server, lambda client: client.read_resource(f"document://{quote(id, safe='')}"))
    assert read.contents[0].text == "The rare one ."


def test_an_unknown_document_is_an_error_that_names_it(rag: RAGSystem) -> None:
    async def calls(client: Client) -> MCPError:
        with pytest.raises(MCPError, match="there is no document 'd99'") as error:
            await client.read_resource("document://d99")
        return error.value

    assert asked(mcp_server(Served(rag, name="clerks")), calls).code == INVALID_PARAMS


def test_who_is_one_too_many_is_told_to_come_back(rag: RAGSystem) -> None:
    async def calls(client: Client) -> Any:
        return await asyncio.gather(*(client.call_tool("ask", {"question": QUESTION}) for _ in range(10)))

    results = asked(mcp_server(Served(rag, name="clerks", slots=1, waiting=1)), calls)
    refused = [result for result in results if result.is_error]
    assert 0 < len(refused) < 10
    assert {text(result) for result in refused} == {text(refused[0])}
    assert "ask again in a while" in text(refused[0])


class Broken(MemoryStore):
    """A store whose errors tell where it lies, and what was asked."""

    kind: type[Exception] = StoreError

    def __contains__(self, id: object) -> bool:
        raise self.kind(f"/site/data/4711 is truncated; {id}")

    def search(self, *args: Any, **settings: Any) -> Any:
        raise self.kind(f"/site/data/4711 is truncated; {QUESTION}")


@pytest.mark.parametrize(("kind", "said"), [(StoreError, "index them anew"), (RuntimeError, "executing tool search")])
def test_an_error_inside_says_nothing_of_the_site(kind: type[Exception], said: str) -> None:
    rag = tiny_system()
    rag.dense.store = Broken()
    rag.dense.store.kind = kind
    result = call(mcp_server(Served(rag, name="clerks")), "search", query=QUESTION)
    assert result.is_error
    assert said in text(result)
    assert "4711" not in text(result)


@pytest.mark.parametrize(("kind", "said"), [(StoreError, "index them anew"), (RuntimeError, "Error creating resource")])
def test_an_error_inside_of_a_document_names_nobody(kind: type[Exception], said: str) -> None:
    rag, log = tiny_system(), io.StringIO()
    rag.dense.store = Broken()
    rag.dense.store.kind = kind
    handler = logging.StreamHandler(log)
    handler.setFormatter(Discreet("%(message)s"))
    logger = logging.getLogger("mcp.server")
    logger.addHandler(handler)

    async def calls(client: Client) -> MCPError:
        with pytest.raises(MCPError, match=said) as error:
            await client.read_resource("document://patient%20Smith")
        return error.value

    try:
        error = asked(mcp_server(Served(rag, name="clerks")), calls)
    finally:
        logger.removeHandler(handler)
    assert error.code == INTERNAL_ERROR
    assert "4711" not in str(error)
    assert "Smith" not in log.getvalue()
    assert "4711" not in log.getvalue()
    assert ("RuntimeError" in log.getvalue()) == (kind is RuntimeError)


def test_a_document_waits_in_the_same_line_and_is_read_by_the_same_thread() -> None:
    inside, go, threads = threading.Event(), threading.Event(), set[str]()

    class Slow(MemoryStore):
        def get(self, ids: Sequence[str]) -> list[Document]:
            threads.add(threading.current_thread().name)
            inside.set()
            go.wait(30)
            return super().get(ids)

    rag = tiny_system()
    rag.dense.store = Slow()
    rag.add(DOCUMENTS, progress=False)

    async def calls(client: Client) -> Any:
        first = asyncio.create_task(client.read_resource("document://d3"))
        await asyncio.to_thread(inside.wait, 30)
        with pytest.raises(MCPError, match="ask again in a while"):
            await client.read_resource("document://d4")
        go.set()
        return await first

    read = asked(mcp_server(Served(rag, name="clerks", slots=1, waiting=0)), calls)
    assert read.contents[0].text == "The key of clerk 3 is 9 ."
    assert {name.rpartition("_")[0] for name in threads} == {"fedrag-find"}


def test_an_error_that_comes_from_itself_is_logged_once() -> None:
    def tired(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, tired)
    try:
        int("a question")
    except ValueError as error:
        error.__cause__ = error
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        lines = Discreet().formatException((type(error), error, error.__traceback__)).splitlines()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [line for line in lines if not line.startswith(" ")] == ["ValueError"]


def test_who_leaves_stops_the_writing() -> None:
    rag, steps, passes = tiny_system(), [], []
    rag.generator.max_new_tokens = 300
    rag.generator.model.register_forward_hook(lambda *_: passes.append(1))
    rag.query(QUESTION, k=1)
    whole = len(passes)
    assert whole > 100
    passes.clear()

    async def heard(*step: Any) -> None:
        steps.append(step)

    async def calls(client: Client) -> None:
        asking = asyncio.create_task(
            client.call_tool("ask", {"question": QUESTION, "top_k": 1}, progress_callback=heard)
        )
        while not steps:
            await asyncio.sleep(0.001)
        asking.cancel()
        while (await client.call_tool("search", {"query": QUESTION, "top_k": 1})).is_error:  # the one place is taken
            await asyncio.sleep(0.01)

    asked(mcp_server(Served(rag, name="clerks", slots=1, waiting=0)), calls)
    assert 0 < len(passes) < whole / 2


def test_a_programs_log_is_its_own(rag: RAGSystem) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)
    try:
        root.setLevel(logging.ERROR)
        mcp_server(Served(rag, name="clerks"))
        assert (root.handlers, root.level) == ([], logging.ERROR)
    finally:
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(level)


@pytest.mark.slow
def test_the_log_of_a_process_has_no_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A crash inside is written to stderr by class and place."""
    words = """
from fedrag import LexicalRetriever, Document, RAGSystem
from fedrag.serving.mcp import run_stdio
from fedrag.serving.served import Served

class Crashing(LexicalRetriever):
    def retrieve(self, queries, k, where=None):
        print("printed")
        raise RuntimeError(queries[0] + self.documents[0].text)

run_stdio(Served(RAGSystem(retriever=Crashing([Document("a document 4711")])), name="clerks"))
"""
    with (log := tmp_path / "log").open("w") as errors:
        command = StdioServerParameters(command=sys.executable, args=["-c", words])
        result = call(stdio_client(command, errors), "search", query=QUESTION)
    assert result.is_error
    written = log.read_text()
    assert "RuntimeError" in written
    assert "printed" in written  # and not between the messages on stdout
    assert caplog.text == ""
    assert QUESTION not in written
    assert "4711" not in written


def test_a_served_system_is_a_source_of_another(target: Any, rag: RAGSystem) -> None:
    questions = [f"Which key has clerk {n} ?" for n in range(8)]
    source = MCPSource("clerks", target, timeout=60)
    with MCPRetriever(source, rerank=rag.dense.encoder) as retriever:
        found = retriever.retrieve(questions, k=4)
        even = retriever.retrieve(questions, k=4, where=EVEN)
    for question, row, some in zip(questions, found, even, strict=True):
        wanted = rag.retrieve(question, k=4)
        assert [hit.document.id for hit in row] == [f"clerks:{hit.document.id}" for hit in wanted]
        assert [hit.score for hit in row] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
        assert len(some) == 4
        assert all(hit.document.metadata["even"] for hit in some)
