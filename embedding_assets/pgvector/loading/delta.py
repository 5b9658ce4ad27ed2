"""A delta on the published generation: the rows that differ, a shard at a time, while readers go on.

Each shard that changed is asked for its rows' digests, and the rows that differ are replaced: one transaction a shard.
Where the ledger has the shard with a key from which on the changes are known, only those are read and compared.
A document lies in one shard, so no reader sees half of its change, and the live indexes follow. While shards are being
replaced the generation holds no root; a crash between two of them leaves that to be seen, and the ledger to go on by.

Rows go straight into the table, after a DELETE of those that they replace. A staging table and a merge would write each
twice: 26 µs of server CPU a row against 17 (docs/decisions/0002), for the same new row version and index entries.
"""

from collections.abc import Callable, Sequence, Set
from contextlib import closing
from typing import NamedTuple
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.loading import costs
from embedding_assets.pgvector.loading.generations import Digested, Loaded, copy_into, read_digested
from embedding_assets.pgvector.locks import source_lock, transaction
from embedding_assets.pgvector.parallel import on_connections
from embedding_assets.pgvector.rows import fingerprint
from embedding_assets.pgvector.rows.copy import encode, one_array
from embedding_assets.pgvector.rows.fingerprint import Fingerprint
from embedding_assets.pgvector.rows.shards import ReadChange, ReadShard, ShardRef, ShardRows, no_change_known
from embedding_assets.pgvector.rows.vector_types import VectorTypes
from embedding_assets.pgvector.schema import language, words
from embedding_assets.pgvector.schema.generations import Generation, ledger_keys, published_generation
from embedding_assets.pgvector.schema.models import bound_types
from embedding_assets.pgvector.schema.names import generation_table
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.schemas import CHUNKS, vectors
from embedding_assets.telemetry.events import LoadProgress, Tell, unheard

_STORED = np.dtype([("chunk_id", "V16"), ("digest", ">i8")])


class Incoming(NamedTuple):
    """A shard's new rows: all of them, or those that may have changed since the ledger had it with the key `since`."""

    ref: ShardRef
    shard: Digested
    since: str | None = None
    gone: pa.FixedSizeBinaryArray | None = None
    """Chunks of then that are no more."""


class Difference(NamedTuple):
    """What makes a shard's stored rows the new ones: which of the new to write ((n,) bool), how many of these replace
    one, and the ids of all stored rows to delete."""

    written: npt.NDArray[np.bool_]
    updated: int
    stale: pa.FixedSizeBinaryArray

    @property
    def inserted(self) -> int:
        return int(self.written.sum()) - self.updated

    @property
    def deleted(self) -> int:
        return len(self.stale) - self.updated

    @property
    def rows(self) -> int:
        """Rows inserted, updated or deleted."""
        return self.inserted + len(self.stale)


def repair(
    conn: Connection,
    source: str,
    target_root: str,
    shards: Sequence[ShardRef],
    read_shard: ReadShard,
    bad: Set[int],
    tell: Tell = unheard,
) -> Loaded:
    """Replace every row of the shards numbered in `bad`, whatever digests are stored, by those of the snapshot.

    Also of shards that the snapshot does not have. Readers go on. Raises PermanentError where what is published was not
    loaded from `target_root`, and as `load` does.
    """
    with pipeline_errors(f"repairing source {source!r}"), source_lock(conn, source, tell=tell):
        types, rows = bound_types(conn), sum(ref.rows for ref in shards)
        published = published_generation(conn, source)
        if published is None or published.target_root != target_root:
            raise PermanentError(
                f"source {source!r}: what is published was not loaded from {target_root}, so there is nothing to repair"
                ". Cure: embedding-assets materialize"
            )
        named = {ref.shard: ref for ref in shards}
        refs = [named.get(shard, ShardRef(shard, "", 0)) for shard in sorted(bad)]
        choice = costs.forced("delta", f"{len(refs)} shards are repaired", rows, types)
        return replace_shards(
            conn,
            Loaded(published, choice, rows, len(shards)),
            target_root,
            refs,
            Reader(source, types, read_shard),
            tell=tell,
            wholesale=True,
        )


