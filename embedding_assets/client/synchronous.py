"""The client for programs with threads."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, Thread, Timer
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy.typing as npt
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool

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


class SearchClient:
    """Searches a region's database. Its threads may share one; it connects at the first search.

    dsn: as libpq takes it, of a role that has `embedding_search`.
    timeout: seconds that a call may take, its waits and attempts included.
    max_connections: of the pool. A search has one while Postgres works on it, not while its question is embedded.
    cached_questions: so many of the last questions keep their vector.
    keys: the environment variables that the key of a model's endpoint may be taken from. The database names which, and
        the endpoint's address.
    embed: gives a question's vector by the live model, where the model's own provider is not to be asked from here.
    """

    def __init__(
        self,
        dsn: str,
        *,
        timeout: float = 10.0,
        max_connections: int = 4,
        cached_questions: int = 1024,
        keys: Collection[str] = ("OPENAI_API_KEY",),
        embed: Callable[[str, LiveModel], npt.ArrayLike] | None = None,
    ) -> None:
        self._parameters = parameters(dsn, timeout)
        self._timeout = timeout
        self._memory = Memory(cached_questions)
        self._embed = embed
        self._questions = _Background(Questions(keys, timeout))
        self._opening = Lock()
        self._closed = False
        self._opened = False
        self._pool: ConnectionPool[psycopg.Connection[DictRow]] = ConnectionPool(
            kwargs={**self._parameters, "row_factory": dict_row},
            min_size=0,
            max_size=max_connections,
            name="embedding-assets client",
            open=False,
        )

    def search(
        self, question: str, k: int = 10, *, source: str | None = None, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The k chunks nearest to a question, nearest first; of one source, and with metadata that contain `filter`.

        Raises PermanentError where asking again cannot help, and TransientError where it can.
        """
        return self._drive(searching(Asked(question, k, source, filter, hybrid=False), self._memory))

    def hybrid(
        self, question: str, k: int = 10, *, source: str | None = None, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The same by the question's words as well, best first, where `hybrid` is set. Raises as `search` does."""
        return self._drive(searching(Asked(question, k, source, filter, hybrid=True), self._memory))

    def live_model(self) -> LiveModel:
        """The model that is live now. Raises as `search` does."""
        return self._drive(asking(self._memory))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Close the connections, to the database and to the model's endpoint."""
        with self._opening:
            self._closed = True
            self._pool.close()
            self._questions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drive(self, steps: Steps[T]) -> T:
        deadline = Deadline(self._timeout)
        try:
            step = next(steps)
            while True:
                try:
                    done = self._run(step, deadline) if isinstance(step, Run) else self._embedded(step, deadline)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _run(self, step: Run, deadline: Deadline) -> list[Rows]:
        self._open()
        try:
            with self._pool.connection(deadline.left()) as conn, _cut(conn, deadline.left() + GRACE_SECONDS):
                with conn.transaction():
                    conn.execute(*deadline.limit())
                    cursors = [conn.execute(*statement) for statement in step.statements]
                return [cursor.fetchall() for cursor in cursors]
        except psycopg.Error as error:
            if may_pass(error):
                self._pool.drain()  # whoever ended this session may have ended the others
            raise

    def _open(self) -> None:
        if self._opened and not self._closed:
            return
        with self._opening:
            if self._closed:
                raise closed()
            if not self._opened:
                try:  # a pool says that it got no connection, not why
                    psycopg.connect(**self._parameters).close()
                except psycopg.Error as error:
                    raise explained(error) from error
                self._pool.open()
                self._opened = True

    def _embedded(self, step: Embed, deadline: Deadline) -> npt.ArrayLike:
        if self._embed is not None:
            return self._embed(step.question, step.model)
        return self._questions.embed(step, deadline.left())


@contextmanager
def _cut(conn: psycopg.Connection[DictRow], seconds: float) -> Iterator[None]:
    """Cut the connection where the block is not left by then."""
    line = Line(conn.fileno())
    timer = Timer(seconds, line.cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        line.leave()


class _Background:
    """Questions, on an event loop in a thread of its own: an endpoint's connections stay open from call to call."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._starting = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None

    def embed(self, step: Embed, seconds: float) -> npt.ArrayLike:
        asked = self._questions.embed(step.question, step.model, seconds)
        return asyncio.run_coroutine_threadsafe(asked, self._started()).result()

    def close(self) -> None:
        with self._starting:
            if self._loop is None or self._thread is None:
                return
            asyncio.run_coroutine_threadsafe(self._questions.aclose(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A daemon: a program that forgets to close its client ends nevertheless.
                self._thread = Thread(target=self._loop.run_forever, name="embedding-assets client", daemon=True)
                self._thread.start()
            return self._loop
