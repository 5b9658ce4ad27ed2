"""Publishing: the new generation takes the old one's place in one moment, or not at all."""

import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg.sql import Composable

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector import locks
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes, require_generation
from embedding_assets.pgvector.publishing import publish as publishing
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.publishing.publish import Difference, prove, publish
from embedding_assets.pgvector.rows import fingerprint
from embedding_assets.pgvector.rows.fingerprint import Content, Pages
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.rows.vector_types import VectorTypes
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.telemetry.events import Event, GenerationPublished
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Toy, row

READERS = 8


def prepare(conn: Connection, toy: Toy) -> None:
    load_generation(conn, toy.name, toy.root, toy.refs, toy.read)
    build_indexes(conn, toy.name, toy.root)


def proved(conn: Connection, toy: Toy) -> list[Difference]:
    return prove(conn, require_generation(conn, toy.name, toy.root), toy.refs)


def editions(conn: Connection) -> list[str]:
    rows = conn.execute("SELECT DISTINCT split_part(content, ',', 1) FROM live_chunks ORDER BY 1")
    return [edition for (edition,) in rows]


def tables(conn: Connection) -> list[str]:
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relname ~ '^generation_[0-9]+$' AND relkind = 'r' ORDER BY oid"
    )
    return [name for (name,) in rows]


def test_the_new_generation_replaces_the_old_one_which_is_dropped(region: Connection) -> None:
    old = Toy()
    old.publish_to(region)

    old.edited().publish_to(region)

    assert editions(region) == ["edition 1"]
    assert tables(region) == ["generation_2"]
    assert region.execute("SELECT count(*) FROM embedding_assets.ledger").fetchone() == (3,)


def test_publishing_twice_does_nothing_the_second_time(region: Connection) -> None:
    toy, events = Toy(), list[Event]()
    prepare(region, toy)
    first = publish(region, toy.name, toy.root, toy.refs, events.append)
    at = region.execute("SELECT published_at FROM embedding_assets.generations").fetchone()

    assert publish(region, toy.name, toy.root, toy.refs, events.append) == first
    assert region.execute("SELECT published_at FROM embedding_assets.generations").fetchone() == at
    (published,) = of_kind(events, GenerationPublished)
    assert published.generation == first.id
    assert 0 < published.seconds < 10


def change_content(conn: Connection) -> None:
    conn.execute("UPDATE embedding_assets.generation_2 SET content = 'another' WHERE shard = 1 AND ordinal = 0")


def lose_rows(conn: Connection) -> None:
    conn.execute("DELETE FROM embedding_assets.generation_2 WHERE shard = 2 AND ordinal = 0")


def lose_ledger_row(conn: Connection) -> None:
    conn.execute("DELETE FROM embedding_assets.ledger WHERE generation = 2 AND shard = 0")


def lose_index(conn: Connection) -> None:
    conn.execute("DROP INDEX embedding_assets.generation_2_v2")


@pytest.mark.parametrize("pages", [1, 8_192])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (change_content, r"shard 1: 40 rows wanted, 40 sent with fingerprint \w{16}, 40 in the table with \w{16}"),
        (lose_rows, r"shard 2: 40 rows wanted, 40 sent with fingerprint \w{16}, 30 in the table"),
        (lose_ledger_row, r"shard 0: loaded from nothing, wanted \w{64}"),
        (lose_index, "index generation_2_v2 is missing or invalid"),
    ],
)
@pytest.mark.parametrize("proved_before", [False, True])
def test_a_table_that_is_not_what_was_sent_is_never_published_however_many_read_it(
    region: Connection,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Connection], None],
    told: str,
    pages: int,
    proved_before: bool,
) -> None:
    monkeypatch.setattr(publishing, "_PAGES", pages)
    old, new = Toy(), Toy().edited()
    old.publish_to(region)
    prepare(region, new)
    if proved_before:
        assert proved(region, new) == []
    damage(region)

    with pytest.raises(PermanentError, match=told):
        publish(region, new.name, new.root, new.refs)

    assert editions(region) == ["edition 0"]
    assert tables(region) == ["generation_1"]
    new.publish_to(region)
    assert compare(region, new.name, new.refs, new.read) == []