def difference(
    chunk_ids: pa.FixedSizeBinaryArray,
    digests: npt.NDArray[np.int64],
    stored_ids: pa.FixedSizeBinaryArray,
    stored_digests: npt.NDArray[np.int64],
) -> Difference:
    """Compare a shard's new rows with its stored ones, by ids and digests."""
    place = pc.index_in(chunk_ids, value_set=stored_ids)  # null where no stored row has this id
    known = place.is_valid().to_numpy(zero_copy_only=False)
    written = np.ones(len(chunk_ids), bool)
    written[known] = stored_digests[place.drop_null().to_numpy()] != digests[known]
    replaced = chunk_ids.filter(pa.array(written & known))
    gone = stored_ids.filter(pc.invert(pc.is_in(stored_ids, value_set=chunk_ids)))
    return Difference(written, len(replaced), pa.concat_arrays([replaced, gone]))


def _everything(chunk_ids: pa.FixedSizeBinaryArray, stored_ids: pa.FixedSizeBinaryArray) -> Difference:
    """Every stored row against every new one."""
    gone = stored_ids.filter(pc.invert(pc.is_in(stored_ids, value_set=chunk_ids)))
    return Difference(np.ones(len(chunk_ids), bool), len(chunk_ids), pa.concat_arrays([chunk_ids, gone]))


def changed_shards(conn: Connection, published: Generation, shards: Sequence[ShardRef]) -> list[ShardRef]:
    """Shards whose content the ledger does not have, and those that are gone, as shards without rows and key."""
    keys, wanted = ledger_keys(conn, published), {ref.shard for ref in shards}
    gone = (keys.keys() | stored_shards(conn, published)) - wanted
    return [ref for ref in shards if keys.get(ref.shard) != ref.key] + [ShardRef(n, "", 0) for n in sorted(gone)]


def stored_shards(conn: Connection, published: Generation) -> set[int]:
    """The shards that have rows in the table: a look at the index for each, not at each row."""
    rows = conn.execute(
        sql.SQL(
            """
            WITH RECURSIVE stored AS (
                SELECT min(shard) AS shard FROM {table}
                UNION ALL
                SELECT (SELECT min(shard) FROM {table} AS later WHERE later.shard > stored.shard)
                FROM stored WHERE shard IS NOT NULL
            )
            SELECT shard FROM stored WHERE shard IS NOT NULL
            """
        ).format(table=generation_table(published.id))
    )
    return {shard for (shard,) in rows}


class Reader(NamedTuple):
    """Reads shards of a source for columns of these types."""

    source: str
    types: VectorTypes
    read_shard: ReadShard
    read_change: ReadChange = no_change_known

    def whole(self, ref: ShardRef) -> Incoming:
        """All of a shard's new rows; of one that is gone there are none."""
        if not ref.rows:
            nothing = (vectors(each.dimensions).empty_table() for each in self.types)
            return Incoming(ref, Digested(ref, ShardRows(CHUNKS.empty_table(), tuple(nothing)), np.zeros(0, np.int64)))
        return Incoming(ref, read_digested(self.source, ref, self.read_shard, self.types))

    def since(self, ref: ShardRef, key: str | None) -> Incoming:
        """What changed in a shard since the ledger had it with this key, or all of it."""
        change = self.read_change(ref, key) if ref.rows and key is not None else None
        if change is None:
            return self.whole(ref)
        rows, gone = change
        changed = ref._replace(rows=rows.chunks.num_rows)
        return Incoming(ref, read_digested(self.source, changed, lambda _: rows, self.types), key, gone)


class Compared(NamedTuple):
    """A shard's new rows against the stored ones."""

    difference: Difference
    expected: Fingerprint
    """Of the shard's rows once the difference is made."""


def compare(incoming: Incoming, stored: "Stored", *, wholesale: bool = False) -> Compared:
    """What makes the stored rows of a shard the new ones."""
    chunk_ids, digests = one_array(incoming.shard.rows.chunks.column("chunk_id")), incoming.shard.digests
    stored_ids, stored_digests = stored
    if wholesale:
        return Compared(_everything(chunk_ids, stored_ids), fingerprint.of_digests(digests))
    if incoming.gone is None:
        return Compared(difference(chunk_ids, digests, *stored), fingerprint.of_digests(digests))
    touched = pc.is_in(stored_ids, value_set=pa.concat_arrays([chunk_ids, incoming.gone]))
    mask = touched.to_numpy(zero_copy_only=False)
    differing = difference(chunk_ids, digests, stored_ids.filter(touched), stored_digests[mask])
    return Compared(differing, fingerprint.of_digests(np.concatenate([stored_digests[~mask], digests])))


Stored = tuple[pa.FixedSizeBinaryArray, npt.NDArray[np.int64]]
"""Ids and digests of rows in a table."""


