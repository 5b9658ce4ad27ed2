"""Loads of a source that is served already: what differs is written, a shard at a time, while readers go on."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector import parallel
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.loading import costs, delta
from embedding_assets.pgvector.loading.delta import Incoming, difference, repair
from embedding_assets.pgvector.loading.generations import Loaded
from embedding_assets.pgvector.loading.load import load
from embedding_assets.pgvector.options import Hnsw
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.reading.status import region_status
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.rows.shards import ShardRef, ShardRows
from embedding_assets.pgvector.rows.vector_types import EMPTY, vector_type
from embedding_assets.pgvector.schema import roles
from embedding_assets.pgvector.schema.generations import Generation, published_generation
from embedding_assets.pgvector.schema.migrations import MIGRATIONS
from embedding_assets.telemetry.events import Event, LoadProgress
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import (
    D1,
    D2,
    Source,
    assert_serves,
    bind,
    edited,
    ledger,
    row,
    shard_rows,
    source,
)

SHARDS = 4


@pytest.fixture
def served(region: Connection) -> Source:
    made = source()
    made.publish(region)
    return made


def written(loaded: Loaded) -> tuple[str, int, int, int]:
    assert loaded.choice is not None
    inserted = loaded.rows_written - loaded.rows_updated
    return loaded.choice.way, inserted, loaded.rows_updated, loaded.rows_deleted


def why(loaded: Loaded) -> str:
    assert loaded.choice is not None
    return loaded.choice.why


def row_versions(conn: Connection) -> dict[UUID, str]:
    """Which transaction wrote each row."""
    return dict(conn.execute("SELECT chunk_id, xmin::text FROM embedding_assets.chunks").fetchall())


def test_only_the_rows_that_differ_are_written_and_readers_see_them_at_once(region: Connection, served: Source) -> None:
    before = row_versions(region)
    shard = served.shards[2]
    after = served.changed({2: [*edited(shard, 4)[1:], row(9_000)]})

    loaded = after.load(region)

    assert written(loaded) == ("delta", 1, 1, 1)
    assert after.read == [2]
    assert_serves(region, after)
    now = row_versions(region)
    assert {UUID(bytes=shard[4].chunk_id), UUID(bytes=row(9_000).chunk_id)} == {
        chunk for chunk in now if now[chunk] != before.get(chunk)
    }
    assert before.keys() - now.keys() == {UUID(bytes=shard[0].chunk_id)}


def test_a_shard_whose_change_is_told_is_not_read(region: Connection, served: Source) -> None:
    """Document 0 has other chunks, 2 lost one, 3 is gone, 5000 is new."""
    before = row_versions(region)
    shard = served.shards[0]
    gone = [r for r in shard if r.document_id == "doc-3"]
    kept = [r for r in edited(shard, 0, 1) if r not in (shard[11], *gone)]
    after = served.changed({0: [*kept, row(20_000), row(20_001)]}, told=True)

    loaded = after.load(region)

    assert after.read == []
    assert written(loaded) == ("delta", 2, 2, 1 + len(gone))
    assert_serves(region, after)
    now = row_versions(region)
    assert sum(before.get(chunk) != version for chunk, version in now.items()) == 4


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM embedding_assets.generation_1 WHERE ordinal = 3 AND shard = 0",
        "UPDATE embedding_assets.generation_1 SET digest = digest + 1 WHERE ordinal = 3 AND shard = 0",
        "UPDATE embedding_assets.ledger SET fingerprint = '0000000000000000' WHERE shard = 0",
    ],
    ids=["rows lost", "other rows", "another ledger"],
)
def test_where_the_table_is_not_what_the_ledger_says_the_shard_is_read_and_comes_right(
    region: Connection, served: Source, harm: str
) -> None:
    region.execute(harm)
    after = served.changed({0: edited(served.shards[0], 0)}, told=True)

    after.load(region)

    assert after.read == [0]
    assert_serves(region, after)


def test_a_told_change_that_does_not_make_the_shard_what_it_is_to_be_is_not_believed(
    region: Connection, served: Source
) -> None:
    """It forgets a document that is gone."""
    after = served.changed({0: served.shards[0][:-1]}, told=True)
    told = after.read_change(after.refs[0], served.refs[0].key)
    assert told is not None

    load(
        region,
        after.name,
        after.root,
        after.refs,
        after.read_shard,
        read_change=lambda ref, key: told._replace(gone=told.gone.slice(0, 0)),
    )

    assert_serves(region, after)


def test_after_a_delta_there_is_nothing_to_index_or_publish(region: Connection, served: Source) -> None:
    after = served.changed({0: edited(served.shards[0], 3)})
    generation = after.load(region).generation

    reports = build_indexes(region, after.name, after.root)
    published = publish(region, after.name, after.root, after.refs)

    assert published.id == generation.id
    assert all(report.built is None for report in reports.values())
    assert_serves(region, after)


def test_new_and_gone_and_emptied_shards_follow(region: Connection, served: Source) -> None:
    after = Source({shard: served.shards[shard][:-5] for shard in (1, 2, 3)})

    loaded = after.load(region)

    assert written(loaded) == ("delta", 0, 0, 30 + 15)
    assert_serves(region, after)
    assert written(served.load(region)) == ("delta", 45, 0, 0)
    assert_serves(region, served)


def test_nothing_new_reads_and_writes_nothing(region: Connection, served: Source) -> None:
    again, before = source(), row_versions(region)
    status = region_status(region)

    loaded = again.load(region)

    assert written(loaded) == ("nothing", 0, 0, 0)
    assert again.read == []
    assert (row_versions(region), region_status(region)) == (before, status)


def test_a_lost_ledger_costs_reading_and_no_row(region: Connection, served: Source) -> None:
    region.execute("DELETE FROM embedding_assets.ledger")
    region.execute("UPDATE embedding_assets.generations SET target_root = 'another'")
    before = row_versions(region)

    loaded = served.load(region)

    assert written(loaded) == ("delta", 0, 0, 0)
    assert row_versions(region) == before
    assert_serves(region, served)


def test_a_shard_that_left_with_its_ledger_row_lost_is_found_in_the_table(region: Connection, served: Source) -> None:
    region.execute("DELETE FROM embedding_assets.ledger")
    after = Source({shard: rows for shard, rows in served.shards.items() if shard != 1})

    assert written(after.load(region)) == ("delta", 0, 0, 30)
    assert_serves(region, after)


def test_shards_cut_anew_to_equal_rows_change_only_their_ledger_rows(region: Connection, served: Source) -> None:
    refs = [ref._replace(key=f"recut {ref.key}") for ref in served.refs]
    before = row_versions(region)

    loaded = load(region, served.name, "recut", refs, served.read_shard)

    assert written(loaded) == ("delta", 0, 0, 0)
    assert row_versions(region) == before
    assert [key for _, key, _ in ledger(region)] == [ref.key for ref in refs]


rows_by_number = st.dictionaries(st.integers(0, 30), st.integers(0, 2), max_size=12)


@given(stored=rows_by_number, new=rows_by_number)
def test_the_difference_turns_the_stored_rows_into_the_new_ones(stored: dict[int, int], new: dict[int, int]) -> None:
    def arrays(rows: dict[int, int]) -> tuple[pa.FixedSizeBinaryArray, np.ndarray]:
        ids = pa.array([number.to_bytes(16, "big") for number in rows], pa.binary(16))
        return ids, np.array(list(rows.values()), np.int64)

    found = difference(*arrays(new), *arrays(stored))

    left = {n: digest for n, digest in stored.items() if n.to_bytes(16, "big") not in found.stale.to_pylist()}
    sent = {n: digest for (n, digest), chosen in zip(new.items(), found.written, strict=True) if chosen}
    assert left.keys().isdisjoint(sent)
    assert left | sent == new
    assert found.inserted == len(new.keys() - stored.keys())
    assert found.deleted == len(stored.keys() - new.keys())
    assert found.updated == sum(stored[n] != new[n] for n in stored.keys() & new.keys())


edits = st.lists(
    st.dictionaries(st.integers(0, SHARDS - 1), st.lists(st.integers(0, 40), unique=True, max_size=12), min_size=1),
    min_size=1,
    max_size=3,
)
"""Histories: which rows shards have, one edition after the other; the rows of each edition have their own texts."""


@pytest.fixture(scope="module")
def history_database(postgres: object, search_database: str) -> str:
    return search_database


@given(history=edits, told=st.booleans())
@settings(max_examples=8)
def test_any_history_of_changes_leads_to_what_its_last_edition_says(
    history_database: str, history: list[dict[int, list[int]]], told: bool
) -> None:
    with connect(history_database) as conn:
        bind(conn)
        present = source()
        present.publish(conn)
        for edition, shards in enumerate(history):
            present = present.changed(
                {
                    shard: [row(100 * shard + n, content=f"text {n % 3} of edition {edition % 2}") for n in numbers]
                    for shard, numbers in shards.items()
                },
                told=told,
            )
            present.publish(conn)
            assert_serves(conn, present)


# Which way


def test_a_change_above_the_crossover_makes_a_new_generation(
    region: Connection, served: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_GENERATION", 0.0)
    after = Source({shard: edited(rows, *range(0, 30, 2)) for shard, rows in served.shards.items()})

    loaded = after.load(region)

    assert written(loaded) == ("new generation", 120, 0, 0)
    assert loaded.choice is not None
    assert loaded.choice.share == pytest.approx(0.5, abs=0.01)
    assert loaded.choice.delta_seconds > loaded.choice.generation_seconds
    assert served.differences(region) == []  # readers still have the old one
    after.publish(region)
    assert_serves(region, after)


def test_many_small_deltas_end_in_a_new_generation(
    region: Connection, served: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_GENERATION", 0.0)
    ways, present = [], served
    for edition in range(12):
        rows = [r._replace(content=f"edition {edition}") if n < 3 else r for n, r in enumerate(present.shards[1])]
        present = present.changed({1: rows})
        ways.append(written(present.publish(region))[0])
        assert_serves(region, present)

    first = ways.index("new generation")
    assert 1 <= first < 11
    assert set(ways[:first]) == {"delta"}
    assert ways[first + 1] == "delta"  # counted anew from there


def test_the_sample_tells_how_much_differs(region: Connection, served: Source) -> None:
    after = Source({shard: edited(rows, 0, 1, 2) for shard, rows in served.shards.items()})

    choice = after.load(region).choice

    assert choice is not None
    assert choice.rows_differing == 2 * 3 * SHARDS / 2


@given(
    rows=st.integers(0, 10**8),
    differing=st.integers(0, 10**8),
    drifted=st.integers(0, 10**8),
    d1=st.integers(1, 4000),
    d2=st.integers(1, 4000),
)
def test_the_cheaper_way_is_chosen(rows: int, differing: int, drifted: int, d1: int, d2: int) -> None:
    choice = costs.choose(rows, differing, drifted, (vector_type(d1), vector_type(d2)))

    assert (choice.way == "delta") == (drifted + differing <= choice.rows_at_crossover)
    if choice.way == "delta":
        assert choice.delta_seconds <= choice.generation_seconds
    if not drifted and choice.way == "new generation":
        assert choice.generation_seconds <= choice.delta_seconds


@given(rows=st.integers(1, 10**8), more=st.integers(1, 10**8), dimensions=st.integers(1, 4000))
def test_a_row_costs_more_to_index_the_more_there_are_but_never_by_as_much(
    rows: int, more: int, dimensions: int
) -> None:
    few, many = (costs.index_seconds(n, dimensions, Hnsw()) / n for n in (rows, rows + more))

    assert few <= many <= few * (rows + more) / rows


def test_a_slot_without_a_model_costs_nothing() -> None:
    alone = costs.choose(100_000, 1_000, 0, (vector_type(384), EMPTY))
    beside = costs.choose(100_000, 1_000, 0, (vector_type(384), vector_type(384)))

    assert beside.generation_seconds == pytest.approx(2 * alone.generation_seconds, abs=costs._GENERATION)
    assert beside.delta_seconds == pytest.approx(2 * alone.delta_seconds)


def test_another_number_of_shards_is_loaded_anew(region: Connection, served: Source) -> None:
    halved = Source({n: [*served.shards[2 * n], *served.shards[2 * n + 1]] for n in range(SHARDS // 2)})

    loaded = halved.publish(region)

    assert (written(loaded), why(loaded)) == (("new generation", 120, 0, 0), "the source has another number of shards")
    assert_serves(region, halved)


def test_what_lost_its_root_to_a_new_model_or_a_migration_is_loaded_anew(region: Connection, served: Source) -> None:
    region.execute("UPDATE embedding_assets.generations SET target_root = ''")

    loaded = served.publish(region)

    assert written(loaded) == ("new generation", 120, 0, 0)
    assert why(loaded) == "what is published lacks the vectors of a model, or its digests"
    assert_serves(region, served)


def test_a_database_from_before_digests_goes_on_serving_and_is_loaded_anew(region: Connection, served: Source) -> None:
    """The migration may run twice; published rows stay, and unfinished generations go."""
    load_generation(region, served.name, "unfinished", served.refs, served.read_shard)
    region.execute("ALTER TABLE embedding_assets.chunks DROP COLUMN digest")
    region.execute("ALTER TABLE embedding_assets.generations DROP COLUMN rows_changed")

    for _ in range(2):
        with region.transaction():
            region.execute((MIGRATIONS / "0003_digests.sql").read_bytes())
            region.execute((MIGRATIONS / "0009_digests.sql").read_bytes())
            region.execute((MIGRATIONS / "0010_chunk_hashes.sql").read_bytes())

    assert region.execute("SELECT count(*), count(digest) FROM embedding_assets.chunks").fetchone() == (120, 0)
    assert region.execute("SELECT state, target_root FROM embedding_assets.generations").fetchall() == [
        ("published", "")
    ]
    assert written(served.publish(region)) == ("new generation", 120, 0, 0)
    assert_serves(region, served)


def test_documents_that_moved_between_shards_unnoticed_are_loaded_anew(
    region: Connection, served: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CONNECTIONS", 1)
    here, there = served.shards[0], served.shards[2]
    after = Source({2: [*there, *here[:4]], 0: here[4:], 1: served.shards[1], 3: served.shards[3]})

    loaded = after.publish(region)

    assert (written(loaded), why(loaded)) == (("new generation", 120, 0, 0), "documents moved between shards")
    assert after.differences(region) == []


def test_a_new_generation_that_was_begun_is_gone_on_with(region: Connection, served: Source) -> None:
    after = served.changed({1: edited(served.shards[1], 0)})
    load_generation(region, after.name, after.root, after.refs[:2], after.read_shard)

    loaded = after.publish(region)

    assert (written(loaded), why(loaded)) == (("new generation", 60, 0, 0), "an earlier load began it")
    assert_serves(region, after)


def test_a_delta_drops_what_other_loads_left_unfinished(region: Connection, served: Source) -> None:
    load_generation(region, served.name, "abandoned", served.refs, served.read_shard)
    after = served.changed({1: edited(served.shards[1], 0)})

    assert written(after.load(region))[0] == "delta"

    assert_serves(region, after)


# What goes wrong


def test_a_change_undone_after_half_a_delta_is_undone_in_the_table(
    region: Connection, served: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table holds neither root in between, and says so."""
    monkeypatch.setattr(parallel, "CONNECTIONS", 1)
    after = Source({shard: edited(rows, 0) for shard, rows in served.shards.items()})
    with pytest.raises(OSError, match="away"):
        after.load(region, failing_at(3, after))
    generation = published_generation(region, served.name)
    assert generation is not None
    assert generation.target_root not in (served.root, after.root)

    assert written(served.load(region)) == ("delta", 0, 3, 0)

    assert_serves(region, served)


