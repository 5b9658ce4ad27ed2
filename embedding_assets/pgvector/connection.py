"""How this package talks to a region's Postgres: autocommit, explicit transactions, and a bound on every wait.

Session settings and the lock of a source live in the session: connect to Postgres itself, or to a pooler in session
mode, never to one in transaction mode.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedding_assets.errors import PermanentError, TransientError

Connection = psycopg.Connection[tuple[Any, ...]]

LOCK_TIMEOUT: Final = "10s"
"""Any lock not named below: nobody but another run of ours holds one for long."""

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


def connect(dsn: str) -> Connection:
    """Open a connection in autocommit mode. Raises TransientError or PermanentError, by the reason."""
    with pipeline_errors("connecting to the region's database"):
        conn = psycopg.connect(**_DEFAULTS | conninfo_to_dict(dsn), autocommit=True)
        with socket.socket(fileno=os.dup(conn.fileno())) as same:
            if same.family == socket.AF_UNIX:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_AHEAD)
        # The limits of a role or a database are meant for its applications: a long index build is no mistake, nor is a
        # session that waits for the next shard to be read. What readers could wait for has limits of its own
        # (locks.py). By name, for Postgres has transaction_timeout from 17 on.
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
        if _stood_still(error):
            message += ". This process, or its machine, stood still in the middle of a transaction. Cure: run it again"
        raise (PermanentError if _is_permanent(error) else TransientError)(message) from error


def _is_permanent(error: psycopg.Error) -> bool:
    if _stood_still(error):
        return False
    if not isinstance(error, psycopg.OperationalError):
        return True
    if error.sqlstate is None:  # connecting failed: libpq tells the reason in words only
        return any(text in str(error) for text in _PERMANENT_TEXTS)
    return error.sqlstate.startswith(_PERMANENT_STATES)


def _stood_still(error: BaseException | None) -> bool:
    """Whether a limit of ours ended the session (locks.py), also where that came to light at the roll-back alone."""
    limits = psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout
    return error is not None and (isinstance(error, limits) or _stood_still(error.__context__))