def stored_rows(conn: Connection, published: Generation, shard: int) -> Stored:
    """Ids and digests of a shard's rows in the table, as one value from the index alone: 0.6 ms for 4,000, where COPY
    takes 4 ms, a message a row."""
    statement = sql.SQL("SELECT string_agg(uuid_send(chunk_id) || int8send(digest), '') FROM {} WHERE shard = %s")
    with conn.cursor(binary=True) as cursor:
        row = cursor.execute(statement.format(generation_table(published.id)), [shard]).fetchone()
    stored = np.frombuffer(row[0] if row and row[0] else b"", _STORED)
    ids = pa.py_buffer(np.ascontiguousarray(stored["chunk_id"]).view(np.uint8))
    chunk_ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(stored), [None, ids])
    return chunk_ids, stored["digest"].astype(np.int64)


class _Merged(NamedTuple):
    ref: ShardRef
    difference: Difference
    bytes_written: int


def replace_shards(
    conn: Connection,
    loaded: Loaded,
    target_root: str,
    refs: Sequence[ShardRef],
    reader: Reader,
    incoming: Callable[[ShardRef], Incoming] | None = None,
    tell: Tell = unheard,
    *,
    wholesale: bool = False,
) -> Loaded:
    """Merge these shards into the published generation, which holds `target_root` after the last of them.

    `incoming` gives a shard's rows where they are not to be read whole.
    """
    # Whoever replaces shards holds a root of his own making. A loader that lost the lock of the source with its
    # session finds another's there, and stops.
    holder = loaded.generation._replace(target_root=f"delta {uuid4().hex}")
    _set_root(conn, loaded.generation, holder.target_root)
    failpoint(Failpoint.DELTA_BEGUN)
    shards, rows = loaded.shards - sum(bool(ref.rows) for ref in refs), loaded.rows - sum(ref.rows for ref in refs)

    def merge(own: Connection, ref: ShardRef) -> _Merged:
        return _merge(own, holder, (incoming or reader.whole)(ref), reader, wholesale=wholesale)

    with closing(on_connections(conn, refs, merge)) as done:
        for merged in done:
            differing = merged.difference
            loaded = loaded._replace(
                rows_written=loaded.rows_written + differing.inserted + differing.updated,
                rows_updated=loaded.rows_updated + differing.updated,
                rows_deleted=loaded.rows_deleted + differing.deleted,
                shards_written=loaded.shards_written + bool(differing.rows),
                bytes_written=loaded.bytes_written + merged.bytes_written,
            )
            shards, rows = shards + bool(merged.ref.rows), rows + merged.ref.rows
            tell(
                LoadProgress(
                    shards=shards,
                    all_shards=loaded.shards,
                    rows=rows,
                    all_rows=loaded.rows,
                    rows_written=loaded.rows_written,
                    bytes_written=loaded.bytes_written,
                )
            )

    _set_root(conn, holder, target_root, rows_changed=loaded.rows_written + loaded.rows_deleted)
    failpoint(Failpoint.DELTA_FINISHED)
    return loaded._replace(generation=loaded.generation._replace(target_root=target_root))


def _set_root(conn: Connection, present: Generation, root: str, rows_changed: int = 0) -> None:
    updated = conn.execute(
        """
        UPDATE embedding_assets.generations SET target_root = %s, rows_changed = rows_changed + %s
        WHERE id = %s AND target_root = %s
        """,
        [root, rows_changed, present.id, present.target_root],
    )
    if not updated.rowcount:
        raise _taken_over(present)


def _taken_over(generation: Generation) -> TransientError:
    return TransientError(
        f"source {generation.source!r}: another process has taken over the load of generation {generation.id}, since "
        "the connection that held the source's lock was lost. Cure: let that one end, and run this again"
    )