def test_a_delta_that_failed_goes_on_by_the_ledger(
    region: Connection, served: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CONNECTIONS", 1)
    after = Source({shard: edited(rows, 0) for shard, rows in served.shards.items()})
    with pytest.raises(OSError, match="away"):
        after.load(region, failing_at(3, after))
    after.read.clear()

    assert written(after.load(region)) == ("delta", 0, 1, 0)

    assert after.read == [3]
    assert_serves(region, after)


def failing_at(shard: int, wanted: Source) -> Callable[[ShardRef], ShardRows]:
    def read(ref: ShardRef) -> ShardRows:
        if ref.shard == shard:
            raise OSError("the store is away")
        return wanted.read_shard(ref)

    return read


def test_a_shard_that_is_not_in_the_table_as_it_was_sent_is_rolled_back_by_name(
    region: Connection, served: Source
) -> None:
    region.execute(
        """
        CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.content := NEW.content || '!'; RETURN NEW; END $$;
        CREATE TRIGGER meddle BEFORE INSERT ON embedding_assets.generation_1 FOR EACH ROW
            WHEN (NEW.shard = 2) EXECUTE FUNCTION meddle()
        """
    )
    before = row_versions(region)
    after = served.changed({2: edited(served.shards[2], 0, 1)})

    with pytest.raises(PermanentError, match=r"shard 2: .* 0 of 2 rows written are as they were sent"):
        after.load(region)

    assert row_versions(region) == before
    region.execute("DROP TRIGGER meddle ON embedding_assets.generation_1")
    after.load(region)
    assert_serves(region, after)


def test_a_row_that_vanishes_under_the_delta_is_noticed_before_the_commit(region: Connection, served: Source) -> None:
    region.execute(
        """
        CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER swallow BEFORE INSERT ON embedding_assets.generation_1 FOR EACH ROW EXECUTE FUNCTION swallow()
        """
    )
    after = served.changed({2: edited(served.shards[2], 0)})

    with pytest.raises(PermanentError, match=r"shard 2: 29 rows in the table with fingerprint \w{16}, 30 in the snap"):
        after.load(region)

    assert served.differences(region) == []


def test_a_loader_that_lost_the_lock_with_its_session_writes_nothing_more(
    region: Connection, served: Source, database: str
) -> None:
    """The session that holds the lock is killed while it reads a shard; another loader finishes; then it goes on."""
    first = Source({shard: edited(rows, 0) for shard, rows in served.shards.items()})
    second = Source({shard: edited(rows, 1) for shard, rows in served.shards.items()})
    killed = threading.Event()

    def read(ref: ShardRef) -> ShardRows:
        if ref.shard == 3 and not killed.is_set():
            killed.set()
            with connect(database) as another:
                another.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name LIKE 'embedding-assets lock %'"
                )
                second.load(another)
        return first.read_shard(ref)

    with pytest.raises(TransientError, match="another process has taken over the load"):
        first.load(region, read)

    with connect(database) as conn:
        assert_serves(conn, second)


