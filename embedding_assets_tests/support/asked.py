"""What databases are asked meanwhile: the connections to each, and the statements on them, by the database's name."""

from collections import Counter
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict


class Asked:
    """Counts from when it is made to the end of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connections: Counter[str] = Counter()
        self.statements: Counter[str] = Counter()
        connect, execute = psycopg.connect, psycopg.Connection.execute

        def counting_connect(*given: Any, **more: Any) -> Any:
            conn = connect(*given, **more)
            self.connections[conn.info.dbname] += 1
            return conn

        def counting_execute(conn: psycopg.Connection[Any], *given: Any, **more: Any) -> Any:
            self.statements[conn.info.dbname] += 1
            return execute(conn, *given, **more)

        monkeypatch.setattr(psycopg, "connect", counting_connect)
        monkeypatch.setattr(psycopg.Connection, "execute", counting_execute)

    def forget(self) -> None:
        """Begin at nothing again."""
        self.connections.clear()
        self.statements.clear()


def name_of(dsn: str) -> str:
    """The name of the database that a DSN is of."""
    return str(conninfo_to_dict(dsn)["dbname"])
