"""How both clients connect: a pooler in transaction mode may stand in between, and each wait has an end."""

from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict

from embedding_assets.errors import PermanentError

_DEFAULTS: Final[dict[str, Any]] = {
    "application_name": "embedding-assets client",
    "connect_timeout": 10,
    # A peer that vanished is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
}


def parameters(dsn: str) -> dict[str, Any]:
    """What a connection is opened with, for psycopg. Nothing of a search is left in the session for another one."""
    return {
        **_DEFAULTS,
        **conninfo_to_dict(dsn),
        "client_encoding": "UTF8",  # against PGCLIENTENCODING
        "autocommit": True,
        "prepare_threshold": None,  # a prepared statement is the session's, which a pooler gives to others
    }


def closed() -> PermanentError:
    """What a closed client says."""
    return PermanentError("this client is closed. Cure: make another one, and close it when the program ends")
