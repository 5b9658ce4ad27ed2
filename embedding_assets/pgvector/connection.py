"""How this package talks to a region's Postgres: autocommit, explicit transactions, and a bound on every wait.

What its statements need it sets on its own connections, whatever the environment, the role or the database say.

Session settings and the lock of a source live in the session: connect to Postgres itself, or to a pooler in session
mode, never to one in transaction mode.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
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

# What environment, role and database may say otherwise, as people have them for their applications. Sent after
# connecting: a pooler refuses most of it as start-up parameters.
_SESSION: Final = {
    # A long index build is no mistake, nor is a session that waits for the next shard to be read. What readers could
    # wait for has limits of its own (locks.py).
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "lock_timeout": LOCK_TIMEOUT,
    # The server looks every two seconds whether a killed client still wants the index that it is building.
    "client_connection_check_interval": "2s",
    # How values are written and read, and what our statements mean.
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",  # the fewest digits that tell any two floats apart
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "default_transaction_isolation": "read committed",
    "row_security": "on",  # off: a statement that a policy would narrow fails
    "jit": "off",  # compiling takes longer than a search; recall is measured with 1,600 of them
}

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
    """Open a connection in autocommit mode.

    Raises TransientError or PermanentError, by the reason; the latter, with the cure, for a database that is not UTF8.
    """
    with pipeline_errors("connecting to the region's database"):
        # Against PGCLIENTENCODING, and whatever role and database have set.
        conn = psycopg.connect(**_DEFAULTS | conninfo_to_dict(dsn) | {"client_encoding": "UTF8"}, autocommit=True)
        with socket.socket(fileno=os.dup(conn.fileno())) as same:
            if same.family == socket.AF_UNIX:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_AHEAD)
        try:
            _set_up(conn)
        except BaseException:
            conn.close()
            raise
    return conn


def _set_up(conn: Connection) -> None:
    encoding = conn.info.parameter_status("server_encoding") or "UTF8"
    if encoding != "UTF8":
        raise PermanentError(
            f"database {conn.info.dbname!r} has the encoding {encoding}, which cannot hold every text, or checks none. "
            "Nothing was written. Cure: make another one with createdb --template=template0 --encoding=UTF8 "
            "--locale=C.UTF-8 <name>, and name that in the settings"
        )
    # By name, for no version has all of them.
    conn.execute(
        "SELECT set_config(name, value, false) FROM pg_settings "
        "JOIN unnest(%s::text[], %s::text[]) AS wanted (wanted, value) ON lower(name) = lower(wanted)",
        [list(_SESSION), list(_SESSION.values())],
    )
    # pgvector's types and operators, wherever its schema is.
    conn.execute(
        """
        SELECT set_config('search_path', concat_ws(', ', quote_ident(nspname), nullif(setting, '')), false)
        FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace,
             current_setting('search_path') AS setting
        WHERE extname = 'vector'
        """
    )


def dsn_of(conn: Connection) -> str:
    """What to `connect` to for another connection to the same database, by the same login role."""
    parameters: dict[str, Any] = {**conn.info.get_parameters(), "password": conn.info.password or None}
    return make_conninfo("", **parameters)


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
        what = f"{doing}: {str(error).strip() or type(error).__name__}"
        if _is_permanent(error):
            raise PermanentError(f"{what}. Cure: {_cure(error)}") from error
        raise TransientError(f"{what}. {_passing_cure(error)}") from error


def _is_permanent(error: psycopg.Error) -> bool:
    if _stood_still(error):
        return False
    if not isinstance(error, psycopg.OperationalError):
        return True
    if error.sqlstate is None:  # connecting failed: libpq tells the reason in words only
        return any(text in str(error) for text in _PERMANENT_TEXTS)
    return error.sqlstate.startswith(_PERMANENT_STATES)


def _cure(error: psycopg.Error) -> str:
    """What a person does about an error that does not pass."""
    if error.sqlstate is None or error.sqlstate.startswith(("28", "3D")):
        return (
            "correct host, database, user and password in this region's `database` (in a URL %23 is #, %25 is % and "
            "%40 is @), or have its administrator let this user in"
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "an administrator of the database runs sql/roles.sql, as its first lines say"
    return "mend what Postgres names, then embedding-assets materialize"


def _passing_cure(error: psycopg.Error) -> str:
    """What a person does about an error that may pass, where it does not."""
    if _stood_still(error):
        return "This process, or its machine, stood still in the middle of a transaction. Cure: run it again"
    if isinstance(error, psycopg.errors.DiskFull):
        return "Cure: free space on the database's disk, or enlarge it, and run it again"
    if isinstance(error, psycopg.errors.TooManyConnections) or "too many clients" in str(error):
        return "Cure: let the server, or the role, have more connections (max_connections), and run it again"
    return "Cure: see in the database's log why, and run it again once it answers"


def _stood_still(error: BaseException | None) -> bool:
    """Whether a limit of ours ended the session (locks.py), also where that came to light at the roll-back alone."""
    limits = psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout
    return error is not None and (isinstance(error, limits) or _stood_still(error.__context__))
