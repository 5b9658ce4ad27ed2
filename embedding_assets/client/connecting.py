"""How both clients connect: a pooler in transaction mode may stand in between, and each wait has an end."""

import math
import os
import socket
from contextlib import suppress
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict

from embedding_assets.errors import PermanentError

_DEFAULTS: Final[dict[str, Any]] = {
    "application_name": "embedding-assets client",
    # A peer that vanished is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
}


GRACE_SECONDS: Final = 1.0
"""After Postgres should have ended a search, before its line is cut."""


def parameters(dsn: str, timeout: float) -> dict[str, Any]:
    """What a connection is opened with, for psycopg. Nothing of a search is left in the session for another one.

    Statements are not pipelined either. psycopg sends a Flush behind each Sync, and a pooler that reads it by itself,
    later, gives this client a session for it and waits for an answer that never comes (pgbouncer issue 759).
    """
    return {
        **_DEFAULTS,
        "connect_timeout": math.ceil(timeout),
        **conninfo_to_dict(dsn),
        "client_encoding": "UTF8",  # against PGCLIENTENCODING
        "autocommit": True,
        "prepare_threshold": None,  # a prepared statement is the session's, which a pooler gives to others
    }


class Line:
    """A connection's socket, to be cut where the server has ceased to answer: it cannot keep to a time-out then.

    A descriptor of its own, so that it is this socket also where libpq has closed its one meanwhile.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))

    def cut(self) -> None:
        """End all that waits on it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """Let it be."""
        self._socket.close()


def closed() -> PermanentError:
    """What a closed client says."""
    return PermanentError("this client is closed. Cure: make another one, and close it when the program ends")
