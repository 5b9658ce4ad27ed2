"""Shards on several connections at once: each shard is a transaction of its own on one of them."""

import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from queue import SimpleQueue
from typing import Final, TypeVar

from embedding_assets.errors import TransientError
from embedding_assets.machine import cores
from embedding_assets.pgvector.connection import Connection, another

T = TypeVar("T")
Done = TypeVar("Done")

_log = logging.getLogger(__name__)

CONNECTIONS: Final = min(cores(), 4)
"""While the server takes one shard, the next is read, encoded and hashed. More than one a core brought nothing: on two
cores 50,000 × 384 took 0.55 s by two connections, 0.53 by three and 0.55 by four."""


def on_connections(
    conn: Connection, items: Sequence[T], work: Callable[[Connection, T], Done]
) -> Generator[Done, None, None]:
    """Do `work` for each item on `conn` and up to `CONNECTIONS` - 1 more like it, in a thread each.

    Yields the results as they come. The first failure stops all: what is under way comes to its end, nothing else
    begins, and it is raised; so does closing the generator. Where the server has no connection to spare, those that
    there are do the work.
    """
    with ExitStack() as opened:
        free: SimpleQueue[Connection] = SimpleQueue()
        free.put(conn)
        for _ in range(min(CONNECTIONS, len(items)) - 1):
            try:
                free.put(opened.enter_context(closing(another(conn))))
            except TransientError as error:
                _log.warning("going on with %d connections: %s", free.qsize(), error)
                break

        def on_a_free_one(item: T) -> Done:
            own = free.get()
            try:
                return work(own, item)
            finally:
                free.put(own)

        with ThreadPoolExecutor(free.qsize(), "load-shard") as pool:
            try:
                for future in as_completed([pool.submit(on_a_free_one, item) for item in items]):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)
