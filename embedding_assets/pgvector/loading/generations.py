"""New generations: a table of a source, built aside from what readers see, one transaction for each shard.

A killed load leaves a detached table and its ledger; the next load of the same root goes on with the missing shards.
Whether a source gets one is decided in `load`; publishing is another module's work.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.loading import costs
from embedding_assets.pgvector.loading.costs import Choice
from embedding_assets.pgvector.locks import transaction
from embedding_assets.pgvector.parallel import on_connections
from embedding_assets.pgvector.rows import fingerprint
from embedding_assets.pgvector.rows.copy import COLUMNS, HEADER, TRAILER, digests_of, encode
from embedding_assets.pgvector.rows.fingerprint import Fingerprint
from embedding_assets.pgvector.rows.shards import ReadShard, ShardRef, ShardRows, check_aligned, dimensions_of
from embedding_assets.pgvector.rows.vector_types import VectorTypes
from embedding_assets.pgvector.schema.generations import Generation, drop_generation, find_generation, ledger_keys
from embedding_assets.pgvector.schema.models import bound_types
from embedding_assets.pgvector.schema.names import generation_table
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.slots import SLOTS
from embedding_assets.telemetry.events import LoadProgress, Tell

_log = logging.getLogger(__name__)

TOAST_TUPLE_TARGET: Final = 8160
"""Keeps a row of up to one page in line: a row of 384 dimensions with 800 characters of text costs 6.2 µs of server CPU
where a table with defaults costs 16.0, one of 1,536 dimensions 19.0 where that costs 28.5.

So it is where both vectors and the texts stay below 8 kB, such as 384 + 1,536 dimensions with 300 characters of text.
In a longer row the larger vector goes to TOAST, as it would in any table.

Tried beside it, 50,000 × 384 and 20,000 × 1,536 (median of five): other STORAGE of the vectors and `wal_compression`
change nothing, for nothing is moved out or compressed any more. A table loaded in the very transaction that made it
writes no WAL under `wal_level = minimal` (4.6 and 15.5 µs): that would be one transaction on one connection for the
whole source, all of it to be done again after a crash, and nothing where replicas follow. An UNLOGGED table (4.0 and
12.5 µs) has to write all its WAL when it is made a LOGGED one.
"""


class Loaded(NamedTuple):
    """What a load came to, and the way that it took; the counts are zero where everything was there already.

    Rows written are those inserted or updated.
    """

    generation: Generation
    choice: Choice
    rows: int
    shards: int
    rows_written: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    shards_written: int = 0
    bytes_written: int = 0


def fill_generation(
    conn: Connection,
    source: str,
    target_root: str,
    shards: Sequence[ShardRef],
    read_shard: ReadShard,
    tell: Tell,
) -> Loaded:
    """Load the shards of a source into a detached table, which `index.build_indexes` and `publish.publish` finish.

    For whoever holds the source's lock.

    Nothing is written where the published generation holds `target_root`, or the shard is in the ledger. Unfinished
    generations of other roots are dropped.

    Shards are loaded on up to `parallel.CONNECTIONS` connections at once, and `read_shard` is called in their threads:
    as many shards are in memory as there are connections, and an encoded block of each.

    Raises TransientError where the database fails or is busy, PermanentError where rows and models do not fit.
    """
    all_rows = sum(ref.rows for ref in shards)
    with pipeline_errors(f"loading source {source!r}"):
        types = bound_types(conn)
        generation = find_generation(conn, source, target_root) or _create(conn, source, target_root)
        drop_others(conn, source, generation)
        if generation.state == "published":
            choice = costs.forced("nothing", "what is published holds this root", all_rows, types)
            return Loaded(generation, choice, all_rows, len(shards))
        done = ledger_keys(conn, generation)
        missing = [ref for ref in shards if ref.shard not in done]
        if missing:
            _log.info("source %r: %d of %d shards to load", source, len(missing), len(shards))
        choice = costs.forced("new generation", "loaded whole", all_rows, types)
        loaded = Loaded(generation, choice, all_rows, len(shards))
        shards_there, rows_there = len(shards) - len(missing), all_rows - sum(ref.rows for ref in missing)

        def load_shard(own: Connection, ref: ShardRef) -> tuple[int, int]:
            return _load_shard(own, generation, read_digested(source, ref, read_shard, types), types)

        with closing(on_connections(conn, missing, load_shard)) as written:
            for rows, sent in written:
                loaded = loaded._replace(
                    rows_written=loaded.rows_written + rows,
                    shards_written=loaded.shards_written + 1,
                    bytes_written=loaded.bytes_written + sent,
                )
                tell(
                    LoadProgress(
                        shards=shards_there + loaded.shards_written,
                        all_shards=len(shards),
                        rows=rows_there + loaded.rows_written,
                        all_rows=all_rows,
                        rows_written=loaded.rows_written,
                        bytes_written=loaded.bytes_written,
                    )
                )
        return loaded


def _create(conn: Connection, source: str, target_root: str) -> Generation:
    with transaction(conn):
        conn.execute("SET LOCAL synchronous_commit = off")  # the first shard's commit is durable, and this one with it
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
                ALTER TABLE {table} ALTER COLUMN source SET DEFAULT {source}, ADD CHECK (source = {source}),
                                    ALTER COLUMN digest SET NOT NULL
                """
            ).format(table=generation_table(generation), target=TOAST_TUPLE_TARGET, source=source)
        )
        failpoint(Failpoint.GENERATION_CREATE)
    failpoint(Failpoint.GENERATION_CREATED)
    return Generation(generation, source, target_root, "loading")


