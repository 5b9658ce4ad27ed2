"""Loading a new generation: aside from readers, shard by shard, and never twice."""

import threading
from collections.abc import Callable

import psycopg
import pyarrow as pa
import pytest

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector import parallel
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.reading.status import region_status
from embedding_assets.pgvector.rows.shards import ShardRef, ShardRows
from embedding_assets.pgvector.schema.generations import find_generation
from embedding_assets.telemetry.events import Event, LoadProgress
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Toy, bind, row, shard_rows


def generation_tables(conn: Connection) -> list[str]:
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relname ~ '^generation_[0-9]+$' AND relkind = 'r' ORDER BY oid"
    )
    return [name for (name,) in rows]


def visible(conn: Connection) -> int:
    found = conn.execute("SELECT count(*) FROM live_chunks").fetchone()
    assert found is not None
    return int(found[0])


def load(conn: Connection, toy: Toy, read: Callable[[ShardRef], ShardRows] | None = None) -> int:
    return load_generation(conn, toy.name, toy.root, toy.refs, read or toy.read).rows_written


def test_what_is_loaded_stays_aside_until_it_is_published(region: Connection) -> None:
    toy = Toy()

    loaded = load_generation(region, toy.name, toy.root, toy.refs, toy.read)

    assert (loaded.rows, loaded.rows_written, loaded.shards_written) == (120, 120, 3)
    assert visible(region) == 0
    build_indexes(region, toy.name, toy.root)
    publish(region, toy.name, toy.root, toy.refs)
    assert visible(region) == 120
    assert compare(region, toy.name, toy.refs, toy.read) == []


