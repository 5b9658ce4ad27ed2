"""Upkeep: what is found on tables and indexes that readers use, and that mending it is nothing to them."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.errors import PipelineError
from embedding_assets.pgvector.connection import Connection, connect, dsn_of
from embedding_assets.pgvector.indexes import index, upkeep
from embedding_assets.pgvector.indexes.hnsw import parameters_of
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.indexes.measurement import Measured, Measurement
from embedding_assets.pgvector.indexes.upkeep import Finding, IndexState, State, act, examine, findings
from embedding_assets.pgvector.locks import SourceBusy, source_lock
from embedding_assets.pgvector.options import TARGET_RECALL, USUAL, Hnsw, QuietHours
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.reading.search import search
from embedding_assets.pgvector.schema.generations import Generation
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets.snapshots.slots import Slot
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Toy, bind, row

POOR = Hnsw(m=2, ef_construction=4)

HARD = Toy(rows=400, d1=96)  # random vectors of 96 dimensions: a narrow search misses some


@pytest.fixture
def hard(region: Connection) -> Connection:
    """A database that serves 1,200 vectors of 96 dimensions."""
    bind(region, d1=96)
    publish_with(region, HARD)
    return region


def count_now(conn: Connection) -> None:
    """Have Postgres count the rows that were written: it takes a second for that, unless asked."""
    conn.execute("SELECT pg_stat_force_next_flush()")


def look(conn: Connection, toy: Toy = HARD, target: float = TARGET_RECALL) -> State:
    count_now(conn)
    state = examine(conn, toy.name, target)
    assert state is not None
    return state


def measured(state: State) -> Measurement:
    """What is stored of v1."""
    measurement = state.indexes[0].measurement
    assert measurement is not None
    return measurement


def found(conn: Connection, toy: Toy = HARD, target: float = TARGET_RECALL) -> list[Finding]:
    return findings(look(conn, toy, target), USUAL, target)


def mend(conn: Connection, toy: Toy = HARD) -> list[str]:
    """Do what there is to do; what was done."""
    state = look(conn, toy)
    return [act(conn, state.generation, one, USUAL, TARGET_RECALL) for one in findings(state, USUAL, TARGET_RECALL)]


def publish_with(
    conn: Connection, toy: Toy, hnsw: Mapping[Slot, Hnsw] = USUAL, target: float = TARGET_RECALL
) -> Generation:
    load_generation(conn, toy.name, toy.root, toy.refs, toy.read)
    count_now(conn)
    build_indexes(conn, toy.name, toy.root, hnsw, target)
    return publish(conn, toy.name, toy.root, toy.refs)


@contextmanager
def old_transaction(conn: Connection) -> Iterator[None]:
    """A transaction that may still read all that is there now."""
    with psycopg.connect(dsn_of(conn)) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT FROM embedding_assets.chunks LIMIT 1")
        yield


@contextmanager
def readers(conn: Connection) -> Iterator[Callable[[], int]]:
    """Four clients that search without pause, and meet neither an error nor a short answer; yields their count."""
    stop, trouble, searches = threading.Event(), [], itertools.count()
    done = itertools.count()

    def read() -> None:
        try:
            with connect(dsn_of(conn)) as own:
                while not stop.is_set():
                    hits = search(own, row(next(searches), d1=96).v1, 10)  # type: ignore[arg-type]
                    if len({(hit.document_id, hit.ordinal) for hit in hits}) != 10:
                        trouble.append(f"{len(hits)} hits")
                    next(done)
        except PipelineError as error:
            trouble.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: next(done)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert trouble == []


# What is found, and mended


def test_nothing_is_found_of_a_source_as_it_was_published(hard: Connection) -> None:
    assert found(hard) == []
    assert "1,200 rows, 0 dead, v1 " in str(look(hard))


def test_a_source_that_is_not_served_has_no_upkeep(region: Connection) -> None:
    assert examine(region, "nowhere", TARGET_RECALL) is None


def test_dead_rows_are_vacuumed_and_the_search_is_whole(hard: Connection) -> None:
    hard.execute("DELETE FROM embedding_assets.generation_1 WHERE ordinal < 1 OR document_id < 'doc-16'")
    (left,) = hard.execute("SELECT count(*) FROM embedding_assets.generation_1").fetchone() or (0,)
    (finding,) = found(hard)
    assert finding.cure == "vacuum"
    assert f"{1200 - left:,} of 1,200 rows are dead" in finding.what

    mend(hard)

    assert (look(hard).live_rows, look(hard).dead_rows) == (left, 0)
    assert found(hard) == []
    hits = search(hard, row(1, d1=96).v1, 1000)  # type: ignore[arg-type]
    assert len({(hit.document_id, hit.ordinal) for hit in hits}) == min(left, 1000)


def test_dead_rows_that_an_old_transaction_may_read_are_told_of(hard: Connection) -> None:
    with old_transaction(hard):
        hard.execute("DELETE FROM embedding_assets.generation_1 WHERE ordinal < 2")

        (did,) = mend(hard)

    assert did.startswith("vacuumed, 600 dead rows stay: a transaction")
    assert "xact_start in pg_stat_activity" in did


def test_a_bloated_index_is_rebuilt_before_the_table_is_vacuumed(
    hard: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SMALL_INDEX", 0)
    hard.execute("DELETE FROM embedding_assets.generation_1 WHERE ordinal < 2")
    before = {index.slot: index.size_bytes for index in look(hard).indexes}

    done = mend(hard)

    assert [did.split()[0] for did in done] == ["rebuilt", "rebuilt", "vacuumed"]
    assert all(index.size_bytes < 0.7 * before[index.slot] for index in look(hard).indexes)
    assert found(hard) == []


def test_a_small_index_is_never_bloated(hard: Connection) -> None:
    hard.execute("DELETE FROM embedding_assets.generation_1 WHERE ordinal < 3")

    assert [finding.cure for finding in found(hard)] == ["vacuum"]


def test_an_index_of_other_parameters_than_the_settings_is_rebuilt(
    region: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_AT_ONCE_SECONDS", 0.0)  # or a larger graph would be built at once
    bind(region, d1=96)
    generation = publish_with(region, HARD, {**USUAL, "v1": POOR})
    (finding,) = found(region)
    assert finding.what == (
        "index v1 was built with m 2 and ef_construction 4, the settings have m 16 and ef_construction 200"
    )

    (did,) = mend(region)

    assert did.startswith("rebuilt generation_1_v1: 1,200 vectors")
    assert parameters_of(region, generation, "v1") == Hnsw()
    assert found(region) == []


@pytest.mark.parametrize("fault", ["dropped", "invalid"])
def test_an_index_that_is_gone_or_invalid_is_built(hard: Connection, fault: str) -> None:
    if fault == "dropped":
        hard.execute("DROP INDEX embedding_assets.generation_1_v1")
    else:
        hard.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid::regclass::text ~ 'generation_1_v1$'")
    assert "v1 without a valid index" in str(look(hard))

    mend(hard)

    assert found(hard) == []


def test_what_a_failed_concurrent_build_left_is_dropped(hard: Connection) -> None:
    """An old transaction keeps CREATE INDEX CONCURRENTLY from its end, which leaves an INVALID index."""
    with old_transaction(hard):
        hard.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            hard.execute("CREATE INDEX CONCURRENTLY generation_1_ordinal ON embedding_assets.generation_1 (ordinal)")
        hard.execute("SET lock_timeout = '10s'")
    assert [finding.cure for finding in found(hard)] == ["drop"]

    assert mend(hard)[0].startswith("dropped generation_1_ordinal")

    assert found(hard) == []


# Recall


def change_rows(conn: Connection, rows: int) -> None:
    """Have so many rows changed by deltas, as far as the records tell."""
    conn.execute("UPDATE embedding_assets.generations SET rows_changed = rows_changed + %s", [rows])


def measured_at(conn: Connection) -> list[datetime]:
    return [at for (at,) in conn.execute("SELECT measured_at FROM embedding_assets.recall ORDER BY slot")]


def test_recall_is_measured_again_once_a_twentieth_of_the_rows_has_changed(hard: Connection) -> None:
    first = measured_at(hard)

    change_rows(hard, 60)
    look(hard)
    assert measured_at(hard) == first

    change_rows(hard, 1)
    look(hard)
    again = measured_at(hard)
    assert all(later > before for later, before in zip(again, first, strict=True))

    look(hard)
    assert measured_at(hard) == again


def test_an_index_rebuilt_by_hand_is_measured(hard: Connection) -> None:
    first = measured_at(hard)
    hard.execute("REINDEX INDEX CONCURRENTLY embedding_assets.generation_1_v1")

    look(hard)

    assert [later > before for later, before in zip(measured_at(hard), first, strict=True)] == [True, False]


def test_a_larger_ef_search_is_put_to_use_where_it_reaches_the_target(region: Connection) -> None:
    """What was measured long ago is as if ten candidates had done; the index is left as it is."""
    bind(region, d1=96)
    settings: dict[Slot, Hnsw] = {"v1": Hnsw(m=6, ef_construction=30), "v2": Hnsw()}
    publish_with(region, HARD, settings)
    curve = {point.ef_search: point.recall for point in measured(look(region)).curve}
    assert curve[10] < curve[80], "or the test shows nothing"
    target = curve[80]
    region.execute("UPDATE embedding_assets.recall SET ef_search = 10")
    region.execute("UPDATE embedding_assets.models SET ef_search = 10")
    change_rows(region, 100)
    state = look(region, target=target)
    needed = measured(state).ef_search
    (finding,) = findings(state, settings, target)
    assert 10 < needed <= 80
    assert finding.what == f"searches use ef_search 10, index v1 needs {needed} for {target}"

    did = act(region, state.generation, finding, settings, target)

    assert did.startswith(f"searches use ef_search {needed}")
    assert bound_models(region)["v1"].ef_search == needed
    assert findings(look(region, target=target), settings, target) == []


def test_an_index_that_changes_have_worn_below_the_target_is_rebuilt(hard: Connection) -> None:
    """Rows that came in while the graph was poor: a rebuild finds them all again."""
    hard.execute("ALTER INDEX embedding_assets.generation_1_v1 RENAME TO generation_1_v1_healthy")
    hard.execute(
        "CREATE INDEX generation_1_v1 ON embedding_assets.generation_1 USING hnsw (embedding_v1 vector_cosine_ops) "
        "WITH (m = 2, ef_construction = 4)"
    )
    hard.execute("DROP INDEX embedding_assets.generation_1_v1_healthy")
    look(hard)
    hard.execute("ALTER INDEX embedding_assets.generation_1_v1 SET (m = 16, ef_construction = 200)")
    change_rows(hard, 100)
    (finding,) = found(hard)
    assert finding.cure == "reindex"
    assert "at ef_search 1000, the target is 0.98" in finding.what

    (did,) = mend(hard)

    assert did.startswith("rebuilt generation_1_v1")
    assert found(hard) == []


SMALL = Toy(rows=20)


@pytest.mark.usefixtures("finds_too_little")
def test_an_index_that_its_parameters_keep_below_the_target_is_enlarged_twice_and_then_left(region: Connection) -> None:
    settings: dict[Slot, Hnsw] = {"v1": POOR, "v2": POOR}
    publish_with(region, SMALL, settings, target=0.5)

    for larger in (Hnsw(m=3, ef_construction=8), Hnsw(m=4, ef_construction=16)):
        state = look(region, SMALL)
        found = findings(state, settings, TARGET_RECALL)
        assert [finding.cure for finding in found] == ["enlarge", "enlarge"]
        assert f"is built with m {larger.m} and ef_construction {larger.ef_construction}" in found[0].what
        assert act(region, state.generation, found[0], settings, TARGET_RECALL).startswith("rebuilt generation_1_v1")
        assert act(region, state.generation, found[1], settings, TARGET_RECALL).startswith("rebuilt generation_1_v2")
        assert parameters_of(region, state.generation, "v1") == larger

    state = look(region, SMALL)
    found = findings(state, settings, TARGET_RECALL)
    assert [finding.cure for finding in found] == [None, None]
    assert "Cure: raise the model's hnsw.m or hnsw.ef_construction" in found[0].what
    assert act(region, state.generation, found[0], settings, TARGET_RECALL) == "nothing"


@pytest.mark.usefixtures("finds_too_little")
def test_the_rows_that_follow_are_indexed_as_those_before_had_to_be(region: Connection) -> None:
    settings: dict[Slot, Hnsw] = {"v1": POOR, "v2": POOR}
    publish_with(region, SMALL, settings)  # which builds the largest at once, for nothing is served yet

    generation = publish_with(region, SMALL.edited(), settings)

    assert parameters_of(region, generation, "v1") == Hnsw(m=4, ef_construction=16)


# Under way


def test_readers_do_not_notice(hard: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clients search while both indexes are rebuilt and the table is vacuumed: 0 errors, 0 short answers."""
    monkeypatch.setattr(upkeep, "SMALL_INDEX", 0)
    hard.execute("DELETE FROM embedding_assets.generation_1 WHERE ordinal < 2")
    with readers(hard) as count:
        done = mend(hard)
        searches = count()

    assert [did.split()[0] for did in done] == ["rebuilt", "rebuilt", "vacuumed"]
    assert searches > 50