@pytest.mark.parametrize("proved_before", [False, True])
def test_a_proved_table_is_published_without_hashing_a_row_again(
    region: Connection, monkeypatch: pytest.MonkeyPatch, proved_before: bool
) -> None:
    hashed: list[Pages] = []
    of_table = fingerprint.of_table

    def counted(conn: Connection, table: Composable, types: VectorTypes, pages: Pages) -> dict[int, Content]:
        hashed.append(pages)
        return of_table(conn, table, types, pages)

    toy = Toy()
    prepare(region, toy)
    if proved_before:
        assert proved(region, toy) == []
    monkeypatch.setattr(fingerprint, "of_table", counted)

    publish(region, toy.name, toy.root, toy.refs)

    assert bool(hashed) != proved_before
    assert editions(region) == ["edition 0"]


def test_what_was_written_by_who_was_at_it_during_the_proof_is_not_proved(region: Connection, database: str) -> None:
    toy = Toy()
    prepare(region, toy)
    with psycopg.connect(database) as other:
        other.execute("UPDATE embedding_assets.generation_1 SET content = 'forged' WHERE shard = 1 AND ordinal = 0")
        assert proved(region, toy) == []

    with pytest.raises(PermanentError, match="shard 1: 40 rows wanted"):
        publish(region, toy.name, toy.root, toy.refs)


def test_a_proof_that_fails_takes_back_the_one_before(region: Connection) -> None:
    toy = Toy()
    prepare(region, toy)
    assert proved(region, toy) == []
    region.execute("UPDATE embedding_assets.generation_1 SET content = 'forged' WHERE shard = 1 AND ordinal = 0")

    assert [difference.shard for difference in proved(region, toy)] == [1]
    assert region.execute("SELECT proved FROM embedding_assets.generations").fetchone() == (None,)


def test_shards_that_the_snapshot_does_not_have_are_never_published(region: Connection) -> None:
    toy = Toy()
    prepare(region, toy)

    with pytest.raises(PermanentError, match=r"shard 2: loaded \(\w{64}\), and not in the snapshot"):
        publish(region, toy.name, toy.root, toy.refs[:2])


def test_publishing_what_was_never_loaded_says_what_to_do(region: Connection) -> None:
    with pytest.raises(PermanentError, match="Materialize pgvector_table for this partition again"):
        publish(region, "nowhere", "root", [])


def test_a_reader_that_never_ends_makes_publishing_give_up_and_the_old_generation_serves(
    region: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SWAP_ATTEMPTS", 2)
    monkeypatch.setattr(locks, "SWAP_LOCK_TIMEOUT", "50ms")
    old, new = Toy(), Toy().edited()
    old.publish_to(region)
    prepare(region, new)

    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM live_chunks")
        with pytest.raises(TransientError, match="readers held the table's lock through 2 attempts"):
            publish(region, new.name, new.root, new.refs)
        assert editions(region) == ["edition 0"]
        # A reader that comes meanwhile is not held up for longer than an attempt.
        with connect(database) as another:
            assert editions(another) == ["edition 0"]

    publish(region, new.name, new.root, new.refs)
    assert editions(region) == ["edition 1"]


@pytest.mark.parametrize(("k", "expected"), [(10, 10), (1_000, 200)], ids=["by the index", "by the table, after it"])
def test_readers_never_notice_a_publication(region: Connection, database: str, k: int, expected: int) -> None:
    """Eight readers ask without pause while the source is replaced four times: no error, no short answer, no mix."""
    toy = Toy(shards=2, rows=100)
    toy.publish_to(region)
    query = vector_literal(row(5_000_000).v1)  # type: ignore[arg-type]
    done, started = threading.Event(), threading.Barrier(READERS + 1)
    answers: list[tuple[int, int]] = []
    failures: list[str] = []

    def read() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            started.wait()
            while not done.is_set():
                try:
                    found = conn.execute("SELECT content FROM search(%s, %s, 'handbook')", [query, k]).fetchall()
                    (count,) = conn.execute("SELECT count(*) FROM live_chunks", prepare=True).fetchone() or (0,)
                except psycopg.Error as error:
                    failures.append(str(error))
                    return
                mixed = len({content.split(",")[0] for (content,) in found})
                answers.append((len(found), count))
                if (len(found), count, mixed) != (expected, 200, 1):
                    failures.append(f"{len(found)} of {expected} hits of {mixed} generations, {count} rows")

    readers = [threading.Thread(target=read) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    started.wait()
    try:
        for _ in range(4):
            toy = toy.edited()
            toy.publish_to(region)
    finally:
        done.set()
        for reader in readers:
            reader.join()

    assert failures == []
    assert len(answers) > READERS
    assert published_generation(region, toy.name).target_root == toy.root  # type: ignore[union-attr]