def drop_others(conn: Connection, source: str, keep: Generation) -> None:
    """Drop what other loads of this source left: unfinished tables of other roots, and those that were replaced.

    For whoever holds the source's lock.
    """
    others = conn.execute(
        "SELECT id FROM embedding_assets.generations WHERE source = %s AND state <> 'published' AND id <> %s",
        [source, keep.id],
    ).fetchall()
    for (generation,) in others:
        drop_generation(conn, generation)
        failpoint(Failpoint.GENERATION_DROPPED)


class Digested(NamedTuple):
    """A shard's rows, and their digests ((n,) int64)."""

    ref: ShardRef
    rows: ShardRows
    digests: npt.NDArray[np.int64]

    @property
    def fingerprint(self) -> Fingerprint:
        return fingerprint.of_digests(self.digests)


def read_digested(source: str, ref: ShardRef, read_shard: ReadShard, types: VectorTypes) -> Digested:
    """Read a shard. Raises PermanentError where its rows and the bound models do not fit."""
    rows = read_shard(ref)
    check_aligned(rows, ref)
    actual, bound = tuple(map(dimensions_of, rows.vectors)), tuple(each.dimensions for each in types)
    if actual != bound:
        raise PermanentError(
            f"source {source!r}, shard {ref.shard}: its vectors have {actual} dimensions ({', '.join(SLOTS)}) where "
            f"this database's models have {bound}. Cure: materialize the embeddings of this source "
            f"with the models as bound: embedding-assets materialize --source {source}"
        )
    return Digested(ref, rows, digests_of(rows, types))


def copy_into(conn: Connection, generation: int, data: Iterable[memoryview]) -> int:
    """Copy encoded rows into a generation's table; returns the bytes sent."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        generation_table(generation), sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    )
    sent = len(HEADER) + len(TRAILER)
    with conn.cursor().copy(statement) as copy:
        copy.write(HEADER)
        for rows in data:
            copy.write(rows)
            sent += len(rows)
            failpoint(Failpoint.SHARD_BLOCK)
        copy.write(TRAILER)
    return sent


def _load_shard(conn: Connection, generation: Generation, shard: Digested, types: VectorTypes) -> tuple[int, int]:
    """Write a shard's ledger row and copy its rows in one transaction; returns the rows and bytes sent.

    The ledger row comes first, for it is the shard's lock. A loader that lost the lock of the source with its session,
    and does not know it yet, can so load no shard twice.
    """
    with transaction(conn):
        entered = conn.execute(
            """
            INSERT INTO embedding_assets.ledger (generation, shard, key, rows, fingerprint)
            VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
            """,
            [generation.id, *shard.ref, shard.fingerprint.digest],
        )
        if not entered.rowcount:
            return 0, 0
        failpoint(Failpoint.SHARD_LEDGER)
        sent = copy_into(conn, generation.id, encode(shard.rows, shard.digests, shard.ref.shard, types))
        failpoint(Failpoint.SHARD_COPIED)
    failpoint(Failpoint.SHARD_COMMITTED)
    return shard.ref.rows, sent
