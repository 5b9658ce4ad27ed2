"""New generations: a table of a source, built aside from what readers see, one transaction for each shard.

A killed load leaves a detached table and its ledger; the next load of the same root goes on with the missing shards.
Publishing is another module's work.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector import fingerprint
from embedding_assets.pgvector.connection import Connection, pipeline_errors, short_transaction, source_lock
from embedding_assets.pgvector.copy import COLUMNS, HEADER, TRAILER, Block, encode
from embedding_assets.pgvector.fingerprint import Fingerprint
from embedding_assets.pgvector.schema import bound_dimensions, generation_table
from embedding_assets.pgvector.shards import ReadShard, ShardRef, check_aligned, dimensions_of
from embedding_assets.snapshots.failpoints import failpoint

_log = logging.getLogger(__name__)

TOAST_TUPLE_TARGET: Final = 8160
"""Keeps a row of up to one page in line: 2.4 × less server CPU than TOAST at 384 dimensions, 1.5 × at 1,536 (FIELD §4).

That is where both vectors and the texts stay below 8 kB, such as 384 + 1,536 dimensions with 300 characters of text.
In a longer row the larger vector goes to TOAST, as it would in any table.
"""


class Generation(NamedTuple):
    """A source's table in a region, by what was loaded into it (`target_root`)."""

    id: int
    source: str
    target_root: str
    state: str


class Loaded(NamedTuple):
    """What a load came to; the `written` counts are zero where everything was there already."""

    generation: Generation
    rows: int
    shards: int
    rows_written: int
    shards_written: int
    bytes_written: int


class LoadProgress(NamedTuple):
    """Of the shards and rows of a load, what is in the table."""

    shards: int
    all_shards: int
    rows: int
    all_rows: int


def load_generation(
    conn: Connection,
    source: str,
    target_root: str,
    shards: Sequence[ShardRef],
    read_shard: ReadShard,
    progress: Callable[[LoadProgress], None] = lambda _: None,
) -> Loaded:
    """Load the shards of a source into a detached table, which `index.build_indexes` and `publish.publish` finish.

    Nothing is written where the published generation was loaded from `target_root`, or the shard is in the ledger.
    Unfinished generations of other roots are dropped. A second loader of the same source waits and finds the work done.
    `read_shard` is called in a thread of its own, one shard ahead: two shards are in memory.

    Raises TransientError where the database fails or is busy, PermanentError where rows and models do not fit.
    """
    all_rows = sum(ref.rows for ref in shards)
    with pipeline_errors(f"loading source {source!r}"), source_lock(conn, source):
        dimensions = bound_dimensions(conn)
        generation = find_generation(conn, source, target_root) or _create(conn, source, target_root)
        _drop_others(conn, source, generation)
        if generation.state == "published":
            return Loaded(generation, all_rows, len(shards), 0, 0, 0)
        done = _loaded_shards(conn, generation)
        missing = [ref for ref in shards if ref.shard not in done]
        missing_rows = sum(ref.rows for ref in missing)
        if missing:
            _log.info("source %r: %d of %d shards to load", source, len(missing), len(shards))
        rows_written, bytes_written = 0, 0
        for sent, shard in enumerate(_encoded_ahead(source, missing, read_shard, dimensions), start=1):
            bytes_written += _load_shard(conn, generation, shard, durable=sent == len(missing))
            rows_written += shard.ref.rows
            in_table = LoadProgress(
                len(shards) - len(missing) + sent, len(shards), all_rows - missing_rows + rows_written, all_rows
            )
            progress(in_table)
        return Loaded(generation, all_rows, len(shards), rows_written, len(missing), bytes_written)


def find_generation(conn: Connection, source: str, target_root: str) -> Generation | None:
    """The generation of a source that holds this root, published or not."""
    row = conn.execute(
        """
        SELECT id, source, target_root, state FROM embedding_assets.generations
        WHERE source = %s AND target_root = %s AND state <> 'retired'
        ORDER BY state = 'published' DESC, id DESC LIMIT 1
        """,
        [source, target_root],
    ).fetchone()
    return Generation(*row) if row else None


def published_generation(conn: Connection, source: str) -> Generation | None:
    """The generation of a source that readers see."""
    row = conn.execute(
        "SELECT id, source, target_root, state FROM embedding_assets.generations "
        "WHERE source = %s AND state = 'published'",
        [source],
    ).fetchone()
    return Generation(*row) if row else None


