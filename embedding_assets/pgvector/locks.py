"""Locks in a region's database, and an end to each: to the wait for one, and to the time that one is held.

What readers could wait for is held in short transactions alone. A process that stands still inside one, as a machine
that is moved does, loses its session, the transaction is rolled back, and the readers go on.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Final, TypeVar

import psycopg
from psycopg import sql

from embedding_assets.errors import TransientError
from embedding_assets.pgvector.connection import LOCK_TIMEOUT, Connection

T = TypeVar("T")

_log = logging.getLogger(__name__)

QUEUE_TIMEOUT: Final = "1h"
"""For another load of the same source: it does the very work that we wait for."""

SWAP_LOCK_TIMEOUT: Final = "500ms"
"""For the table that readers use: while we wait for the lock, every new reader waits behind us."""

SWAP_ATTEMPTS: Final = 20
_LONGEST_PAUSE: Final = 5.0

STANDSTILL_MS: Final = 5_000
"""A transaction whose client says nothing for so long is rolled back: between two statements it has little to do."""

SHORT_MS: Final = 10_000
"""The most that a transaction may take from under whose lock readers wait: it takes 10 to 20 ms."""


class SourceBusy(TransientError):
    """Somebody else holds the lock of the source."""


@contextmanager
def transaction(conn: Connection, longest_ms: int = 0) -> Iterator[None]:
    """A transaction that Postgres ends where this process stands still between its statements (`STANDSTILL_MS`).

    With `longest_ms`, for one that readers could wait for, also where it takes longer than that in all (before
    PostgreSQL 17: where one of its statements does), and no stricter limit of an administrator is overruled. Where it
    came to that the session is lost, and `pipeline_errors` says what to do.
    """
    with conn.transaction():
        limit(conn, longest_ms, local=True)
        yield


def limit(conn: Connection, longest_ms: int, *, local: bool) -> None:
    """Set the limits of `transaction`, for the present one or for all that follow in this session."""
    most = {"idle_in_transaction_session_timeout": STANDSTILL_MS}
    if longest_ms:
        most |= {"transaction_timeout": longest_ms, "statement_timeout": longest_ms}
    # reset_val: what role and database say, whatever this session has set since. By name, for Postgres has
    # transaction_timeout from 17 on.
    conn.execute(
        """
        SELECT set_config(
            name, CASE WHEN %s AND reset_val::bigint BETWEEN 1 AND most THEN reset_val ELSE most::text END, %s
        )
        FROM pg_settings JOIN unnest(%s::text[], %s::bigint[]) AS wanted (name, most) USING (name)
        """,
        [longest_ms > 0, local, list(most), list(most.values())],
    )


def short_transaction(conn: Connection, doing: str, action: Callable[[], T]) -> T:
    """Run `action` in one transaction that takes a lock from under the readers; return what it returns.

    It waits for a lock no longer than `SWAP_LOCK_TIMEOUT` and lasts no longer than `SHORT_MS`, so that readers are
    never held up for longer. Raises as `until_granted` does.
    """

    def attempt() -> T:
        with transaction(conn, SHORT_MS):
            conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(SWAP_LOCK_TIMEOUT))
            return action()

    return until_granted(doing, attempt)


def until_granted(doing: str, attempt: Callable[[], T]) -> T:
    """Call `attempt` until it gets the locks that it needs, after pauses with full jitter; return what it returns.

    Raises TransientError when `SWAP_ATTEMPTS` were not enough (about a minute).
    """
    for count in range(SWAP_ATTEMPTS):
        try:
            return attempt()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            _log.info("%s: %s; trying again", doing, str(error).strip())
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.05 * 2**count)))  # noqa: S311 — jitter, no secret
    raise TransientError(
        f"{doing}: readers held the table's lock through {SWAP_ATTEMPTS} attempts. Look for a transaction left open, "
        "by xact_start in pg_stat_activity"
    )


@contextmanager
def source_lock(conn: Connection, source: str, patience: str = QUEUE_TIMEOUT) -> Iterator[None]:
    """Hold the lock of a source: whoever loads, indexes or publishes it queues here. It dies with the connection.

    Raises SourceBusy where it was not to be had for as long as `patience` says.
    """
    key = _lock_key(f"source {source}")
    try:
        conn.execute(sql.SQL("SET lock_timeout = {}").format(patience))
        conn.execute("SELECT pg_advisory_lock(%s)", [key])
    except psycopg.errors.LockNotAvailable:
        raise SourceBusy(
            f"source {source!r}: another process has been loading it into this database for over {patience}"
        ) from None
    finally:
        if not conn.closed:
            conn.execute(sql.SQL("SET lock_timeout = {}").format(LOCK_TIMEOUT))
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s)", [key])


def schema_lock(conn: Connection) -> None:
    """Take the lock for changes of the schema, until the end of the transaction."""
    conn.execute("SELECT pg_advisory_xact_lock(%s)", [_lock_key("schema")])


def _lock_key(name: str) -> int:
    return int.from_bytes(sha256(f"embedding-assets {name}".encode()).digest()[:8], "big", signed=True)