def test_a_chunk_twice_in_a_shard_is_refused_before_readers_see_it(region: Connection, served: Source) -> None:
    after = served.changed({1: [*served.shards[1], served.shards[1][0]]})

    with pytest.raises(PermanentError, match="has a chunk twice"):
        after.publish(region)

    assert served.differences(region) == []


def test_vectors_of_other_dimensions_are_refused(region: Connection, served: Source) -> None:
    after = served.changed({1: edited(served.shards[1], 0)})

    with pytest.raises(PermanentError, match="materialize the embeddings of this source with the models as bound"):
        after.load(region, lambda ref: shard_rows([row(n, 16, D2) for n in range(ref.rows)], 16, D2))


def test_where_the_server_has_no_connection_to_spare_beside_the_lock_s_one_does_the_work(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parallel, "CONNECTIONS", 4)
    before = source()
    after = Source({shard: edited(rows, 0) for shard, rows in before.shards.items()})
    with connect(database) as admin:
        admin.execute("CREATE ROLE narrow LOGIN CONNECTION LIMIT 2 IN ROLE embedding_ingest")
        try:
            with connect(make_conninfo(database, user="narrow")) as conn:
                roles.act_as_ingest(conn)
                bind(conn)
                before.publish(conn)
                assert written(after.load(conn)) == ("delta", 0, 4, 0)
                assert_serves(conn, after)
        finally:
            admin.execute("DROP ROLE narrow")
    assert "going on with 1 connections: connecting to the region's database" in caplog.text


