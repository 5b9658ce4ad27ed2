"""kill -9 of the loader at every step: the old generation serves, and the next run ends as if nothing had happened."""

import multiprocessing
import os
import random
import signal
import threading
import time
from multiprocessing.context import ForkServerProcess

import psycopg
import pytest

from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes import recall
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.snapshots.failpoints import VARIABLE, Failpoint
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Source, Toy, assert_serves, bind, edited, row, source

# A child that starts with everything imported is there in a blink.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])

OLD, NEW, ABANDONED = Toy(), Toy(edition=1), Toy(edition=2)

FAILPOINTS = [
    Failpoint.GENERATION_CREATE,
    Failpoint.GENERATION_CREATED,
    Failpoint.GENERATION_DROPPED,
    Failpoint.SHARD_BLOCK,
    f"{Failpoint.SHARD_BLOCK}:2",
    f"{Failpoint.SHARD_COPIED}:2",
    f"{Failpoint.SHARD_LEDGER}:3",
    Failpoint.SHARD_COMMITTED,
    f"{Failpoint.SHARD_COMMITTED}:3",
    Failpoint.INDEX_PRIMARY_KEY,
    Failpoint.INDEX_BUILT,
    Failpoint.RECALL_MEASURED,
    f"{Failpoint.INDEX_BUILT}:2",
    f"{Failpoint.RECALL_MEASURED}:2",
    Failpoint.PUBLISH_CHECKED,
    Failpoint.PUBLISH_SWAP,
    Failpoint.PUBLISH_SWAPPED,
    Failpoint.PUBLISH_DROPPED,
]

DELTA_FAILPOINTS = [
    Failpoint.DELTA_BEGUN,
    Failpoint.DELTA_DELETED,
    Failpoint.SHARD_BLOCK,
    Failpoint.DELTA_COPIED,
    f"{Failpoint.DELTA_COPIED}:2",
    Failpoint.DELTA_LEDGER,
    f"{Failpoint.DELTA_LEDGER}:3",
    Failpoint.DELTA_COMMITTED,
    f"{Failpoint.DELTA_COMMITTED}:2",
    f"{Failpoint.DELTA_COMMITTED}:3",
    Failpoint.DELTA_FINISHED,
]

RANDOM_KILLS = 25


def run(dsn: str, toy: Toy, failpoint: str | None) -> None:
    """The whole way, in a process of its own."""
    if failpoint is not None:
        os.environ[VARIABLE] = failpoint
    recall.QUESTIONS = 5  # type: ignore[misc]
    with connect(dsn) as conn:
        toy.publish_to(conn)


def start(dsn: str, toy: Toy, failpoint: str | None = None) -> ForkServerProcess:
    process = FORKS.Process(target=run, args=(dsn, toy, failpoint))
    process.start()
    return process


@pytest.fixture
def serving(database: str) -> str:
    """A database that serves the old edition, and holds an unfinished table of another."""
    with connect(database) as conn:
        bind(conn)
        OLD.publish_to(conn)
        load_generation(conn, ABANDONED.name, ABANDONED.root, ABANDONED.refs[:1], ABANDONED.read)
    return database


def editions(conn: Connection) -> list[tuple[str, int]]:
    rows = conn.execute("SELECT split_part(content, ',', 1), count(*) FROM live_chunks GROUP BY 1 ORDER BY 1")
    return [(edition, count) for edition, count in rows]


def assert_as_undisturbed(conn: Connection, toy: Toy) -> None:
    assert compare(conn, toy.name, toy.refs, toy.read) == []
    assert conn.execute("SELECT state, target_root FROM embedding_assets.generations").fetchall() == [
        ("published", toy.root)
    ]
    assert conn.execute(
        "SELECT count(*) FROM pg_class WHERE relname ~ '^generation_[0-9]+$' AND relkind = 'r'"
    ).fetchone() == (1,)
    assert conn.execute("SELECT shard, key FROM embedding_assets.ledger ORDER BY shard").fetchall() == [
        (ref.shard, ref.key) for ref in toy.refs
    ]


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_killed_load_leaves_the_old_generation_serving_and_the_next_run_finishes(
    serving: str, failpoint: str
) -> None:
    process = start(serving, NEW, failpoint)
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"{failpoint} was never reached"

    with connect(serving) as conn:
        swapped = failpoint in (Failpoint.PUBLISH_SWAPPED, Failpoint.PUBLISH_DROPPED)
        assert editions(conn) == [("edition 1" if swapped else "edition 0", 120)]
        NEW.publish_to(conn)
        assert_as_undisturbed(conn, NEW)


