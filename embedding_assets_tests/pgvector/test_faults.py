"""Faults of the server: each ends in a clear error or a retry, the old edition serves meanwhile, the next run heals.

A fault strikes where the loader passes a failpoint, and is a real one: a backend ended, a server stopped, a full disk.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_assets.errors import TransientError
from embedding_assets.pgvector import embedded, postmaster
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.loading import delta, generations
from embedding_assets.pgvector.publishing import publish
from embedding_assets.pgvector.schema import migrations
from embedding_assets.pgvector.schema.models import ensure_models
from embedding_assets.snapshots.failpoints import Failpoint
from embedding_assets_tests.support.readers import Library, assert_published

SECONDS = 60  # that anything here may take, at the very most

OLD = Library(documents=20)
NEW = replace(OLD, edition=1)
LARGE = replace(NEW, documents=100)  # builds its index for long enough to be met at it
FEW = replace(OLD, newer=frozenset({0, 20, 40}))

Strike = Callable[[], object]
Way = Callable[[psycopg.Connection[tuple[object, ...]]], None]


@pytest.fixture(scope="module")
def old_edition(postgres: Path) -> Iterator[str]:
    """The name of a database that serves the old edition, to make others from."""
    name = "faults"
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE faults TEMPLATE template")
        serve(embedded.dsn(postgres, name))
        yield name
        admin.execute("DROP DATABASE faults WITH (FORCE)")


@pytest.fixture
def serving(postgres: Path, old_edition: str) -> Iterator[str]:
    """The DSN of a database that serves the old edition."""
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE faulty TEMPLATE {}").format(sql.Identifier(old_edition)))
        yield embedded.dsn(postgres, "faulty")
        admin.execute("DROP DATABASE faulty WITH (FORCE)")


def serve(dsn: str) -> str:
    with connect(dsn) as conn:
        ensure_models(conn, OLD.models, "v1")
        OLD.reload(conn)
    return dsn


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """The home of a server that these tests may stop."""
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-test-"))
    try:
        yield home
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


@pytest.fixture
def own(home: Path) -> Iterator[str]:
    """A database, on the server that may be stopped, that serves the old edition."""
    dsn = embedded.dsn(home, "faults")
    migrations.migrate(dsn)
    yield serve(dsn)
    with psycopg.connect(embedded.dsn(home, "postgres"), autocommit=True) as admin:
        admin.execute("DROP DATABASE faults WITH (FORCE)")


def at(monkeypatch: pytest.MonkeyPatch, point: Failpoint, strike: Strike) -> list[str]:
    """Have the fault strike once, where a loader comes by this failpoint; returns where it struck."""
    struck: list[str] = []

    def failpoint(name: Failpoint) -> None:
        if name is point and not struck:
            struck.append(name)
            strike()

    for module in (delta, generations, publish):
        monkeypatch.setattr(module, "failpoint", failpoint)
    return struck


@contextmanager
def in_a_build(dsn: str, strike: Strike) -> Iterator[list[str]]:
    """Have the fault strike once, while vectors are put into an HNSW graph; yields where it struck."""
    struck: list[str] = []
    deadline = time.monotonic() + SECONDS

    def watch() -> None:
        with psycopg.connect(dsn, autocommit=True, application_name="watcher") as admin:
            while not struck and time.monotonic() < deadline:
                if admin.execute(
                    "SELECT FROM pg_stat_progress_create_index WHERE phase = 'building index: loading tuples'"
                ).rowcount:
                    struck.append("build")
        if struck:
            strike()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield struck
    finally:
        watcher.join()


def end_backends(dsn: str) -> Strike:
    """End every backend of the loader, as an operator or a failing proxy does."""

    def strike() -> None:
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'embedding-assets'"
            )

    return strike


def stop_and_start(home: Path) -> Strike:
    """Stop the server as `pg_ctl stop -m immediate` does, and start it again."""

    def strike() -> None:
        pid_file = home / "postgres" / "data" / "postmaster.pid"
        pid = int(pid_file.read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + SECONDS
        while postmaster.running(pid_file.parent) == pid:
            assert time.monotonic() < deadline, "the server does not stop"
        embedded.ensure_running(home)

    return strike


def editions(dsn: str) -> set[str]:
    """What readers see."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        rows = conn.execute("SELECT content FROM live_chunks").fetchall()
    assert len(rows) == 4 * OLD.documents * OLD.shards
    return {content.partition(",")[0] for (content,) in rows}


