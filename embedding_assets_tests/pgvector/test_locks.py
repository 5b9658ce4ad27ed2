"""Locks in a region's database: who may take them, who is told of, and how a wait ends."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import psycopg
import pytest

from embedding_assets.pgvector import locks
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.locks import SourceBusy, drop_source_lock, source_lock
from embedding_assets.telemetry.events import Event, LockAwaited
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.toy import Toy, source

HASTY = 0.1
LOCK = f"lock_{sha256(b'handbook').hexdigest()[:16]}"

WAITS = """
import signal, sys
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.locks import source_lock
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
with connect(sys.argv[1]) as conn:
    print("waiting", flush=True)
    with source_lock(conn, "handbook"):
        pass
"""


@pytest.mark.parametrize("mode", ["ACCESS SHARE", "SHARE UPDATE EXCLUSIVE", "ACCESS EXCLUSIVE"])
def test_who_may_only_search_holds_nobody_up(region: Connection, database: str, mode: str) -> None:
    Toy().publish_to(region)
    found = region.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relname ~ '^lock_' AND relkind = 'r'"
    ).fetchall()

    with psycopg.connect(database, autocommit=True) as searcher:
        searcher.execute("SET ROLE embedding_search")
        assert len(found) == 2  # the schema's and the source's
        for (table,) in found:
            with pytest.raises(psycopg.errors.InsufficientPrivilege), searcher.transaction():
                searcher.execute(f"LOCK TABLE {table} IN {mode} MODE".encode())


def test_two_never_hold_a_source_and_another_one_is_free(region: Connection, database: str) -> None:
    with connect(database) as other, source_lock(region, "one"):
        with pytest.raises(SourceBusy), source_lock(other, "one", HASTY):
            pass
        with source_lock(other, "two", HASTY):
            pass
    with source_lock(region, "one", HASTY):
        pass


def test_a_wait_names_the_holder_and_ends_with_a_cure_that_works(
    region: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_SLICE_SECONDS", 0.05)

    events: list[Event] = []
    with connect(database) as other, source_lock(other, "handbook"):
        with (
            pytest.raises(SourceBusy, match="Cure: ") as busy,
            source_lock(region, "handbook", 0.2, events.append),
        ):
            pass
        session = re.search(r"session (\d+) \(embedding-assets lock \d+@\S+ since \d\d:\d\d:\d\dZ", str(busy.value))
        assert session is not None
        waits = of_kind(events, LockAwaited)
        assert {wait.what for wait in waits} == {"source 'handbook'"}
        assert all(session[0] in wait.holder for wait in waits)
        assert waits == sorted(waits, key=lambda wait: wait.seconds)
        assert len(waits) >= 2
        region.execute("SELECT pg_terminate_backend(%s)", [int(session[1])])
        with source_lock(region, "handbook", 10):
            pass


def test_a_lock_that_is_dropped_while_somebody_waits_for_it_is_made_again_and_had(
    region: Connection, database: str
) -> None:
    def drop() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute(f"DROP TABLE embedding_assets.{LOCK}".encode())

    def wait() -> None:
        with connect(database) as conn, source_lock(conn, "handbook", 60):
            had.append(True)

    had: list[bool] = []
    with ThreadPoolExecutor(2) as pool:
        with connect(database) as holder, source_lock(holder, "handbook"):
            dropped = pool.submit(drop)
            until_waiting(region, 1)
            waited = pool.submit(wait)
            until_waiting(region, 2)
        dropped.result(), waited.result()

    assert had == [True]
    drop_source_lock(region, "handbook")
    assert region.execute("SELECT to_regclass(%s)", [f"embedding_assets.{LOCK}"]).fetchone() == (None,)


def test_a_lock_that_somebody_holds_is_not_dropped(region: Connection, database: str) -> None:
    with connect(database) as holder, source_lock(holder, "handbook"):
        drop_source_lock(region, "handbook")
        with pytest.raises(SourceBusy), source_lock(region, "handbook", HASTY):
            pass


def until_waiting(conn: Connection, sessions: int) -> None:
    """Until so many sessions wait for the lock of the handbook."""
    query = "SELECT count(*) FROM pg_locks WHERE relation = to_regclass(%s) AND NOT granted"
    while conn.execute(query, [f"embedding_assets.{LOCK}"]).fetchone() != (sessions,):
        pass


def test_what_fails_for_a_lock_inside_is_not_taken_for_this_one(region: Connection) -> None:
    with pytest.raises(psycopg.errors.LockNotAvailable), source_lock(region, "handbook"):
        raise psycopg.errors.LockNotAvailable("another lock")


def test_a_run_that_waits_hears_a_signal(region: Connection, database: str) -> None:
    command = [sys.executable, "-c", WAITS, database]
    with source_lock(region, "handbook"), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waiting\n"
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(30) == 7


def test_the_lock_keeps_no_dead_row_from_vacuum(region: Connection) -> None:
    served = source()
    served.publish(region)
    with source_lock(region, served.name):
        horizons = region.execute(
            "SELECT backend_xid, backend_xmin FROM pg_stat_activity WHERE application_name ~ 'embedding-assets lock' "
            "AND datname = current_database()"
        ).fetchall()
    assert horizons == [(None, None)]