def test_shards_that_were_committed_before_a_kill_are_not_loaded_again(serving: str) -> None:
    process = start(serving, NEW, f"{Failpoint.SHARD_COMMITTED}:2")
    process.join()

    with connect(serving) as conn:
        committed = conn.execute("SELECT count(*) FROM embedding_assets.ledger WHERE generation <> 1").fetchone()
        loaded = load_generation(conn, NEW.name, NEW.root, NEW.refs, NEW.read)

    assert committed in [(2,), (3,)]  # a second connection may have been as far
    assert (loaded.shards_written, loaded.rows_written) == (3 - committed[0], 40 * (3 - committed[0]))


def small_change() -> tuple[Source, Source]:
    """A source, and what a delta makes of it: a row inserted, one updated, one deleted, and a shard that is gone."""
    before = source()
    rows = before.shards[1]
    return before, Source({0: edited(before.shards[0], 7), 1: [*rows[1:], row(9_000)], 3: before.shards[3]})


def run_delta(dsn: str, failpoint: str) -> None:
    os.environ[VARIABLE] = failpoint
    with connect(dsn) as conn:
        small_change()[1].load(conn)


@pytest.mark.parametrize("failpoint", DELTA_FAILPOINTS)
def test_a_killed_delta_leaves_every_shard_old_or_new_and_the_next_run_finishes(database: str, failpoint: str) -> None:
    before, after = small_change()
    with connect(database) as conn:
        bind(conn)
        before.publish(conn)

    process = FORKS.Process(target=run_delta, args=(database, failpoint))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"{failpoint} was never reached"

    with connect(database) as conn:
        found = {shard: set[str]() for shard in range(4)}
        for shard, content in conn.execute("SELECT shard, content FROM embedding_assets.chunks"):
            found[shard].add(content)
        for shard, contents in found.items():
            editions = [{r.content for r in edition.shards.get(shard, [])} for edition in (before, after)]
            assert contents in editions, f"shard {shard} is neither"
        after.publish(conn)
        assert_serves(conn, after)


def test_a_source_may_change_between_a_kill_and_the_next_run(serving: str) -> None:
    start(serving, NEW, Failpoint.INDEX_BUILT).join()
    newer = NEW.edited().edited()

    with connect(serving) as conn:
        newer.publish_to(conn)
        assert_as_undisturbed(conn, newer)


def test_a_kill_after_the_models_were_bound_does_no_harm(database: str) -> None:
    process = FORKS.Process(target=bind_and_die, args=(database,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    with connect(database) as conn:
        bind(conn)
        NEW.publish_to(conn)
        assert_as_undisturbed(conn, NEW)


def bind_and_die(dsn: str) -> None:
    os.environ[VARIABLE] = Failpoint.MODELS_BOUND
    with connect(dsn) as conn:
        bind(conn)


def test_two_processes_that_load_the_same_source_give_one_result(serving: str) -> None:
    processes = [start(serving, NEW) for _ in range(2)]
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    with connect(serving) as conn:
        assert_as_undisturbed(conn, NEW)


def test_a_killed_holder_of_the_lock_does_not_keep_the_next_run_waiting(serving: str) -> None:
    """The lock lives in the session: it goes with the process, not with a timeout."""
    holder = start(serving, NEW, Failpoint.SHARD_COPIED)
    holder.join()

    with connect(serving) as conn:
        conn.execute("SET lock_timeout = '5s'")
        NEW.publish_to(conn)
        assert_as_undisturbed(conn, NEW)


@pytest.mark.slow
def test_a_kill_at_any_moment_does_no_harm(serving: str) -> None:
    """Kills, each at a random moment of the time that the last run took which came to its end."""
    began = time.monotonic()
    start(serving, NEW).join()
    seconds = time.monotonic() - began
    chance, kills = random.Random(2), 0
    toy, serving_now = NEW.edited().edited(), NEW
    while kills < RANDOM_KILLS:
        began = time.monotonic()
        process = start(serving, toy)
        timer = threading.Timer(chance.uniform(0.0, seconds), process.kill)
        timer.start()
        process.join()
        timer.cancel()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:  # the machine is faster than it was: aim closer
            seconds = time.monotonic() - began
        with psycopg.connect(serving, autocommit=True) as conn:
            found = editions(conn)
        assert found in ([(f"edition {serving_now.edition}", 120)], [(f"edition {toy.edition}", 120)])
        with connect(serving) as conn:
            toy.publish_to(conn)
            assert_as_undisturbed(conn, toy)
        toy, serving_now = toy.edited(), toy