def drop_generation(conn: Connection, generation: int) -> None:
    """Drop a generation that is not attached: its table and all records of it."""

    def drop() -> None:
        conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(generation_table(generation)))
        conn.execute("DELETE FROM embedding_assets.generations WHERE id = %s", [generation])

    short_transaction(conn, f"dropping generation {generation}", drop)


def _create(conn: Connection, source: str, target_root: str) -> Generation:
    with conn.transaction():
        row = conn.execute(
            """
            INSERT INTO embedding_assets.generations (source, target_root, state)
            VALUES (%s, %s, 'loading') RETURNING id
            """,
            [source, target_root],
        ).fetchone()
        assert row is not None
        (generation,) = row
        # The default spares sending the source with each row; the check proves to ATTACH, without a scan, that each
        # row belongs to the partition.
        conn.execute(
            sql.SQL(
                """
                CREATE TABLE {table} (LIKE embedding_assets.chunks) WITH (toast_tuple_target = {target});
                ALTER TABLE {table} ALTER COLUMN source SET DEFAULT {source}, ADD CHECK (source = {source})
                """
            ).format(table=generation_table(generation), target=TOAST_TUPLE_TARGET, source=source)
        )
        failpoint("pgvector.generation.create")
    failpoint("pgvector.generation.created")
    return Generation(generation, source, target_root, "loading")


def _drop_others(conn: Connection, source: str, keep: Generation) -> None:
    """Drop what other loads of this source left: unfinished tables of other roots, and those that were replaced."""
    others = conn.execute(
        "SELECT id FROM embedding_assets.generations WHERE source = %s AND state <> 'published' AND id <> %s",
        [source, keep.id],
    ).fetchall()
    for (generation,) in others:
        drop_generation(conn, generation)
        failpoint("pgvector.generation.dropped")


def _loaded_shards(conn: Connection, generation: Generation) -> set[int]:
    rows = conn.execute("SELECT shard FROM embedding_assets.ledger WHERE generation = %s", [generation.id])
    return {shard for (shard,) in rows}


class _Encoded(NamedTuple):
    ref: ShardRef
    blocks: list[Block]
    fingerprint: Fingerprint


def _encoded_ahead(
    source: str, refs: Sequence[ShardRef], read_shard: ReadShard, dimensions: tuple[int, int]
) -> Iterator[_Encoded]:
    """Shards ready to be sent, the next one read and encoded in a thread while the server takes the present one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-shard") as reader:
        ahead: Future[_Encoded] | None = None
        for ref in refs:
            present, ahead = ahead, reader.submit(_encode, source, ref, read_shard, dimensions)
            if present is not None:
                yield present.result()
        if ahead is not None:
            yield ahead.result()


def _encode(source: str, ref: ShardRef, read_shard: ReadShard, dimensions: tuple[int, int]) -> _Encoded:
    rows = read_shard(ref)
    check_aligned(rows, ref)
    if (found := (dimensions_of(rows.v1), dimensions_of(rows.v2))) != dimensions:
        raise PermanentError(
            f"source {source!r}, shard {ref.shard}: its vectors have {found} dimensions (v1, v2) where this "
            f"database's models have {dimensions}; materialize the embeddings of this source with the models as bound"
        )
    blocks = list(encode(rows, ref.shard))
    return _Encoded(ref, blocks, fingerprint.of_blocks(blocks))


def _load_shard(conn: Connection, generation: Generation, shard: _Encoded, *, durable: bool) -> int:
    """Copy a shard's rows and its ledger row in one transaction; returns the bytes sent.

    Not waiting for the disk at each shard loses nothing: a crash of the server takes rows and ledger row together. The
    last one is `durable`, and with it all that were committed before.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        generation_table(generation.id), sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    )
    sent = len(HEADER) + len(TRAILER)
    with conn.transaction():
        if not durable:
            conn.execute("SET LOCAL synchronous_commit = off")
        with conn.cursor().copy(statement) as copy:
            copy.write(HEADER)
            for block in shard.blocks:
                copy.write(block.data)
                sent += len(block.data)
                failpoint("pgvector.shard.block")
            copy.write(TRAILER)
        failpoint("pgvector.shard.copied")
        conn.execute(
            """
            INSERT INTO embedding_assets.ledger (generation, shard, key, rows, fingerprint)
            VALUES (%s, %s, %s, %s, %s)
            """,
            [generation.id, *shard.ref, shard.fingerprint.digest],
        )
        failpoint("pgvector.shard.ledger")
    failpoint("pgvector.shard.committed")
    return sent
