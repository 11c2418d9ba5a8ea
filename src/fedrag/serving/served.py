"""A system that many ask at once, whatever protocol they speak.

One thread searches and embeds, for tokenizers and encoders serve one caller at a time; `slots` threads write answers.
Who finds them taken waits in line, and a line that is too long is refused at once (`Busy`), which serves everybody
better than time-outs. What is written goes into a buffer that `max_new_tokens` bounds: a client that reads slowly holds
no slot, and one that goes away ends its generation: a `CausalLM`'s with the next token, also where nothing of it is
to be seen, another's with its next piece. The work itself is `RAGSystem`'s.

>>> import asyncio
>>> from fedrag import LexicalRetriever, Document, RAGSystem
>>> documents = [Document("Paris is the capital of France."), Document("Rome is old.")]
>>> rag = RAGSystem(retriever=LexicalRetriever(documents), top_k=1)
>>> asyncio.run(Served(rag, name="capitals").retrieve("What is the capital of France?"))[0].document.text
'Paris is the capital of France.'
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, ParamSpec, TypeVar

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fedrag.errors import ConfigError, FedRAGError, InputError
from fedrag.generators.causal import CausalLM
from fedrag.generators.tokens import Message, check_room
from fedrag.integrations.answering import asked, chats, pieces
from fedrag.prompts import Tokens
from fedrag.rag import RAGSystem
from fedrag.serving.reply import Left, Meter, Reply
from fedrag.types import Document, Hit, Streamer, Where

P = ParamSpec("P")
T = TypeVar("T")

_STOPPING = "the server is stopping: ask another one, or this one when it is back"


class Busy(FedRAGError):
    """The line is full, or the server stops: ask again in a while."""


class Served:
    """A system that many ask at once: a few at a time, off the event loop; the others wait in line.

    Args:
        rag: the system; while it is served, nobody else may train it or use its encoder.
        name: what clients call it.
        slots: answers written at the same time, each by a thread of its own.
        waiting: requests that may wait beside those; one more is refused.
    """

    def __init__(self, rag: RAGSystem, *, name: str, slots: int = 2, waiting: int = 64) -> None:
        if slots < 1 or waiting < 0:
            raise ConfigError(f"slots={slots}, waiting={waiting}: there must be 1 slot and 0 waiting at least")
        self.rag, self.name = rag, name
        self.inside, self._most, self._closed = 0, slots + waiting, False
        self._count = threading.Lock()
        self._finding = ThreadPoolExecutor(1, thread_name_prefix="fedrag-find")
        self._writing = ThreadPoolExecutor(slots, thread_name_prefix="fedrag-write")
        self._meter, self._hooks = Meter(), list[RemovableHandle]()
        if isinstance(rag.generator, CausalLM):
            entry = rag.generator.model.get_input_embeddings()
            self._hooks.append(entry.register_forward_pre_hook(self._meter))
            if chats(rag.generator):
                # the first time may change settings of the tokenizer, which no other thread may use meanwhile
                rag.generator.tokens.chat_ids([{"role": "user", "content": "?"}])

    @property
    def answers(self) -> bool:
        """Whether the system has a generator; without one it only searches and embeds."""
        return self.rag.generator is not None

    async def retrieve(self, question: str, *, k: int | None = None, where: Where | None = None) -> list[Hit]:
        """Return the hits for a question, best first. Raises `Busy`, and what `RAGSystem.retrieve` raises."""
        with self._place():
            return await self._find(self.rag.retrieve, question, k=k, where=where)

    async def embed(self, texts: Sequence[str], kind: Literal["query", "document"]) -> Tensor:
        """Return `[n, d]` vectors of texts as queries or as documents, a batch at a time so that others get their turn.

        Raises `Busy`, and `InputError` for no text and for a system without an encoder.
        """
        dense = self.rag.dense
        if not texts:
            raise InputError("there is no text to embed; pass at least one")

        def encode(batch: Sequence[str]) -> Tensor:
            found = dense.embed_queries(batch) if kind == "query" else dense.embed_documents(list(map(Document, batch)))
            return found.float().cpu()

        with self._place():
            starts = range(0, len(texts), dense.batch_size)
            return torch.cat([await self._find(encode, texts[start : start + dense.batch_size]) for start in starts])

    async def document(self, id: str) -> Document | None:
        """Return the document of an id, `None` where none has it.

        Raises `Busy`, what the store raises, and `InputError` for a system whose retriever has no store.
        """
        store = self.rag.dense.store
        with self._place():
            return await self._find(lambda: store.get([id])[0] if id in store else None)

    async def answer(
        self,
        messages: Sequence[Message],
        *,
        k: int | None = None,
        where: Where | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | None = None,
    ) -> Reply:
        """Answer the last message, a user's, from the documents found for it; earlier messages are read before it.

        A lone message is asked as `RAGSystem.stream` asks it; after earlier ones all documents stand in one prompt,
        whatever the reader. Writing starts as soon as a slot is free; who does not read to the end calls `Reply.close`.

        Raises `Busy`, what `RAGSystem.stream` raises, and `InputError` for messages that the chat template refuses.
        """
        with ExitStack() as stack:
            stack.enter_context(self._place())
            reply, source = await self._find(self._begin, messages, k, where, max_new_tokens, stop)
            self._start(reply, source, asyncio.get_running_loop())
            place = stack.pop_all()  # it is given back when all is written
        reply.job.add_done_callback(lambda _: place.close())
        return reply

    def close(self) -> None:
        """Refuse whoever comes now, and whoever waits (`Busy`); answers being written end on their own."""
        with self._count:
            self._closed = True
            self._unhook()
        for pool in (self._finding, self._writing):
            pool.shutdown(wait=False, cancel_futures=True)

    def _unhook(self) -> None:
        if self._closed and not self.inside:  # till then the meter ends what nobody reads any further
            for hook in self._hooks:
                hook.remove()

    def _begin(
        self,
        messages: Sequence[Message],
        k: int | None,
        where: Where | None,
        most: int | None,
        stop: Sequence[str] | None,
    ) -> tuple[Reply, Iterator[str]]:
        rag, generator = self.rag, self.rag.generator
        if generator is None:
            raise InputError("this system has no generator, so it cannot answer: search it, or give it one")
        if not messages or messages[-1]["role"] != "user":
            raise InputError("the last message must be a user's: it is the question that documents are found for")
        limit = generator.max_new_tokens if most is None and isinstance(generator, Tokens) else most
        question = messages[-1]["content"]
        if len(messages) == 1 and (isinstance(generator, Streamer) or rag.reader == "ensemble"):
            stream = rag.stream(question, k=k, where=where, max_new_tokens=most, stop=stop)
            return Reply(stream.hits, limit=limit), stream.pieces
        hits = rag.retrieve(question, k=k, where=where)
        before = messages[:-1]
        try:
            earlier = self._length(before) if before else 0
            if isinstance(generator, Tokens):
                cure = "leave out the oldest"
                check_room(earlier, limit or 0, generator.max_length, what="earlier messages have", cure=cure)
            prompt = rag.prompt_for(question, [hit.document for hit in hits], answer_tokens=earlier + (limit or 0))
            whole = [*before, {"role": "user", "content": prompt}]
            source = pieces(generator, asked(generator, whole, lambda: _written(whole)), max_new_tokens=most, stop=stop)
        except TemplateError as error:
            raise InputError(
                f"the model's chat template takes no messages of the roles {[m['role'] for m in messages]} in this "
                "order; send user and assistant by turns, without a system message"
            ) from error
        return Reply(tuple(hits), limit=limit), source

    def _length(self, before: Sequence[Message]) -> int:
        """The number of tokens that messages before the last one take; documents are shortened by so many."""
        generator = self.rag.generator
        if isinstance(generator, CausalLM) and chats(generator):
            return len(generator.tokens.chat_ids([*before, {"role": "user", "content": ""}]))
        return generator.count(_written(before)) if isinstance(generator, Tokens) else 0

    def _start(self, reply: Reply, source: Iterator[str], loop: asyncio.AbstractEventLoop) -> None:
        buffer: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str | None) -> None:
            with suppress(RuntimeError):  # the loop is closed, and whoever read is gone with it
                loop.call_soon_threadsafe(buffer.put_nowait, piece)

        def told() -> Generator[str]:
            # fedrag's own generators return why they end, which nobody else asks for
            if (yield from source) == "length":
                reply.finish = "length"

        def write() -> None:
            self._meter.start(reply.left)
            with suppress(Left):
                for piece in told():
                    if reply.left.is_set():
                        break
                    put(piece)
            if isinstance(self.rag.generator, CausalLM):
                reply.prompt_tokens, reply.tokens = self._meter.prompt, self._meter.passes

        async def read() -> AsyncIterator[str]:
            try:
                while (piece := await buffer.get()) is not None:
                    yield piece
                if reply.job.cancelled():
                    raise Busy(_STOPPING)
                try:
                    reply.job.result()
                except InputError as error:  # what was asked is checked before, so it is no fault of who asked
                    raise RuntimeError(f"the {type(self.rag.generator).__name__} broke off its answer") from error
            finally:
                reply.close()

        reply.job, reply.pieces = self._submit(self._writing, write), read()
        reply.job.add_done_callback(lambda _: put(None))

    async def _find(self, function: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
        job = self._submit(self._finding, function, *args, **settings)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):  # `close` took it out of the line, and nobody else
                raise Busy(_STOPPING) from None
            raise

    def _submit(
        self, pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **settings: P.kwargs
    ) -> Future[T]:
        with self._count:
            if self._closed:
                raise Busy(_STOPPING)
            return pool.submit(function, *args, **settings)

    @contextmanager
    def _place(self) -> Generator[None]:
        """A place in the line, given back at the end."""
        with self._count:
            if self._closed:
                raise Busy(_STOPPING)
            if self.inside >= self._most:
                raise Busy(f"{self._most} requests are inside already, and no more may wait: ask again in a while")
            self.inside += 1
        try:
            yield
        finally:
            with self._count:
                self.inside -= 1
                self._unhook()


def _written(messages: Sequence[Message]) -> str:
    """A conversation as one text, for a model without a chat template."""
    return "\n".join([*(f"{message['role']}: {message['content']}" for message in messages), "assistant:"])
