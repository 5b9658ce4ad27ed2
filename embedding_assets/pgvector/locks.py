"""Locks in a region's database, and an end to each: to the wait for one, and to the time that one is held.

What readers could wait for is held in short transactions alone. A process that stands still inside one, as a machine
that is moved does, loses its session, the transaction is rolled back, and the readers go on.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from socket import gethostname
from typing import Final, TypeVar

import psycopg
from psycopg import sql

from embedding_assets.errors import TransientError
from embedding_assets.pgvector.connection import Connection, another
from embedding_assets.telemetry.events import LockAwaited, Tell, unheard

T = TypeVar("T")

_log = logging.getLogger(__name__)

QUEUE_SECONDS: Final = 3600.0
"""For another load of the same source: it does the very work that we wait for."""

_SLICE_SECONDS: Final = 1.0
"""A wait within Postgres hears no signal."""

_COMMENT: Final = "Empty. Locked by whoever works on a source, or on the schema."

SCHEMA_LOCK: Final = "lock_schema"
_LOCK: Final = sql.SQL("LOCK TABLE embedding_assets.{} IN SHARE UPDATE EXCLUSIVE MODE")
"""Excludes itself alone, and takes a right to write."""

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
        f"{doing}: readers held the table's lock through {SWAP_ATTEMPTS} attempts. Cure: end the transaction that was "
        "left open, by xact_start in pg_stat_activity, and run this again"
    )


@contextmanager
def source_lock(conn: Connection, source: str, patience: float = QUEUE_SECONDS, tell: Tell = unheard) -> Iterator[None]:
    """Hold the lock of a source: whoever loads, indexes or publishes it queues here. No session takes it twice.

    It is that of an empty table, in a transaction of a session of its own, which so keeps no dead row from VACUUM: who
    may only search has no right to take it. It dies with this process. Raises SourceBusy, with its holder, where it was
    not to be had for so many seconds.
    """
    name = _lock_of(source)
    with closing(another(conn)) as keeper, held(keeper, name, f"source {source!r}", patience, tell):
        yield


@contextmanager
def held(conn: Connection, name: str, what: str, patience: float, tell: Tell = unheard) -> Iterator[None]:
    """Hold the lock of a table of `embedding_assets` in a transaction of this connection.

    It waits a second at a time, so that a signal is heard, and tells each time who holds it. Raises SourceBusy where it
    was not to be had for so many seconds.
    """
    conn.execute(
        "SELECT set_config('application_name', %s, false), set_config('lock_timeout', %s, false)",
        [
            f"embedding-assets lock {os.getpid()}@{gethostname()[:12]} since {datetime.now(UTC):%H:%M:%SZ}",
            f"{min(_SLICE_SECONDS, patience) * 1000:.0f}ms",
        ],
    )
    began = time.monotonic()
    _make(conn, name)
    while not _is_taken(conn, name):
        waited, holders = time.monotonic() - began, _holders(conn, name)
        tell(LockAwaited(what, waited, holders))
        if waited >= patience:
            raise SourceBusy(
                f"{what}: another run has been at work on it for over {patience:g} s: {holders}. Cure: let it end, or "
                "end it (in the database by SELECT pg_terminate_backend(<session>)), and run this again"
            )
    try:
        yield
    finally:
        if not conn.closed:
            try:
                conn.execute("ROLLBACK")
            except psycopg.OperationalError as error:
                _log.warning("%s: the session that held its lock was ended meanwhile: %s", what, str(error).strip())


def _is_taken(conn: Connection, name: str) -> bool:
    """Take the lock in a new transaction, within `lock_timeout`."""
    conn.execute("BEGIN")
    try:
        conn.execute(_LOCK.format(sql.Identifier(name)))
    except psycopg.errors.LockNotAvailable:
        conn.execute("ROLLBACK")
        return False
    except psycopg.errors.UndefinedTable:  # its source was forgotten this moment
        conn.execute("ROLLBACK")
        _make(conn, name)
        return False
    return True


def drop_source_lock(conn: Connection, source: str) -> None:
    """Drop the table of a source's lock, for a source that is no more. Whoever waits for it makes it again.

    Left alone where somebody holds it, or where another role than this one made it.
    """
    name = _lock_of(source)
    if _is_there(conn, name):
        try:
            with conn.transaction():
                conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(SWAP_LOCK_TIMEOUT))
                conn.execute(sql.SQL("DROP TABLE IF EXISTS embedding_assets.{}").format(sql.Identifier(name)))
        except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege) as error:
            _log.info("the lock of source %r stays: %s", source, str(error).strip())


def _lock_of(source: str) -> str:
    return f"lock_{sha256(source.encode()).hexdigest()[:16]}"


def schema_lock(conn: Connection) -> None:
    """Take the lock for changes of the schema, until the end of the transaction."""
    conn.execute(_LOCK.format(sql.Identifier(SCHEMA_LOCK)))


def _make(conn: Connection, name: str) -> None:
    table = sql.SQL("embedding_assets.{}").format(sql.Identifier(name))
    if not _is_there(conn, name):
        try:
            conn.execute(sql.SQL("CREATE TABLE {0} (); COMMENT ON TABLE {0} IS {1}").format(table, _COMMENT))
            # Another role's load may have come first, before there was a role for all of them.
            if conn.execute("SELECT to_regrole('embedding_ingest') IS NOT NULL").fetchone() == (True,):
                conn.execute(sql.SQL("GRANT ALL ON {} TO embedding_ingest").format(table))
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject):
            _log.debug("another process was quicker")


def _is_there(conn: Connection, name: str) -> bool:
    table = sql.SQL("embedding_assets.{}").format(sql.Identifier(name))
    return conn.execute("SELECT to_regclass(%s) IS NOT NULL", [table.as_string(conn)]).fetchone() == (True,)


def _holders(conn: Connection, name: str) -> str:
    """Who holds the lock, as far as this role may know: our own sessions have names that tell."""
    rows = conn.execute(
        """
        SELECT format('session %%s (%%s%%s)', pid, coalesce(nullif(application_name, ''), 'without a name'),
                      ', since ' || date_trunc('second', xact_start))
        FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
        WHERE relation = to_regclass(%s) AND granted AND pid <> pg_backend_pid() ORDER BY pid
        """,
        [f"embedding_assets.{name}"],
    ).fetchall()
    return ", ".join(holder for (holder,) in rows) or "it has ended this moment"
