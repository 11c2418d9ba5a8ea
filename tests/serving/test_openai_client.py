"""The official client against our server: what comes back is what the system itself says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from fedrag import RAGSystem
from serving.serving import QUESTION, TOKEN, Running, chatty_system, running
from systems import tiny_system

ASK = [{"role": "user", "content": QUESTION}]
EVEN = {"field": "even", "operator": "==", "value": True}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.address}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


def test_the_system_is_the_one_model(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "fedrag"
    with pytest.raises(NotFoundError, match="'tiny'"):
        client.chat.completions.create(model="other", messages=ASK)


@pytest.mark.capability("OpenAI API", "sync")
def test_an_answer_is_what_query_gives_with_its_sources(client: OpenAI, rag: RAGSystem) -> None:
    got = client.chat.completions.create(model="tiny", messages=ASK, temperature=0.3, user="me")
    expected = rag.query(QUESTION)
    assert expected.text
    assert got.choices[0].message.content == expected.text
    assert [(s["id"], s["score"], s["text"], s["metadata"]) for s in got.model_extra["rag"]["sources"]] == [
        (hit.document.id, hit.score, hit.document.text, hit.document.metadata) for hit in expected.hits
    ]
    assert got.model_extra["rag"]["ignored"] == ["temperature", "user"]
    assert got.usage.prompt_tokens == len(rag.generator.prompt_ids(expected.prompt))
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


@pytest.mark.capability("OpenAI API", "stream")
def test_a_stream_is_the_same_answer_in_pieces(client: OpenAI, rag: RAGSystem) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASK)
    chunks = list(
        client.chat.completions.create(model="tiny", messages=ASK, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == rag.query(QUESTION).text
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[0].model_extra["rag"] == whole.model_extra["rag"]
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_ensemble_reader_and_a_model_without_a_chat_template() -> None:
    talk = [{"role": "system", "content": "Be brief ."}, *ASK]
    for rag in (chatty_system(reader="ensemble"), tiny_system()):
        with running(rag) as server, OpenAI(base_url=f"{server.address}/v1", api_key=TOKEN) as client:
            got = client.chat.completions.create(model="tiny", messages=ASK)
            assert got.choices[0].message.content == rag.query(QUESTION).text
            assert client.chat.completions.create(model="tiny", messages=talk).usage.prompt_tokens > 60


def test_how_long_and_until_when(client: OpenAI, rag: RAGSystem) -> None:
    text = rag.query(QUESTION).text
    short = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=3)
    assert short.usage.completion_tokens == 3
    assert text.startswith(short.choices[0].message.content)
    longer = client.chat.completions.create(model="tiny", messages=ASK, max_completion_tokens=40)
    assert longer.usage.completion_tokens == 40
    end = text[len(text) // 2]
    stopped = client.chat.completions.create(model="tiny", messages=ASK, stop=end)
    assert stopped.choices[0].message.content == text.partition(end)[0].strip()
    assert stopped.choices[0].finish_reason == "stop"


@pytest.mark.capability("OpenAI API", "filter")
def test_top_k_and_where(client: OpenAI, rag: RAGSystem) -> None:
    for k in (0, 5):
        got = client.chat.completions.create(
            model="tiny", messages=ASK, extra_body={"rag": {"top_k": k, "where": EVEN}}
        )
        expected = rag.query(QUESTION, k=k, where=EVEN)
        assert got.choices[0].message.content == expected.text
        found = [s["id"] for s in got.model_extra["rag"]["sources"]]
        assert found == [hit.document.id for hit in expected.hits]
        assert len(found) == k


def test_embeddings_are_the_encoders_own(client: OpenAI, rag: RAGSystem) -> None:
    texts = [f"The key of clerk {n} ." for n in range(150)]
    expected = rag.dense.encoder.encode_documents(texts)
    for form in ("float", "base64", None):  # the client asks for base64 by itself
        settings = {} if form is None else {"encoding_format": form}
        got = client.embeddings.create(model="tiny", input=texts, **settings).data
        if form == "base64":
            assert isinstance(got[0].embedding, str)
            continue
        assert torch.equal(torch.tensor([row.embedding for row in got]), expected)
    asked = client.embeddings.create(model="tiny", input=QUESTION, extra_body={"input_type": "query"}).data
    assert torch.equal(torch.tensor([asked[0].embedding]), rag.dense.encoder.encode_queries([QUESTION]))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"n": 2}, "n: "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: "),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"logprobs": True}, "logprobs: "),
        ({"max_tokens": 10**6}, "max_length"),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"extra_body": {"rag": {"top_k": -1}}}, "rag.top_k: "),
        ({"extra_body": {"rag": {"depth": 1}}}, "rag.depth: "),
        ({"extra_body": {"rag": {"where": {"field": "even", "operator": "~"}}}}, "unknown operator '~'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: OpenAI, extra: dict, said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        client.chat.completions.create(model="tiny", messages=ASK, **extra)


def test_messages_that_are_not_text_or_not_a_question(client: OpenAI, rag: RAGSystem) -> None:
    parts = [{"type": "text", "text": "Which key "}, {"type": "text", "text": "has clerk 3 ?"}]
    got = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    assert got.choices[0].message.content == rag.query(QUESTION).text
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(BadRequestError, match=r"messages.0.content: holds a part that is no text"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": picture}])
    with pytest.raises(BadRequestError, match="last message must be a user's"):
        client.chat.completions.create(model="tiny", messages=[*ASK, {"role": "assistant", "content": "9"}])
    with pytest.raises(BadRequestError, match="token ids"):
        client.embeddings.create(model="tiny", input=[1, 2, 3])


def test_earlier_messages_are_read_and_documents_make_room(client: OpenAI, rag: RAGSystem) -> None:
    talk = [{"role": "system", "content": "Be brief ."}, *ASK, {"role": "assistant", "content": "9"}, *ASK]
    got = client.chat.completions.create(model="tiny", messages=talk)
    prompt = rag.prompt_for(QUESTION, [hit.document for hit in rag.retrieve(QUESTION)])
    whole = [*talk[:-1], {"role": "user", "content": prompt}]
    assert got.choices[0].message.content == "".join(rag.generator.chat(whole))
    assert got.usage.prompt_tokens == len(rag.generator.tokens.chat_ids(whole))
    long = [{"role": "system", "content": "the river is long " * 385}, *ASK]
    usage = client.chat.completions.create(model="tiny", messages=long).usage
    assert 1950 < usage.prompt_tokens < usage.prompt_tokens + 12 <= 2048
    with pytest.raises(BadRequestError, match=r"earlier messages have .* leave out the oldest"):
        client.chat.completions.create(model="tiny", messages=[*long, *long])


@pytest.mark.capability("OpenAI API", "async")
def test_many_at_once_get_each_their_own_answer(server: Running, rag: RAGSystem) -> None:
    questions = [f"Which key has clerk {n} ?" for n in range(16)]

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.address}/v1", api_key=TOKEN, max_retries=0) as client:

            async def one(question: str) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": question}], stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, questions))

    assert asyncio.run(ask()) == [rag.query(question).text for question in questions]


@pytest.mark.capability("Haystack", "stream")
def test_haystacks_own_generator_speaks_to_it(server: Running, rag: RAGSystem) -> None:
    pieces: list[str] = []
    generator = OpenAIChatGenerator(api_key=Secret.from_token(TOKEN), model="tiny", api_base_url=f"{server.address}/v1")
    said = generator.run(
        [ChatMessage.from_user(QUESTION)], streaming_callback=lambda chunk: pieces.append(chunk.content)
    )
    assert said["replies"][0].text == "".join(pieces) == rag.query(QUESTION).text
