"""Indexes of a generation: built once, valid, and measured."""

import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from embedding_assets.errors import PermanentError, PipelineError, TransientError
from embedding_assets.pgvector.connection import Connection, connect, dsn_of, pipeline_errors
from embedding_assets.pgvector.indexes import hnsw, index
from embedding_assets.pgvector.indexes.hnsw import SERVERS, Means
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.locks import source_lock
from embedding_assets.pgvector.options import TARGET_RECALL, Hnsw
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.reading.search import search
from embedding_assets.pgvector.reading.status import region_status
from embedding_assets.pgvector.rows.shards import ShardRef
from embedding_assets.pgvector.schema import roles
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets.snapshots.slots import Slot
from embedding_assets.telemetry.events import Event, IndexBuilt, IndexProgress, RecallMeasured, Tell
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Toy, bind, row, shard_rows

INDEXES = [f"generation_1_{name}" for name in ("metadata", "pkey", "shard", "v1", "v2")]

OTHERS: dict[Slot, Hnsw] = {"v1": Hnsw(m=8, ef_construction=40), "v2": Hnsw()}


def load(conn: Connection, toy: Toy) -> None:
    load_generation(conn, toy.name, toy.root, toy.refs, toy.read)


def names(conn: Connection) -> list[str]:
    """The indexes of the source that is served, all of them valid."""
    (status,) = region_status(conn)
    assert all(found.valid for found in status.indexes)
    return [found.name for found in status.indexes]


def on_table(conn: Connection) -> dict[str, bool]:
    """Every index of the first generation's table, and whether it is valid."""
    return dict(
        conn.execute(
            "SELECT indexrelid::regclass::text, indisvalid FROM pg_index "
            "WHERE indrelid = 'embedding_assets.generation_1'::regclass"
        ).fetchall()
    )


def test_a_loaded_generation_gets_a_key_and_a_measured_index_for_each_model(region: Connection) -> None:
    toy = Toy(rows=300)
    load(region, toy)

    reports = build_indexes(region, toy.name, toy.root)

    assert set(reports) == {"v1", "v2"}
    for report in reports.values():
        assert report.vectors == 900
        assert report.built is not None
        assert report.built.seconds > 0
        asked = [point.ef_search for point in report.curve]
        assert asked == [10, 20, 40, 80, 120, 200, 400, 600, 1000][: len(asked)]
        assert [point.recall >= TARGET_RECALL for point in report.curve].index(True) == len(asked) - 1, (
            "or asked in vain"
        )
        assert all(0 < point.p50_ms <= point.p95_ms for point in report.curve)
        assert report.recall is not None
        assert report.recall >= TARGET_RECALL


def test_the_ef_search_stored_is_the_smallest_that_reaches_the_target(region: Connection) -> None:
    """Random vectors of 64 dimensions have no structure that helps: a narrow search misses some."""
    toy = Toy(rows=700, d1=64)
    bind(region, d1=64)
    load(region, toy)

    report = build_indexes(region, toy.name, toy.root)["v1"]

    assert report.curve[0].recall < TARGET_RECALL, "or the test shows nothing"
    below = [point for point in report.curve if point.ef_search < report.ef_search]
    assert all(point.recall < TARGET_RECALL for point in below)
    assert report.recall is not None
    assert report.recall >= TARGET_RECALL
    publish(region, toy.name, toy.root, toy.refs)
    assert bound_models(region)["v1"].ef_search == report.ef_search


def test_search_uses_the_largest_ef_search_that_a_published_source_needs(region: Connection) -> None:
    easy, hard = Toy("easy", rows=10), Toy("hard", rows=10)
    for toy, ef_search in ((easy, 20), (hard, 200)):
        load(region, toy)
        build_indexes(region, toy.name, toy.root)
        region.execute(
            "UPDATE embedding_assets.recall SET ef_search = %s FROM embedding_assets.generations "
            "WHERE id = generation AND source = %s",
            [ef_search, toy.name],
        )
        publish(region, toy.name, toy.root, toy.refs)
    assert bound_models(region)["v1"].ef_search == 200

    hard.edited().publish_to(region)

    assert bound_models(region)["v1"].ef_search == 20


