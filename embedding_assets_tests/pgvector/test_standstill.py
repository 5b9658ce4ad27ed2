"""A run that stands still inside a transaction: readers go on in time, and the run, woken, ends right."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psycopg
import pytest

from embedding_assets.pgvector import locks
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.standstill import CHANGED, NEW, OLD, SERVED
from embedding_assets_tests.support.toy import assert_serves, row

QUERY = vector_literal(row(1).v1)  # type: ignore[arg-type]

# Who is in the middle of a transaction, or has sent its answer and not yet said that it waits there; a lock that nobody
# but such runs ever waits for has a session of its own.
STANDING = """
    SELECT application_name, query FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
    AND application_name !~ ' lock'
"""


def stand_still(dsn: str, operation: str, milliseconds: int = 200, most: int = 100) -> list[str]:
    """Have an operation stopped at each statement of its transactions, and ask as a reader each time.

    Returns how each attempt ended, the last of which was not stopped.
    """
    command = [sys.executable, "-m", "embedding_assets_tests.support.standstill", dsn, operation, str(milliseconds)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run,
        psycopg.connect(dsn, autocommit=True) as reader,
    ):
        try:
            # The limit, and what a machine that is slow by fits takes.
            reader.execute("SELECT set_config('statement_timeout', %s, false)", [str(milliseconds + 10_000)])
            for _ in range(most):
                ended = os.waitid(os.P_PID, run.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                if ended is None or ended.si_code != os.CLD_STOPPED:
                    break
                os.waitid(os.P_PID, run.pid, os.WSTOPPED)  # only looked at above, so that Popen learns how it ended
                assert reader.execute("SELECT count(*) > 0 FROM live_chunks").fetchone() == (True,)
                until = time.monotonic() + milliseconds / 1000 + 10
                while standing := reader.execute(STANDING).fetchall():
                    assert time.monotonic() < until, f"a run that stands still is still in its transaction: {standing}"
                    reader.execute("SELECT pg_sleep(0.02)")
                os.kill(run.pid, signal.SIGCONT)
                os.waitid(os.P_PID, run.pid, os.WCONTINUED)
        finally:
            if sys.exc_info()[0]:
                run.kill()
        assert run.stdout is not None
        return run.stdout.read().splitlines()


def assert_ended_well(ends: list[str], stops: int) -> None:
    """Stopped so many times at least, each time cleanly, and at last it was done."""
    assert len(ends) > stops
    assert ends[-1] == "done"
    assert [end for end in ends if end != "done" and not end.startswith("TransientError: ")] == []
    assert any("Cure: run it again" in end for end in ends)


def test_a_swap_that_stands_still_at_any_statement_holds_no_reader_up(region: Connection, database: str) -> None:
    OLD.publish_to(region)
    load_generation(region, NEW.name, NEW.root, NEW.refs, NEW.read)
    build_indexes(region, NEW.name, NEW.root)

    assert_ended_well(stand_still(database, "publish"), stops=7)

    rows = region.execute("SELECT DISTINCT split_part(content, ',', 1) FROM live_chunks").fetchall()
    assert rows == [("edition 1",)]


def test_a_delta_that_stands_still_leaves_nothing_locked(region: Connection, database: str) -> None:
    SERVED.publish(region)

    assert_ended_well(stand_still(database, "delta"), stops=4)

    assert_serves(region, CHANGED)


def test_a_switch_of_the_live_model_that_stands_still_holds_no_reader_up(region: Connection, database: str) -> None:
    OLD.publish_to(region)

    assert_ended_well(stand_still(database, "switch"), stops=8)

    assert bound_models(region)["v2"].live


@pytest.mark.slow
def test_an_index_that_changes_its_name_holds_no_reader_up(region: Connection, database: str) -> None:
    OLD.publish_to(region)

    assert_ended_well(stand_still(database, "rename"), stops=3)

    assert region.execute("SELECT count(*) FROM search(%s, 5)", [QUERY]).fetchone() == (5,)


def change_hands(conn: Connection) -> None:
    conn.execute("ALTER TABLE embedding_assets.chunks OWNER TO CURRENT_USER")


def forget_migrations(conn: Connection) -> None:
    conn.execute("DELETE FROM embedding_assets._yoyo_migration WHERE migration_id >= '0003'")


@pytest.mark.parametrize(
    ("operation", "prepare", "stops"),
    [
        ("readers", lambda _: None, 5),
        pytest.param("roles", change_hands, 4, marks=pytest.mark.slow),
        pytest.param("migrate", forget_migrations, 10, marks=pytest.mark.slow),
        ("dead letters", lambda _: None, 2),
    ],
)
def test_whatever_else_stands_still_holds_no_reader_up(
    region: Connection, database: str, operation: str, prepare: Callable[[Connection], None], stops: int
) -> None:
    OLD.publish_to(region)
    prepare(region)

    assert_ended_well(stand_still(database, operation), stops)

    assert region.execute("SELECT count(*) FROM search(%s, 5)", [QUERY]).fetchone() == (5,)


def test_a_stricter_limit_of_an_administrator_stands_and_a_laxer_one_does_not(database: str) -> None:
    names = ("idle_in_transaction_session_timeout", "statement_timeout", "transaction_timeout")

    def in_force() -> list[str]:
        with connect(database) as conn, locks.transaction(conn, locks.SHORT_MS):
            rows = conn.execute("SELECT setting FROM pg_settings WHERE name = ANY (%s) ORDER BY name", [list(names)])
            return [setting for (setting,) in rows]

    with psycopg.connect(database, autocommit=True) as admin:
        (name,) = admin.execute("SELECT quote_ident(current_database())").fetchone() or ("",)
        for limit, expected in (
            ("0", ["5000", "10000", "10000"]),
            ("1h", ["5000", "10000", "10000"]),
            ("3s", ["3000", "3000", "3000"]),
        ):
            for setting in names:
                admin.execute(f"ALTER DATABASE {name} SET {setting} = '{limit}'")
            assert in_force() == expected


def test_long_work_goes_on_whatever_limit_an_administrator_has_set(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        (name,) = admin.execute("SELECT quote_ident(current_database())").fetchone() or ("",)
        admin.execute(f"ALTER DATABASE {name} SET statement_timeout = '50ms'")
    with connect(database) as conn:
        with locks.transaction(conn):
            conn.execute("SELECT pg_sleep(0.1)")
        conn.execute("SELECT pg_sleep(0.1)")
