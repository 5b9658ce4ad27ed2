"""What an application is told where its database fails it."""

from typing import Final

import psycopg
from psycopg_pool import PoolTimeout

from embedding_assets.errors import PermanentError, PipelineError, TransientError

# Beginnings of SQLSTATE: the session is lost, or was about to be; a lock was in the way.
_PASSING: Final = ("08", "57P", "40")
# libpq tells why it got no connection in words alone.
_REFUSED: Final = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")


def may_pass(error: psycopg.Error) -> bool:
    """Whether the same may succeed at once by another connection."""
    if isinstance(error, PoolTimeout | psycopg.errors.QueryCanceled) or not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(_PASSING)


def explained(error: psycopg.Error) -> PipelineError:
    """The error as applications get it, with its cure."""
    words = error.diag.message_primary or str(error).strip() or type(error).__name__
    if isinstance(error, PoolTimeout):
        return TransientError(f"searching: {words}. Cure: raise max_connections, or timeout")
    if isinstance(error, psycopg.errors.QueryCanceled):
        return TransientError(f"searching: {words}. Cure: ask again, or raise timeout")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return PermanentError(f"searching: {words}. Cure: GRANT embedding_search TO the role that this logs in as")
    if isinstance(error, psycopg.errors.UndefinedFunction | psycopg.errors.InvalidSchemaName):
        return PermanentError(
            f"searching: {words}. Cure: name a database in the DSN that embedding-assets materialize, of this version, "
            "has filled"
        )
    if isinstance(error, psycopg.OperationalError) and error.sqlstate != "55000":
        if (error.sqlstate or "").startswith(("28", "3D")) or any(text in words for text in _REFUSED):
            return PermanentError(
                f"connecting: {words}. Cure: correct host, database, user and password in the DSN, or have the "
                "database's administrator let this user in"
            )
        return TransientError(f"searching: {words}. Cure: see that the database answers, then ask again")
    hint = (error.diag.message_hint or "mend what Postgres names").rstrip(".")
    return PermanentError(f"searching: {words}. Cure: {hint}")