def _merge(conn: Connection, generation: Generation, incoming: Incoming, reader: Reader, *, wholesale: bool) -> _Merged:
    """Make a shard's rows in the table the new ones, in one transaction that proves it before it commits."""
    ref, types, sent = incoming.ref, reader.types, 0
    with transaction(conn):
        # What the server's crash takes it takes in order: the root that is set after the last shard waits for the disk.
        conn.execute("SET LOCAL synchronous_commit = off")
        held = conn.execute(
            "SELECT FROM embedding_assets.generations WHERE id = %s AND target_root = %s FOR SHARE",
            [generation.id, generation.target_root],
        )
        if not held.rowcount:
            raise _taken_over(generation)
        stored = stored_rows(conn, generation, ref.shard)
        differing, expected = compare(incoming, stored, wholesale=wholesale)
        if incoming.since is not None and (
            expected.rows != ref.rows
            or _entered(conn, generation, ref.shard) != (incoming.since, fingerprint.of_digests(stored[1]))
        ):
            # The table is not what the ledger says: what else differs is found in all of the shard's rows.
            incoming = reader.whole(ref)
            differing, expected = compare(incoming, stored)
        shard = incoming.shard
        chunk_ids, digests = one_array(shard.rows.chunks.column("chunk_id")), shard.digests
        table = generation_table(generation.id)
        if wholesale:
            # The new rows' ids could stand in a wrong shard.
            misplaced = sql.SQL("DELETE FROM {} WHERE chunk_id = ANY (%s) AND shard IS DISTINCT FROM %s").format(table)
            conn.execute(misplaced, [_uuids(chunk_ids), ref.shard])
        if differing.rows:
            # Only from this shard: ids that were read a moment ago another connection may have put where they belong.
            stale = sql.SQL("DELETE FROM {} WHERE chunk_id = ANY (%s) AND shard = %s").format(table)
            conn.execute(stale, [_uuids(differing.stale), ref.shard])
            failpoint(Failpoint.DELTA_DELETED)
            chosen = shard.rows.each(lambda table: table.filter(pa.array(differing.written)))
            sent = copy_into(conn, generation.id, encode(chosen, digests[differing.written], ref.shard, types))
            failpoint(Failpoint.DELTA_COPIED)
        if differing.rows or wholesale:
            chosen_ids = _uuids(chunk_ids.filter(pa.array(differing.written)))
            words.replace(conn, generation, ref.shard, _uuids(differing.stale), chosen_ids, whole=wholesale)
        _prove(conn, generation, ref, expected, _uuids(chunk_ids.filter(pa.array(differing.written))), types)
        _enter(conn, generation, ref, expected)
        failpoint(Failpoint.DELTA_LEDGER)
    failpoint(Failpoint.DELTA_COMMITTED)
    return _Merged(ref, differing, sent)


def _prove(
    conn: Connection,
    generation: Generation,
    ref: ShardRef,
    expected: Fingerprint,
    written: list[UUID],
    types: VectorTypes,
) -> None:
    """Raise PermanentError unless the shard has the snapshot's digests, and the rows just written their own content."""
    table = generation_table(generation.id)
    stored = fingerprint.by_digests(conn, table, ref.shard)
    sound = fingerprint.count_sound(conn, table, types, written) if written else 0
    in_words = (
        expected if language.language_of(conn, generation) is None else words.fingerprint(conn, generation, ref.shard)
    )
    if stored != expected or sound != len(written) or in_words != expected:
        raise PermanentError(
            f"source {generation.source!r}, shard {ref.shard}: {stored.rows} rows in the table with fingerprint "
            f"{stored.digest}, {expected.rows} in the snapshot with {expected.digest}, {in_words.rows} in the words "
            f"with {in_words.digest}; {sound} of {len(written)} rows written are as they were sent. The shard was "
            "rolled back. Cure: remove the trigger or rule that changes the table's rows; where there is none, "
            "embedding-assets verify --repair. Then embedding-assets materialize"
        )


def _entered(conn: Connection, generation: Generation, shard: int) -> tuple[str, Fingerprint] | None:
    """The key and the fingerprint that the ledger has of a shard."""
    row = conn.execute(
        "SELECT key, rows, fingerprint FROM embedding_assets.ledger WHERE generation = %s AND shard = %s",
        [generation.id, shard],
    ).fetchone()
    return (row[0], Fingerprint(*row[1:])) if row else None


def _enter(conn: Connection, generation: Generation, ref: ShardRef, content: Fingerprint) -> None:
    """Write a shard's row of the ledger; a shard that is gone has none."""
    if not ref.rows:
        conn.execute(
            "DELETE FROM embedding_assets.ledger WHERE generation = %s AND shard = %s",
            [generation.id, ref.shard],
        )
        return
    conn.execute(
        """
        INSERT INTO embedding_assets.ledger (generation, shard, key, rows, fingerprint) VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (generation, shard) DO UPDATE
        SET key = excluded.key, rows = excluded.rows, fingerprint = excluded.fingerprint
        """,
        [generation.id, *ref, content.digest],
    )


def _uuids(chunk_ids: pa.FixedSizeBinaryArray) -> list[UUID]:
    return [UUID(bytes=chunk_id) for chunk_id in chunk_ids.to_pylist()]