def test_building_again_builds_and_measures_nothing(region: Connection) -> None:
    toy = Toy()
    load(region, toy)
    first = build_indexes(region, toy.name, toy.root)

    again = build_indexes(region, toy.name, toy.root)

    assert [report.built for report in again.values()] == [None, None]
    assert [report.curve for report in again.values()] == [report.curve for report in first.values()]


def test_an_invalid_index_is_dropped_and_built_anew(region: Connection) -> None:
    toy = Toy()
    load(region, toy)
    build_indexes(region, toy.name, toy.root)
    region.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'embedding_assets.generation_1_v2'::regclass"
    )

    reports = build_indexes(region, toy.name, toy.root)

    assert (reports["v1"].built is None, reports["v2"].built is None) == (True, False)
    publish(region, toy.name, toy.root, toy.refs)
    assert all(found.valid for status in region_status(region) for found in status.indexes)


def test_an_index_that_a_published_generation_lost_is_built_anew(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    region.execute("DROP INDEX embedding_assets.generation_1_v1")

    build_indexes(region, toy.name, toy.root)

    assert names(region) == INDEXES


def test_equal_texts_are_no_misses(region: Connection) -> None:
    """Forty rows share one vector: which ten of them are found says nothing about the index."""
    same = row(0).v1
    refs = [ShardRef(0, "a" * 64, 60)]
    rows = [row(n, v1=same if n < 40 else row(n).v1) for n in range(60)]
    load_generation(region, "equal", "root", refs, lambda _: shard_rows(rows))

    report = build_indexes(region, "equal", "root")["v1"]

    assert report.recall == 1


@pytest.mark.parametrize("vectors", [0, 1, 2])
def test_a_source_of_hardly_any_vectors_is_no_error(region: Connection, vectors: int) -> None:
    refs = [ShardRef(0, "a" * 64, 3)]
    rows = [row(n) if n < vectors else row(n, v1=None, v2=None) for n in range(3)]
    load_generation(region, "few", "root", refs, lambda _: shard_rows(rows))

    report = build_indexes(region, "few", "root")["v1"]

    assert report.recall == (1 if vectors == 2 else None)
    assert report.ef_search == 10


def test_halfvec_models_are_indexed_too(region: Connection) -> None:
    bind(region, d2=2001)
    toy = Toy(rows=10, d2=2001)

    toy.publish_to(region)

    definition = region.execute("SELECT pg_get_indexdef('embedding_assets.generation_1_v2'::regclass)").fetchone()
    assert definition is not None
    assert "halfvec_cosine_ops" in definition[0]


def test_a_build_gets_memory_for_its_graph_and_says_so(
    region: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "embedding_assets")
    monkeypatch.setattr(hnsw, "_LEAST_MEMORY", 1 << 20)
    notices: list[str] = []
    region.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    toy = Toy(rows=1_500, shards=1)
    load(region, toy)

    report = build_indexes(region, toy.name, toy.root)["v1"]

    assert report.built is not None
    assert report.built.granted == report.built.estimate == hnsw.graph_bytes(1_500, 8)
    assert [notice for notice in notices if "no longer fits" in notice] == []
    assert "generation_1_v1: 1500 vectors in" in caplog.text


def test_a_graph_beyond_the_bound_is_built_with_what_is_granted(
    region: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hnsw, "_LEAST_MEMORY", 1 << 20)
    toy = Toy(rows=1_500, shards=1)
    load(region, toy)

    built = build_indexes(region, toy.name, toy.root, means=Means(memory=1 << 20))["v1"].built
    assert built is not None
    assert built.granted == 1 << 20
    assert "Raise the region's build_memory" in caplog.text


def test_a_build_has_the_workers_that_the_settings_say_and_leaves_the_session_as_it_was(region: Connection) -> None:
    toy = Toy(rows=100, shards=1)
    load(region, toy)
    before = region.execute("SHOW max_parallel_workers").fetchone()

    reports = build_indexes(region, toy.name, toy.root, means=Means(workers=11))

    built = reports["v1"].built
    assert built is not None
    assert built.workers == 11
    assert region.execute("SHOW max_parallel_workers").fetchone() == before


def test_a_build_may_use_two_gib_and_the_servers_workers_where_nothing_is_said(region: Connection) -> None:
    region.execute("SET max_parallel_maintenance_workers = 5")

    assert hnsw._means(region, SERVERS) == (2 << 30, 5)


def test_indexing_what_was_never_loaded_says_what_to_do(region: Connection) -> None:
    with pytest.raises(PermanentError, match="Materialize pgvector_table for this partition again"):
        build_indexes(region, "nowhere", "root")


# Other parameters


def test_an_index_is_built_with_the_parameters_of_its_model(region: Connection) -> None:
    toy = Toy()
    load(region, toy)

    reports = build_indexes(region, toy.name, toy.root, OTHERS)

    options: dict[str, list[str]] = dict(
        region.execute("SELECT relname, reloptions FROM pg_class WHERE relname ~ '_v[12]$'").fetchall()
    )
    assert options["generation_1_v1"] == ["m=8", "ef_construction=40"]
    assert options["generation_1_v2"] == ["m=16", "ef_construction=200"]
    assert {slot: report.hnsw for slot, report in reports.items()} == OTHERS


def test_other_parameters_rebuild_a_served_index_while_readers_go_on(region: Connection) -> None:
    """Four readers search without pause: none meets an error or fewer rows, and the other model's index stays."""
    bind(region, d1=64)
    toy = Toy(rows=300, d1=64)
    generation = toy.publish_to(region)
    stop, trouble, searches = threading.Event(), [], itertools.count()

    def read() -> None:
        try:
            with connect(dsn_of(region)) as conn:
                while not stop.is_set():
                    if len(search(conn, row(next(searches), d1=64).v1, 10)) != 10:  # type: ignore[arg-type]
                        trouble.append("a short answer")
        except PipelineError as error:
            trouble.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    reports = build_indexes(region, toy.name, toy.root, OTHERS)
    stop.set()
    for reader in readers:
        reader.join()

    assert trouble == []
    assert next(searches) > 20
    assert hnsw.parameters_of(region, generation, "v1") == OTHERS["v1"]
    assert (reports["v1"].built is None, reports["v2"].built is None) == (False, True)
    assert names(region) == INDEXES


@pytest.mark.slow
def test_other_parameters_leave_the_searches_with_the_ef_search_that_the_new_index_needs(region: Connection) -> None:
    bind(region, d1=64)
    toy = Toy(rows=300, d1=64)
    toy.publish_to(region)
    before = bound_models(region)["v1"].ef_search

    poor = build_indexes(region, toy.name, toy.root, {"v1": Hnsw(m=4, ef_construction=16), "v2": Hnsw()})["v1"]

    assert poor.ef_search > before
    assert bound_models(region)["v1"].ef_search == poor.ef_search


@pytest.mark.usefixtures("finds_too_little")
def test_a_source_that_is_not_served_yet_gets_larger_graphs_at_once_where_that_of_the_settings_finds_too_little(
    region: Connection,
) -> None:
    toy = Toy()
    load(region, toy)

    reports = build_indexes(region, toy.name, toy.root, OTHERS)

    report = reports["v1"]
    assert report.hnsw == Hnsw(m=16, ef_construction=160), "twice as many links, the last step"
    assert reports["v2"].hnsw == OTHERS["v2"], "the model that is not live holds nothing up"
    assert "Cure: raise the model's hnsw.m" in (report.degraded(TARGET_RECALL) or "")
    again = build_indexes(region, toy.name, toy.root, OTHERS)["v1"]
    assert (again.hnsw, again.built, again.measured_now) == (report.hnsw, None, False)


@pytest.mark.usefixtures("finds_too_little")
def test_a_first_publication_waits_for_no_graph_that_takes_long(
    region: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_AT_ONCE_SECONDS", 0.0)
    toy = Toy()
    load(region, toy)

    report = build_indexes(region, toy.name, toy.root, OTHERS)["v1"]

    assert report.hnsw == OTHERS["v1"]
    assert "embedding-assets upkeep --now" in (report.degraded(TARGET_RECALL) or "")


# Builds that are killed


def test_what_an_administrator_builds_at_this_moment_is_no_leftover_also_to_whom_their_sessions_are_hidden(
    region: Connection,
) -> None:
    toy = Toy(rows=20)
    generation = toy.publish_to(region)
    roles.ensure_roles(region)
    table, name = "embedding_assets.generation_1", "generation_1_by_hand"
    with (
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(dsn_of(region), autocommit=True) as builder,
        psycopg.connect(dsn_of(region)) as writer,
    ):
        writer.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE".encode())  # which the build waits for
        building = thread.submit(builder.execute, f"CREATE INDEX CONCURRENTLY {name} ON {table} (document_id)".encode())
        until(lambda: on_table(region).get(f"embedding_assets.{name}") is False)

        assert hnsw.leftovers(region, generation) == []
        roles.act_as_ingest(region)
        assert region.execute("SELECT current_user").fetchone() == (roles.INGEST,)
        assert hnsw.leftovers(region, generation) == []

        builder.cancel()
        assert isinstance(building.exception(), psycopg.errors.QueryCanceled)
        assert hnsw.leftovers(region, generation) == [name]


def until(so: Callable[[], bool]) -> None:
    """Ask until it is so; the test's own time limit ends a wait in vain."""
    while not so():
        threading.Event().wait(0.01)


@pytest.mark.parametrize("statement", ["CREATE", "REINDEX"])
def test_what_a_killed_build_left_is_dropped_and_the_index_built_while_the_old_one_serves(
    region: Connection, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """The backend is killed in the middle of CREATE INDEX CONCURRENTLY, and of REINDEX INDEX CONCURRENTLY."""
    monkeypatch.setattr(hnsw, "_EVERY_SECONDS", 0.01)
    bind(region, d1=64)
    toy = Toy(rows=400, d1=64)
    generation = toy.publish_to(region)
    builder = connect(dsn_of(region))

    def kill(event: Event) -> None:
        if isinstance(event, IndexProgress) and event.phase == "building index: loading tuples":
            region.execute("SELECT pg_terminate_backend(%s)", [builder.info.backend_pid])

    def rebuild() -> None:
        if statement == "CREATE":
            build_indexes(builder, toy.name, toy.root, OTHERS, tell=kill)
        with pipeline_errors("rebuilding"):
            index.reindex(builder, generation, "v1", Hnsw(), 0.9, kill)

    with pytest.raises(TransientError):
        rebuild()
    left = "generation_1_v1_new" if statement == "CREATE" else "generation_1_v1_ccnew"
    assert on_table(region)[f"embedding_assets.{left}"] is False
    assert on_table(region)["embedding_assets.generation_1_v1"] is True
    assert len(search(region, row(1, d1=64).v1, 10)) == 10  # type: ignore[arg-type]

    build_indexes(region, toy.name, toy.root, OTHERS)

    assert names(region) == INDEXES
    assert hnsw.parameters_of(region, generation, "v1") == OTHERS["v1"]


def test_a_rebuilt_index_that_was_not_dropped_yet_goes_with_the_next_run(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    region.execute("ALTER INDEX embedding_assets.generation_1_v1 RENAME TO generation_1_v1_old")

    build_indexes(region, toy.name, toy.root)

    assert names(region) == INDEXES


# Memory and progress


def test_a_server_with_little_shared_memory_builds_in_one_process(
    region: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend may make no file of more than 40 MB, and so no segment for workers: the server's own error."""
    toy = Toy()
    load(region, toy)
    limit_files(region, 40 << 20)

    report = build_indexes(region, toy.name, toy.root)["v1"]

    assert "could not resize shared memory segment" in caplog.text
    assert "building it in one process" in caplog.text
    assert report.built is not None
    assert report.built.workers == 0
    toy.publish_to(region)
    assert names(region) == INDEXES


def test_little_shared_memory_leaves_no_invalid_index_beside_a_served_one(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    limit_files(region, 40 << 20)

    built = build_indexes(region, toy.name, toy.root, OTHERS)["v1"].built
    assert built is not None
    assert built.workers == 0

    assert names(region) == INDEXES


def test_a_build_leaves_the_settings_of_its_session_as_they_were(region: Connection) -> None:
    toy = Toy()
    load(region, toy)
    settings = "SELECT name, setting FROM pg_settings WHERE name !~ '^(role|application_name)$' ORDER BY name"
    before = region.execute(settings).fetchall()

    build_indexes(region, toy.name, toy.root)

    assert region.execute(settings).fetchall() == before


def test_progress_is_told_while_an_index_is_built_and_at_its_end(
    region: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hnsw, "_EVERY_SECONDS", 0.01)
    bind(region, d1=64)
    toy = Toy(rows=400, d1=64)
    load(region, toy)
    events: list[Event] = []

    build_indexes(region, toy.name, toy.root, tell=events.append)

    progress = of_kind(events, IndexProgress)
    during = [now.vectors for now in progress if (now.slot, now.phase) == ("v1", "building index: loading tuples")]
    assert during == sorted(during)
    assert 0 < during[-1] <= 1200
    assert progress[-1] == IndexProgress("v2", "built", 1200, 1200)


def test_each_slots_index_is_told_of_once_it_is_built_and_once_it_is_measured(region: Connection) -> None:
    toy, events = Toy(), list[Event]()
    load(region, toy)

    reports = build_indexes(region, toy.name, toy.root, tell=events.append)
    build_indexes(region, toy.name, toy.root, tell=events.append)  # everything is there

    assert of_kind(events, IndexBuilt) == [
        IndexBuilt(slot, 120, built.seconds, built.granted, built.workers)
        for slot, report in reports.items()
        if (built := report.built)
    ]
    assert of_kind(events, RecallMeasured) == [
        RecallMeasured(slot, report.recall, report.ef_search, report.size_bytes) for slot, report in reports.items()
    ]


def test_a_connection_for_progress_that_breaks_fails_no_build(
    region: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hnsw, "_EVERY_SECONDS", 0.01)
    bind(region, d1=64)
    toy = Toy(rows=400, d1=64)
    load(region, toy)
    own = region.info.backend_pid

    def hang_up(event: Event) -> None:
        if isinstance(event, IndexProgress) and event.phase != "built":
            with psycopg.connect(dsn_of(region), autocommit=True) as third:
                third.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid NOT IN (%s, pg_backend_pid()) AND backend_type = 'client backend'",
                    [own],
                )

    reports = build_indexes(region, toy.name, toy.root, tell=hang_up)

    assert "v1 is built on, without progress to show" in caplog.text
    assert reports["v1"].vectors == 1200


def test_a_server_without_a_connection_to_spare_is_built_on_without_progress(
    region: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy()
    load(region, toy)

    @contextmanager
    def the_last_connection(conn: Connection, source: str, tell: Tell) -> Iterator[None]:
        name = sql.Identifier(region.info.dbname)
        with source_lock(conn, source), psycopg.connect(dsn_of(region), dbname="postgres", autocommit=True) as admin:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
            yield

    monkeypatch.setattr(index, "source_lock", the_last_connection)

    reports = build_indexes(region, toy.name, toy.root, tell=lambda _: None)

    assert "v1 is built without progress to show" in caplog.text
    assert reports["v1"].vectors == 120


def test_nobody_asks_for_progress_where_nobody_listens(region: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    load(region, toy)
    opened: list[str] = []
    monkeypatch.setattr(hnsw, "connect", opened.append)

    build_indexes(region, toy.name, toy.root)

    assert opened == []


def limit_files(conn: Connection, size: int) -> None:
    """Let a backend make no larger file, which shared memory is to the kernel; as whoever the server runs as."""
    found = os.stat(f"/proc/{conn.info.backend_pid}")
    own = os.geteuid() == found.st_uid
    subprocess.run(
        ["prlimit", f"--pid={conn.info.backend_pid}", f"--fsize={size}"],
        user=None if own else found.st_uid,
        group=None if own else found.st_gid,
        check=True,
    )