def test_two_loaders_queue_and_the_second_finds_the_work_done(database: str) -> None:
    with connect(database) as conn:
        bind(conn)
        source().publish(conn)
    after, ways = source(), list[tuple[str, int, int, int]]()
    after = after.changed({1: edited(after.shards[1], 0)})

    def run() -> None:
        with connect(database) as conn:
            ways.append(written(after.load(conn)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(ways) == [("delta", 0, 1, 0), ("nothing", 0, 0, 0), ("nothing", 0, 0, 0)]


def test_progress_counts_what_is_there_and_what_was_brought(region: Connection, served: Source) -> None:
    after, events = served.changed({1: edited(served.shards[1], 0)}), list[Event]()

    loaded = load(region, after.name, after.root, after.refs, after.read_shard, events.append)

    assert events == [LoadProgress(4, 4, 120, 120, rows_written=1, bytes_written=loaded.bytes_written)]


def test_readers_never_see_half_of_a_document_change(
    region: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six readers ask without pause while every document changes eight times by deltas."""
    monkeypatch.setattr(costs, "_GENERATION", 1e6)
    query = vector_literal(np.ones(D1, np.float32))

    def edition(number: int) -> Source:
        return Source(
            {
                shard: [row(100 * shard + n, content=f"edition {number}", document_id=f"doc {shard}") for n in range(8)]
                for shard in range(SHARDS)
            }
        )

    edition(0).publish(region)
    done, started = threading.Event(), threading.Barrier(7)
    answers, failures = list[int](), list[str]()

    def read() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            started.wait()
            while not done.is_set():
                try:
                    found = conn.execute("SELECT document_id, content FROM search(%s, 32)", [query]).fetchall()
                except psycopg.Error as error:
                    failures.append(str(error))
                    return
                answers.append(len(found))
                if len(found) != 32 or len(set(found)) != SHARDS:
                    failures.append(f"{len(found)} hits, documents in {sorted(set(found))}")

    readers = [threading.Thread(target=read) for _ in range(6)]
    for reader in readers:
        reader.start()
    started.wait()
    try:
        ways = [written(edition(number).load(region))[0] for number in range(1, 9)]
    finally:
        done.set()
        for reader in readers:
            reader.join()

    assert failures == []
    assert len(answers) > 6
    assert ways == ["delta"] * 8


# Repair


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE {} SET content = 'forged' WHERE shard = 1 AND ordinal = 0",
        "UPDATE {} SET digest = 0 WHERE shard = 1 AND ordinal = 0",
        "DELETE FROM {} WHERE shard = 1",
        "UPDATE {} SET shard = 2 WHERE shard = 1 AND ordinal = 0",
        "UPDATE {} SET shard = 9 WHERE shard = 1",
        "UPDATE {} SET embedding_v2 = NULL WHERE shard = 1",
        "INSERT INTO {0} (chunk_id, document_id, ordinal, start_offset, end_offset, content, metadata, shard, digest) "
        "SELECT gen_random_uuid(), document_id, ordinal, 0, 1, content, metadata, 1, digest FROM {0} WHERE shard = 2",
    ],
)
def test_shards_that_differ_are_replaced_whole_whatever_their_digests_say(
    region: Connection, served: Source, tampering: str
) -> None:
    table = sql.SQL("embedding_assets.generation_1")
    region.execute(sql.SQL(tampering).format(table))
    bad = {int(one.split()[1].rstrip(":")) for one in served.differences(region)}
    assert 1 in bad

    repair(region, served.name, served.root, served.refs, served.read_shard, bad)

    assert_serves(region, served)


def test_rows_that_another_connection_puts_where_they_belong_stay_there(
    region: Connection, served: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shard 9, which nobody should have, is read before shard 1 takes its rows back, and emptied after that."""
    region.execute("UPDATE embedding_assets.generation_1 SET shard = 9 WHERE shard = 1")
    read, taken_back = threading.Event(), threading.Event()
    stored, merge = delta.stored_rows, delta._merge

    def stored_in_turn(conn: Connection, published: Generation, shard: int) -> Any:
        found = stored(conn, published, shard)
        if shard == 9:
            read.set()
            assert taken_back.wait(30)
        return found

    def merge_in_turn(conn: Connection, generation: Generation, shard: Incoming, *rest: Any, **named: Any) -> Any:
        assert shard.ref.shard == 9 or read.wait(30)
        merged = merge(conn, generation, shard, *rest, **named)
        if shard.ref.shard == 1:
            taken_back.set()
        return merged

    monkeypatch.setattr(parallel, "CONNECTIONS", 2)
    monkeypatch.setattr(delta, "stored_rows", stored_in_turn)
    monkeypatch.setattr(delta, "_merge", merge_in_turn)

    repair(region, served.name, served.root, served.refs, served.read_shard, {1, 9})

    assert_serves(region, served)


def test_only_the_shards_named_are_replaced(region: Connection, served: Source) -> None:
    before = row_versions(region)

    repair(region, served.name, served.root, served.refs, served.read_shard, {1})

    changed = {chunk for chunk, version in row_versions(region).items() if version != before[chunk]}
    assert changed == {UUID(bytes=r.chunk_id) for r in served.shards[1]}


def test_what_was_loaded_from_another_root_is_not_repaired(region: Connection, served: Source) -> None:
    after = served.changed({1: edited(served.shards[1], 0)})

    with pytest.raises(PermanentError, match="Cure: embedding-assets materialize"):
        repair(region, after.name, after.root, after.refs, after.read_shard, {1})