def test_a_source_that_is_being_loaded_is_left_alone(hard: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    state = look(hard)
    monkeypatch.setattr(upkeep, "PATIENCE_SECONDS", 0.05)

    with connect(dsn_of(hard)) as loader, source_lock(loader, HARD.name):
        with pytest.raises(SourceBusy):
            examine(hard, HARD.name, TARGET_RECALL)
        with pytest.raises(SourceBusy):
            act(hard, state.generation, Finding("", "vacuum"), USUAL, TARGET_RECALL)


def test_a_generation_that_was_replaced_meanwhile_is_left_alone(hard: Connection) -> None:
    state = look(hard)
    HARD.edited().publish_to(hard)

    did = act(hard, state.generation, Finding("", "reindex", "v1"), USUAL, TARGET_RECALL)

    assert did == "nothing: another generation was published meanwhile"


def test_counts_that_a_crash_of_the_server_lost_are_taken_again(hard: Connection) -> None:
    hard.execute("SELECT pg_stat_reset_single_table_counters('embedding_assets.generation_1'::regclass)")

    assert (look(hard).live_rows, found(hard)) == (1200, [])


# Judging, by itself


HEALTHY = State(
    generation=Generation(1, "handbook", "root", "published"),
    live_rows=100_000,
    dead_rows=0,
    leftovers=(),
    indexes=tuple(
        IndexState(
            slot=slot,
            dimensions=384,
            hnsw=Hnsw(),
            size_bytes=200_000_000,
            measurement=Measurement(100_000, 40, (Measured(40, 0.99, 1.0, 2.0),), 2000.0, 0, 0),
        )
        for slot in ("v1", "v2")
    ),
    ef_search={"v1": 40, "v2": 40},
)


def judged(state: State) -> list[tuple[str | None, Slot | None]]:
    return [(finding.cure, finding.slot) for finding in findings(state, USUAL, TARGET_RECALL)]


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_table_is_vacuumed_exactly_where_more_than_a_tenth_of_its_rows_is_dead(live: int, dead: int) -> None:
    indexes = tuple(replace_measurement(index, live, live) for index in HEALTHY.indexes)
    state = HEALTHY._replace(live_rows=live, dead_rows=dead, indexes=indexes)

    assert (("vacuum", None) in judged(state)) == (10 * dead > live + dead)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_an_index_is_rebuilt_exactly_where_it_is_half_as_large_again_a_vector_as_it_was(built: int, live: int) -> None:
    index = replace_measurement(HEALTHY.indexes[0], built, built)._replace(size_bytes=2000 * built)
    state = HEALTHY._replace(live_rows=live, indexes=(index, *HEALTHY.indexes[1:2]))

    bloated = built > 1.5 * live and 2000 * built > upkeep.SMALL_INDEX
    assert (("reindex", "v1") in judged(state)) == bloated


def test_a_larger_graph_is_not_begun_that_the_quiet_hours_are_too_short_for() -> None:
    large = Measurement(1_000_000, 1000, (Measured(1000, 0.9, 1.0, 2.0),), 2000.0, 0, 0)
    degraded = HEALTHY.indexes[0]._replace(measurement=large)
    state = HEALTHY._replace(
        indexes=(degraded, HEALTHY.indexes[1]), live_rows=1_000_000, ef_search={"v1": 1000, "v2": 40}
    )

    assert judged(state) == [("enlarge", "v1")]
    assert [finding.cure for finding in findings(state, USUAL, TARGET_RECALL, seconds=600)] == [None]


def replace_measurement(index: IndexState, vectors: int, rows: int) -> IndexState:
    assert index.measurement is not None
    return index._replace(size_bytes=2000 * rows, measurement=index.measurement._replace(vectors=vectors))


# Quiet hours


minutes = st.integers(0, 24 * 60 - 1)


def hours(begin: int, end: int) -> QuietHours:
    return QuietHours.parse(f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}")


@given(minutes, minutes)
def test_quiet_hours_are_the_minutes_from_their_begin_to_their_end_also_over_midnight(begin: int, end: int) -> None:
    day = datetime(2026, 11, 21, tzinfo=UTC)
    quiet = {m for m in range(24 * 60) if hours(begin, end).contains(day + timedelta(minutes=m))}

    length = (end - begin) % (24 * 60) or 24 * 60
    assert quiet == {(begin + n) % (24 * 60) for n in range(length)}
    assert hours(begin, end).minutes == length


@given(minutes, minutes, st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.integers(-12, 14))
def test_quiet_hours_are_in_utc_wherever_the_clock_is(begin: int, end: int, now: datetime, offset: int) -> None:
    utc = now.replace(tzinfo=UTC)
    elsewhere = utc.astimezone(timezone(timedelta(hours=offset)))

    assert hours(begin, end).contains(elsewhere) == hours(begin, end).contains(utc)


@pytest.mark.parametrize(
    "text", ["", "01:00", "1:00-5:00", "24:00-05:00", "01:60-05:00", "01:00 - 05:00", "٠١:٠٠-٠٥:٠٠"]
)
def test_anything_but_two_times_of_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|hour|minute"):
        QuietHours.parse(text)
