"""How this package talks to a region's Postgres: autocommit, explicit transactions, and a bound on every wait.

Session settings and the lock of a source live in the session: connect to Postgres itself, or to a pooler in session
mode, never to one in transaction mode.
"""

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedding_assets.errors import PermanentError, TransientError

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

_log = logging.getLogger(__name__)

LOCK_TIMEOUT: Final = "10s"
"""Any lock not named below: nobody but another run of ours holds one for long."""

QUEUE_TIMEOUT: Final = "1h"
"""For another load of the same source: it does the very work that we wait for."""

SWAP_LOCK_TIMEOUT: Final = "500ms"
"""For the table that readers use: while we wait for the lock, every new reader waits behind us."""

SWAP_ATTEMPTS: Final = 20
_LONGEST_PAUSE: Final = 5.0

# What a DSN does not say: no wait without an end, and a peer that vanished is noticed within two minutes.
_DEFAULTS: Final[dict[str, Any]] = {
    "application_name": "embedding-assets",
    "connect_timeout": 30,
    "keepalives_idle": 60,
    "keepalives_interval": 10,
    "keepalives_count": 6,
}

_NO_LIMITS: Final = (
    "statement_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
)

_SENT_AHEAD: Final = 4 << 20
"""Bytes on their way to a server on this machine. A local socket holds 200 kB, which a server loads in 0.6 ms; then it
waits while the next block is encoded, where TCP's would have grown. With this a load takes 0.88 of the time. The kernel
grants what `net.core.wmem_max` allows."""

# Beginnings of SQLSTATE that an operator must set right. Every other OperationalError may pass: network, restart, disk
# full, lock, limit.
_PERMANENT_STATES: Final = ("28", "3D", "42", "55000")
_PERMANENT_TEXTS: Final = (
    "authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry",
    "permission denied for database",
)  # fmt: skip


class SourceBusy(TransientError):
    """Somebody else holds the lock of the source."""


def connect(dsn: str) -> Connection:
    """Open a connection in autocommit mode. Raises TransientError or PermanentError, by the reason."""
    with pipeline_errors("connecting to the region's database"):
        conn = psycopg.connect(**_DEFAULTS | conninfo_to_dict(dsn), autocommit=True)
        with socket.socket(fileno=os.dup(conn.fileno())) as same:
            if same.family == socket.AF_UNIX:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_AHEAD)
        # The limits of a role or a database are meant for its applications: a long index build is no mistake, nor is a
        # session that waits for the next shard to be read, and every wait for a lock is bounded by itself. By name, for
        # Postgres has transaction_timeout from 17 on.
        conn.execute("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = ANY (%s)", [list(_NO_LIMITS)])
        # The server looks every two seconds whether a killed client still wants the index that it is building.
        conn.execute(sql.SQL("SET lock_timeout = {}; SET client_connection_check_interval = '2s'").format(LOCK_TIMEOUT))
    return conn


def dsn_of(conn: Connection) -> str:
    """What to `connect` to for another connection to the same database, by the same login role."""
    given: dict[str, Any] = {**conn.info.get_parameters(), "password": conn.info.password or None}
    return make_conninfo("", **given)


def another(conn: Connection) -> Connection:
    """A connection to the same database, as the same role. Raises as `connect` does."""
    opened = connect(dsn_of(conn))
    opened.execute("SELECT set_config('role', %s, false)", conn.execute("SELECT current_user").fetchone())
    return opened


@contextmanager
def pipeline_errors(doing: str) -> Iterator[None]:
    """Raise what Postgres raises as TransientError or PermanentError, with what was being done."""
    try:
        yield
    except psycopg.Error as error:
        message = f"{doing}: {str(error).strip() or type(error).__name__}"
        raise (PermanentError if _is_permanent(error) else TransientError)(message) from error


def _is_permanent(error: psycopg.Error) -> bool:
    if not isinstance(error, psycopg.OperationalError):
        return True
    if error.sqlstate is None:  # connecting failed: libpq tells the reason in words only
        return any(text in str(error) for text in _PERMANENT_TEXTS)
    return error.sqlstate.startswith(_PERMANENT_STATES)


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


def short_transaction(conn: Connection, doing: str, action: Callable[[], T]) -> T:
    """Run `action` in one transaction that takes a lock from under the readers; return what it returns.

    It gives up after `SWAP_LOCK_TIMEOUT`, so that readers are never held up for longer, and tries again after a pause
    with full jitter. Raises TransientError when `SWAP_ATTEMPTS` were not enough (about a minute).
    """
    for attempt in range(SWAP_ATTEMPTS):
        try:
            with conn.transaction():
                conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(SWAP_LOCK_TIMEOUT))
                return action()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            _log.info("%s: %s; trying again", doing, str(error).strip())
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.05 * 2**attempt)))  # noqa: S311 — jitter, no secret
    raise TransientError(
        f"{doing}: readers held the table's lock through {SWAP_ATTEMPTS} attempts. Look for a transaction left open, "
        "by xact_start in pg_stat_activity"
    )


def _lock_key(name: str) -> int:
    return int.from_bytes(sha256(f"embedding-assets {name}".encode()).digest()[:8], "big", signed=True)