def assert_heals(dsn: str, library: Library) -> None:
    """The next run comes to what an undisturbed one does, and leaves nothing behind."""
    with connect(dsn) as conn:
        way(library)(conn)
        assert_published(conn, library)
        assert conn.execute("SELECT state, target_root FROM embedding_assets.generations").fetchall() == [
            ("published", library.root)
        ]
        assert conn.execute("SELECT count(*) FROM pg_class WHERE relname ~ '^generation_[0-9]+$'").fetchone() == (1,)
        assert conn.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone() == (0,)


def way(library: Library) -> Way:
    return library.follow if library.newer else library.reload


def run_into(dsn: str, library: Library, told: str) -> None:
    """Load, and meet a fault that a retry heals."""
    with connect(dsn) as conn, pytest.raises(TransientError, match=told):
        way(library)(conn)


STEPS = [
    (NEW, Failpoint.GENERATION_CREATE),
    (NEW, Failpoint.SHARD_BLOCK),
    (NEW, Failpoint.SHARD_COPIED),
    (NEW, Failpoint.PUBLISH_SWAP),
    (FEW, Failpoint.SHARD_BLOCK),
    (FEW, Failpoint.DELTA_DELETED),
    (FEW, Failpoint.DELTA_LEDGER),
]


def named(value: object) -> str:
    return ("delta" if value.newer else "reload") if isinstance(value, Library) else str(value)


