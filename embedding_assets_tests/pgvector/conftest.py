from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from embedding_assets.pgvector import embedded, recall
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets_tests.pgvector.toy import bind


@pytest.fixture(autouse=True)
def quick_measurement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where recall is not what the tests are about, a few queries measure it."""
    if request.module.__name__.rpartition(".")[2] not in ("test_filters", "test_index", "test_recall"):
        monkeypatch.setattr(recall, "_SAMPLES", 5)


@pytest.fixture
def region(database: str) -> Iterator[Connection]:
    """A connection to a database with the toy models bound."""
    with connect(database) as conn:
        bind(conn)
        yield conn


@pytest.fixture(scope="session")
def scratch(postgres: Path) -> str:
    """The DSN of a database with pgvector and nothing else, for tables that a test makes and rolls back."""
    dsn = embedded.dsn(postgres, "scratch")
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
    return dsn


@pytest.fixture(scope="module")
def search_database(postgres: Path) -> Iterator[str]:
    """The DSN of a migrated database that lasts for a module."""
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE search TEMPLATE template")
        yield embedded.dsn(postgres, "search")
        admin.execute("DROP DATABASE search WITH (FORCE)")
