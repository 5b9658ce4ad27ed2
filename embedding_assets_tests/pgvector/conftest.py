import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes import recall
from embedding_assets.pgvector.indexes.measurement import Measured
from embedding_assets_tests.support.toy import bind


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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """The home of a running Postgres of the module's own."""
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-test-"))
    try:
        with psycopg.connect(embedded.dsn(home, "postgres"), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("SELECT pg_reload_conf()")
        yield home
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


@pytest.fixture
def new_cluster(cluster: Path) -> Iterator[Callable[..., str]]:
    """A Postgres without our roles: makes databases, with pgvector or without, and returns the superuser's DSN.

    Databases and roles go after the test.
    """
    made: list[str] = []

    def make(database: str, pgvector: bool = True) -> str:
        dsn = embedded.dsn(cluster, database)
        made.append(database)
        if pgvector:
            with psycopg.connect(dsn, autocommit=True) as admin:
                admin.execute("CREATE EXTENSION vector")
        return dsn

    yield make
    with psycopg.connect(embedded.dsn(cluster, "postgres"), autocommit=True) as admin:
        for database in made:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
        roles = admin.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND NOT rolsuper").fetchall()
        if roles:
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.SQL(", ").join(sql.Identifier(role) for (role,) in roles)))


@pytest.fixture
def finds_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is built finds nine of ten: what a graph really finds differs from one build to the next."""
    curve = tuple(Measured(ef_search, 0.9, 1.0, 2.0) for ef_search in recall.EF_SEARCH)
    monkeypatch.setattr(recall, "measure_recall", lambda *_: (1_200, curve))