@pytest.mark.parametrize(("library", "point"), STEPS, ids=named)
def test_a_loader_whose_backends_are_ended_says_so_and_the_next_run_finishes(
    serving: str, library: Library, point: Failpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck = at(monkeypatch, point, end_backends(serving))

    run_into(serving, library, "source 'handbook': .*(terminating connection|closed|lost)")

    assert struck == [point]
    if library is NEW:
        assert editions(serving) == {"edition 0"}
    assert_heals(serving, library)


def test_an_index_build_whose_backend_is_ended_says_so_and_the_next_run_finishes(serving: str) -> None:
    with in_a_build(serving, end_backends(serving)) as struck:
        run_into(serving, LARGE, "building the indexes of source 'handbook'")

    assert struck == ["build"]
    assert editions(serving) == {"edition 0"}
    assert_heals(serving, LARGE)


@pytest.mark.parametrize(
    ("library", "point"), [(NEW, Failpoint.SHARD_COPIED), (FEW, Failpoint.DELTA_DELETED)], ids=named
)
def test_a_server_that_stops_at_once_and_comes_back_still_serves_and_the_next_run_finishes(
    home: Path, own: str, library: Library, point: Failpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck = at(monkeypatch, point, stop_and_start(home))

    run_into(own, library, "source 'handbook'")

    assert struck == [point]
    if library is NEW:
        assert editions(own) == {"edition 0"}
    assert_heals(own, library)


@pytest.mark.slow
def test_a_server_that_stops_in_an_index_build_still_serves_and_the_next_run_finishes(home: Path, own: str) -> None:
    with in_a_build(own, stop_and_start(home)) as struck:
        run_into(own, LARGE, "building the indexes of source 'handbook'")

    assert struck == ["build"]
    assert editions(own) == {"edition 0"}
    assert_heals(own, LARGE)


@pytest.mark.parametrize(
    "setting",
    [
        "statement_timeout",
        "lock_timeout",
        "transaction_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
    ],
)
def test_time_limits_that_are_meant_for_applications_do_not_end_a_load(
    serving: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every database has them who once had an application that forgot a transaction."""
    with psycopg.connect(serving, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} SET {} = '50ms'").format(
            sql.Identifier(admin.info.dbname), sql.Identifier(setting)
        ))  # fmt: skip
        # A loader that is slow for longer than the limit in the midst of its transaction.
        struck = at(monkeypatch, Failpoint.SHARD_COPIED, lambda: admin.execute("SELECT pg_sleep(0.2)"))
        assert_heals(serving, NEW)

    assert struck


@pytest.fixture
def small_disk(home: Path, own: str) -> Iterator[tuple[str, Path]]:
    """A database whose tables go to a disk of 64 kB from now on, and that disk."""
    disk = Path(tempfile.mkdtemp(prefix="embedding-assets-disk-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", disk], check=False).returncode:
        disk.rmdir()
        pytest.skip("mounting a small disk takes root's rights")
    try:
        server = pwd.getpwuid((home / "postgres" / "data").stat().st_uid)
        os.chown(disk, server.pw_uid, server.pw_gid)
        with psycopg.connect(own, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(disk)))
            admin.execute("ALTER DATABASE faults SET default_tablespace = small")
        yield own, disk
        with psycopg.connect(own, autocommit=True) as admin:
            admin.execute("DROP SCHEMA embedding_assets CASCADE")
        with psycopg.connect(embedded.dsn(home, "postgres"), autocommit=True) as admin:
            admin.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
        with suppress(OSError):
            disk.rmdir()


def test_a_full_disk_is_told_and_the_next_run_goes_on_where_there_is_room(small_disk: tuple[str, Path]) -> None:
    dsn, disk = small_disk
    for size, told in (
        ("64k", "loading source 'handbook': .*No space left on device"),
        ("1m", "building the indexes of source 'handbook': .*No space left on device"),
    ):
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
        run_into(dsn, LARGE, told)
        assert editions(dsn) == {"edition 0"}

    subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
    assert_heals(dsn, LARGE)


def test_a_long_reader_makes_publishing_wait_and_nobody_else(serving: str) -> None:
    """Whoever comes while publishing waits for the lock waits for no longer than an attempt."""
    trouble: list[BaseException] = []

    def load() -> None:
        try:
            with connect(serving) as conn:
                NEW.reload(conn)
        except BaseException as error:
            trouble.append(error)

    loader = threading.Thread(target=load)
    with psycopg.connect(serving) as reader, psycopg.connect(serving, autocommit=True) as other:
        reader.execute("SELECT count(*) FROM live_chunks")
        loader.start()
        waits, deadline = 0, time.monotonic() + SECONDS
        while waits < 3:
            assert time.monotonic() < deadline, "publishing never waited"
            waiting = other.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
                "AND query LIKE 'ALTER TABLE%DETACH%'"
            ).rowcount
            if waiting:
                other.execute("SET statement_timeout = '3s'")  # SWAP_LOCK_TIMEOUT, and a machine that is slow by fits
                assert other.execute("SELECT count(*) FROM live_chunks").fetchone() == (4 * 20 * 4,)
                waits += 1
        assert editions(serving) == {"edition 0"}
    loader.join(SECONDS)

    assert trouble == []
    assert editions(serving) == {"edition 1"}


@pytest.fixture
def limited(serving: str) -> Iterator[tuple[str, Callable[[int], None]]]:
    """The DSN of a loader that is no superuser, and what sets how many connections it may have."""
    with psycopg.connect(serving, autocommit=True) as admin:
        role = sql.Identifier(f"loader_{admin.info.dbname}")
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE embedding_ingest").format(role))

        def limit(connections: int) -> None:
            admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(role, connections))

        try:
            yield make_conninfo(serving, user=f"loader_{admin.info.dbname}"), limit
        finally:
            admin.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_server_without_a_connection_to_spare_is_loaded_by_one(
    limited: tuple[str, Callable[[int], None]], serving: str
) -> None:
    loader, limit = limited
    limit(2)  # one loads, one holds the lock of the source

    with connect(loader) as conn:
        conn.execute("SET ROLE embedding_ingest")
        NEW.reload(conn)

    assert_heals(serving, NEW)


def test_a_server_without_any_connection_says_so_and_the_next_run_finishes(
    limited: tuple[str, Callable[[int], None]], serving: str
) -> None:
    loader, limit = limited
    limit(1)

    with connect(loader), pytest.raises(TransientError, match="too many connections"):
        connect(loader)

    assert editions(serving) == {"edition 0"}
    limit(2)
    with connect(loader) as conn:
        conn.execute("SET ROLE embedding_ingest")
        NEW.reload(conn)
        assert_published(conn, NEW)
