"""A real Postgres for every test that wants one: the embedded server, once a session, and a fresh database a test."""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql

from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.indexes import recall
from embedding_assets.pgvector.schema import migrations
from embedding_assets_tests.embedding.conftest import running, standin  # noqa: F401
from embedding_assets_tests.snapshots.conftest import bucket, s3_environment, s3_server  # noqa: F401
from embedding_assets_tests.support.harness import REGIONS, Sandbox

# These machines are slow by fits: how long an example takes proves nothing.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def quick_measurement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where recall is not what the tests are about, a few queries measure it."""
    if request.module.__name__.rpartition(".")[2] not in ("test_filters", "test_index", "test_recall"):
        monkeypatch.setattr(recall, "QUESTIONS", 5)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Path]:
    """The home of a running embedded Postgres with a migrated database `template`."""
    # Not under pytest's own folder, which the next pytest closes to the server's user while this one still runs.
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-test-"))
    try:
        migrations.migrate(embedded.dsn(home, "template"))
        # Tests kill processes, never the machine: what the kernel holds is safe, and a database a test costs 10 × less.
        with psycopg.connect(embedded.dsn(home, "postgres"), autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET fsync = off")
            conn.execute("SELECT pg_reload_conf()")
        yield home
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


@contextmanager
def databases(postgres: Path) -> Iterator[Callable[..., str]]:
    """Makes migrated databases without models, or copies of another, and gives the DSN of each; they go at the end."""
    made: list[str] = []
    admin = embedded.dsn(postgres, "postgres")

    def make(template: str = "template") -> str:
        name = f"test_{next(_numbers)}"
        with psycopg.connect(admin, autocommit=True) as conn:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            conn.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        made.append(name)
        return embedded.dsn(postgres, name)

    yield make
    with psycopg.connect(admin, autocommit=True) as conn:
        for name in made:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def new_database(postgres: Path) -> Iterator[Callable[[], str]]:
    """Makes migrated databases for a test."""
    with databases(postgres) as make:
        yield make


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    """The DSN of a fresh migrated database."""
    return new_database()


@pytest.fixture
def sandbox(tmp_path: Path, new_database: Callable[[], str]) -> Sandbox:
    """A small deployment of its own: one empty source, two regions, two models."""
    box = Sandbox(tmp_path, {region: new_database() for region in REGIONS})
    box.docs.mkdir()
    return box