def test_loading_what_is_published_reads_and_writes_nothing(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    (status,) = region_status(region)

    def read(ref: ShardRef) -> ShardRows:
        raise AssertionError(f"shard {ref.shard} was read")

    assert load(region, toy, read) == 0
    assert region_status(region) == [status]
    assert generation_tables(region) == ["generation_1"]


def test_a_load_that_failed_half_way_goes_on_with_what_is_missing(
    region: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CONNECTIONS", 2)
    toy, asked = Toy(), list[int]()

    def read(ref: ShardRef) -> ShardRows:
        asked.append(ref.shard)
        if ref.shard == 2 and asked.count(2) == 1:
            raise OSError("the store is away")
        return toy.read(ref)

    with pytest.raises(OSError, match="away"):
        load(region, toy, read)
    assert load(region, toy, read) == 40  # what was under way came to its end

    assert sorted(asked) == [0, 1, 2, 2]
    assert generation_tables(region) == ["generation_1"]


def test_shards_are_loaded_on_several_connections_at_once(region: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three loads waits, in its thread, until all three have begun."""
    monkeypatch.setattr(parallel, "CONNECTIONS", 3)
    toy, all_began = Toy(), threading.Barrier(3, timeout=30)

    def read(ref: ShardRef) -> ShardRows:
        all_began.wait()
        return toy.read(ref)

    assert load(region, toy, read) == 120


def test_no_more_shards_are_in_memory_than_connections_are_open(
    region: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twenty shards of a megabyte, each once as it was read and once as it is sent."""
    monkeypatch.setattr(parallel, "CONNECTIONS", 2)
    refs = [ShardRef(n, str(n), 10) for n in range(20)]
    before, held = pa.total_allocated_bytes(), list[int]()

    def read(ref: ShardRef) -> ShardRows:
        held.append(pa.total_allocated_bytes() - before)
        return shard_rows([row(10 * ref.shard + n, content="x" * 100_000) for n in range(10)])

    load_generation(region, "large", "root", refs, read)

    assert max(held) < 6e6


def test_unfinished_tables_of_other_roots_are_dropped(region: Connection) -> None:
    toy = Toy()
    load(region, toy)

    load(region, toy.edited())

    assert generation_tables(region) == ["generation_2"]
    assert find_generation(region, toy.name, toy.root) is None


def test_another_source_is_not_touched(region: Connection) -> None:
    first, second = Toy("first"), Toy("second")
    first.publish_to(region)
    load(region, second)
    load(region, first.edited())

    assert generation_tables(region) == ["generation_1", "generation_2", "generation_3"]
    assert visible(region) == 120


def test_two_loaders_of_one_source_queue_and_the_second_finds_the_work_done(database: str) -> None:
    toy, results = Toy(), []
    with connect(database) as conn:
        bind(conn)

    def run() -> None:
        with connect(database) as conn:
            written = load(conn, toy)
            build_indexes(conn, toy.name, toy.root)
            publish(conn, toy.name, toy.root, toy.refs)
            results.append(written)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == [0, 0, 120]
    with connect(database) as conn:
        assert generation_tables(conn) == ["generation_1"]
        assert compare(conn, toy.name, toy.refs, toy.read) == []


def test_progress_counts_shards_and_rows(region: Connection) -> None:
    toy, events = Toy(), list[Event]()

    loaded = load_generation(region, toy.name, toy.root, toy.refs, toy.read, events.append)

    progress = of_kind(events, LoadProgress)
    assert [(now.shards, now.all_shards, now.rows, now.all_rows) for now in progress] == [
        (1, 3, 40, 120), (2, 3, 80, 120), (3, 3, 120, 120),
    ]  # fmt: skip
    assert (progress[-1].rows_written, progress[-1].bytes_written) == (loaded.rows_written, loaded.bytes_written)


def test_an_empty_source_is_loaded_indexed_and_published(region: Connection) -> None:
    empty = Toy(shards=0)

    empty.publish_to(region)

    (status,) = region_status(region)
    assert (status.rows, status.ledger) == (0, {})
    assert all(index.valid for index in status.indexes)


def test_a_source_whose_documents_are_all_gone_disappears_from_search(region: Connection) -> None:
    Toy().publish_to(region)

    Toy(shards=0).publish_to(region)

    assert visible(region) == 0


def test_a_source_may_have_any_name(region: Connection) -> None:
    toy = Toy("\"; DROP TABLE embedding_assets.chunks; -- '%s {}")

    toy.publish_to(region)

    assert [status.source for status in region_status(region)] == [toy.name]
    assert region.execute("SELECT DISTINCT source FROM live_chunks").fetchall() == [(toy.name,)]


def test_chunks_without_a_vector_are_stored_and_stay_out_of_search(region: Connection) -> None:
    rows = [row(1), row(2, v1=None), row(3, v2=None), row(4, v1=None, v2=None)]
    refs = [ShardRef(0, "a" * 64, 4)]
    load_generation(region, "holes", "root", refs, lambda _: shard_rows(rows))
    build_indexes(region, "holes", "root")
    publish(region, "holes", "root", refs)

    assert visible(region) == 2
    assert region.execute("SELECT count(*) FROM embedding_assets.chunks").fetchone() == (4,)


def test_vectors_of_another_dimension_than_the_bound_models_are_refused(region: Connection) -> None:
    with pytest.raises(PermanentError, match=r"vectors have \(16, 12\) dimensions .* models have \(8, 12\)"):
        load(region, Toy(d1=16))


def test_vectors_of_other_chunks_are_refused(region: Connection) -> None:
    toy = Toy()

    def read(ref: ShardRef) -> ShardRows:
        rows = toy.rows_of(ref.shard)
        of_chunks, of_others = shard_rows(rows), shard_rows(rows[::-1])
        return of_chunks._replace(vectors=(of_chunks.vectors[0], of_others.vectors[1]))

    with pytest.raises(PermanentError, match="vectors of v2 are not row for row those of the chunks"):
        load(region, toy, read)


def test_a_chunk_twice_in_a_source_is_refused_by_name(region: Connection) -> None:
    in_one, in_two = [ShardRef(0, "a" * 64, 2)], [ShardRef(0, "b" * 64, 1), ShardRef(1, "c" * 64, 1)]

    with pytest.raises(PermanentError, match=r"shard 0 \(a{64}\) has a chunk twice"):
        load_generation(region, "twice", "one", in_one, lambda _: shard_rows([row(1), row(1)]))

    load_generation(region, "twice", "two", in_two, lambda _: shard_rows([row(1)]))
    with pytest.raises(PermanentError, match="source 'twice' has a chunk twice"):
        build_indexes(region, "twice", "two")


def test_attaching_needs_no_scan_of_the_table(region: Connection) -> None:
    notices: list[str] = []
    region.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    region.execute("SET client_min_messages = debug1")

    Toy().publish_to(region)

    assert any('partition constraint for table "generation_1" is implied' in notice for notice in notices)


def test_a_load_without_models_says_what_to_do(database: str) -> None:
    toy = Toy()
    with connect(database) as conn, pytest.raises(PermanentError, match="no models are bound"):
        load(conn, toy)


def test_backends_that_are_killed_are_a_transient_error_and_the_next_run_converges(
    region: Connection, database: str
) -> None:
    toy = Toy()

    def read(ref: ShardRef) -> ShardRows:
        if ref.shard == 2:
            with psycopg.connect(database, autocommit=True) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        return toy.read(ref)

    with pytest.raises(TransientError, match="loading source 'handbook'"):
        load(region, toy, read)

    with connect(database) as conn:
        toy.publish_to(conn)
        assert compare(conn, toy.name, toy.refs, toy.read) == []
