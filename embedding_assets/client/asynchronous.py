"""The client for programs with an event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy.typing as npt
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from embedding_assets.client.connecting import GRACE_SECONDS, Line, closed, parameters
from embedding_assets.client.core import (
    Asked,
    Deadline,
    Embed,
    Hit,
    LiveModel,
    Memory,
    Rows,
    Run,
    Steps,
    asking,
    searching,
)
from embedding_assets.client.failures import explained, may_pass
from embedding_assets.client.questions import Questions

T = TypeVar("T")


class AsyncSearchClient:
    """`SearchClient` for the tasks of one event loop: the same arguments, the same answers. `embed` is awaited."""

    def __init__(
        self,
        dsn: str,
        *,
        timeout: float = 10.0,
        max_connections: int = 4,
        cached_questions: int = 1024,
        keys: Collection[str] = ("OPENAI_API_KEY",),
        embed: Callable[[str, LiveModel], Awaitable[npt.ArrayLike]] | None = None,
    ) -> None:
        self._parameters = parameters(dsn, timeout)
        self._timeout = timeout
        self._memory = Memory(cached_questions)
        self._embed = embed
        self._questions = Questions(keys, timeout)
        self._opening = asyncio.Lock()
        self._closed = False
        self._opened = False
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[DictRow]] = AsyncConnectionPool(
            kwargs={**self._parameters, "row_factory": dict_row},
            min_size=0,
            max_size=max_connections,
            name="embedding-assets client",
            open=False,
        )

    async def search(
        self, question: str, k: int = 10, *, source: str | None = None, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """As `SearchClient.search`."""
        return await self._drive(searching(Asked(question, k, source, filter, hybrid=False), self._memory))

    async def hybrid(
        self, question: str, k: int = 10, *, source: str | None = None, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """As `SearchClient.hybrid`."""
        return await self._drive(searching(Asked(question, k, source, filter, hybrid=True), self._memory))

    async def live_model(self) -> LiveModel:
        """As `SearchClient.live_model`."""
        return await self._drive(asking(self._memory))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def close(self) -> None:
        """Close the connections, to the database and to the model's endpoint."""
        async with self._opening:
            self._closed = True
            await self._pool.close()
            await self._questions.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _drive(self, steps: Steps[T]) -> T:
        deadline = Deadline(self._timeout)
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Run):
                        done: object = await self._run(step, deadline)
                    else:
                        done = await self._embedded(step, deadline)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def _run(self, step: Run, deadline: Deadline) -> list[Rows]:
        await self._open()
        try:
            async with self._pool.connection(deadline.left()) as conn:
                with _cut(conn, deadline.left() + GRACE_SECONDS):
                    async with conn.transaction():
                        await conn.execute(*deadline.limit())
                        cursors = [await conn.execute(*statement) for statement in step.statements]
                    return [await cursor.fetchall() for cursor in cursors]
        except psycopg.Error as error:
            if may_pass(error):
                await self._pool.drain()  # whoever ended this session may have ended the others
            raise

    async def _open(self) -> None:
        if self._opened and not self._closed:
            return
        async with self._opening:
            if self._closed:
                raise closed()
            if not self._opened:
                try:  # a pool says that it got no connection, not why
                    await (await psycopg.AsyncConnection.connect(**self._parameters)).close()
                except psycopg.Error as error:
                    raise explained(error) from error
                await self._pool.open()
                self._opened = True

    async def _embedded(self, step: Embed, deadline: Deadline) -> npt.ArrayLike:
        if self._embed is not None:
            return await self._embed(step.question, step.model)
        return await self._questions.embed(step.question, step.model, deadline.left())


@contextmanager
def _cut(conn: psycopg.AsyncConnection[DictRow], seconds: float) -> Iterator[None]:
    """Cut the connection where the block is not left by then."""
    line = Line(conn.fileno())
    timer = asyncio.get_running_loop().call_later(seconds, line.cut)
    try:
        yield
    finally:
        timer.cancel()
        line.leave()
