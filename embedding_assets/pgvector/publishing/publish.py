"""Publishing: a generation that is loaded, indexed and checked takes the place of the one that readers see.

Detach and attach are one short transaction: 10–20 ms in which readers wait; they never see nothing, or both
(docs/decisions/0006).
"""

import logging
import time
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Final, NamedTuple

from psycopg import sql

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.indexes.index import invalid_indexes, require_generation
from embedding_assets.pgvector.indexes.measurement import put_to_use
from embedding_assets.pgvector.locks import short_transaction, source_lock
from embedding_assets.pgvector.parallel import on_connections
from embedding_assets.pgvector.rows import fingerprint
from embedding_assets.pgvector.rows.fingerprint import Content, Fingerprint, Pages
from embedding_assets.pgvector.rows.shards import ShardRef
from embedding_assets.pgvector.schema import words
from embedding_assets.pgvector.schema.generations import Generation, drop_generation, published_generation
from embedding_assets.pgvector.schema.models import bound_types
from embedding_assets.pgvector.schema.names import generation_table
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.telemetry.events import GenerationPublished, Tell, unheard

_log = logging.getLogger(__name__)

_PAGES: Final = 8_192  # of a table that are read at once: 64 MB

_NAMED: Final = 5  # differences told in an error


class Difference(NamedTuple):
    """Something in a table that is not as its source's snapshots say; `shard` is None where it concerns the whole."""

    source: str
    shard: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.shard is None else f"shard {self.shard}: {self.what}"


def publish(
    conn: Connection, source: str, target_root: str, shards: Sequence[ShardRef], tell: Tell = unheard
) -> Generation:
    """Attach the generation loaded from `target_root` in place of the source's present one, which is dropped after.

    Before that: the ledger must name exactly `shards`, each shard's rows and fingerprint in the table must be those
    that were sent, and every index valid. Rows are hashed for that, unless `prove` has done it and none was written
    since. Does nothing where it is published already. A crash leaves the old or the new
    one serving; what is left over is dropped by the next load or publication.

    Raises PermanentError with what differs, and drops the faulty generation, so that the next run loads it anew;
    TransientError where readers would not let go of the table.
    """
    with pipeline_errors(f"publishing source {source!r}"), source_lock(conn, source, tell=tell):
        generation = require_generation(conn, source, target_root)
        if generation.state != "published":
            stored = _proved_content(conn, generation) or _content(conn, generation)
            if differences := [*_differences(conn, generation, shards, stored), *_invalid(conn, generation)]:
                drop_generation(conn, generation.id)
                more = f", and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
                raise PermanentError(
                    f"source {source!r}: the table loaded from {target_root} is not what was sent and was dropped, the "
                    f"old generation goes on serving: {'; '.join(map(str, differences[:_NAMED]))}{more}. Cure: "
                    "remove the trigger or rule that changes the table's rows, if there is one; then "
                    "embedding-assets materialize, or, in Dagster: Materialize pgvector_table for this partition again"
                )
            failpoint(Failpoint.PUBLISH_CHECKED)
            old = published_generation(conn, source)
            began = time.monotonic()
            short_transaction(conn, f"publishing source {source!r}", lambda: _swap(conn, generation, old))
            tell(GenerationPublished(generation.id, time.monotonic() - began))
            failpoint(Failpoint.PUBLISH_SWAPPED)
        _drop_retired(conn, source)
        return generation._replace(state="published")


def prove(conn: Connection, generation: Generation, shards: Sequence[ShardRef]) -> list[Difference]:
    """Where a generation's table is not the rows that were sent for exactly these shards. Hashes the whole table.

    Where nothing differs that is recorded, so that `publish` need not do it again.
    """
    # Asked before the rows are read: what is written meanwhile, or by who is at it now, is not proved.
    horizon = conn.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").fetchone()
    assert horizon is not None
    found = _differences(conn, generation, shards, _content(conn, generation))
    conn.execute(
        "UPDATE embedding_assets.generations SET proved = %s::text::xid8 WHERE id = %s",
        [None if found else horizon[0], generation.id],
    )
    return found


def _proved_content(conn: Connection, generation: Generation) -> dict[int, Content] | None:
    """What each shard holds by its stored digests, if they are known to be those of the content."""
    row = conn.execute(
        "SELECT proved::xid::text FROM embedding_assets.generations WHERE id = %s AND proved IS NOT NULL",
        [generation.id],
    ).fetchone()
    return fingerprint.by_digests_since(conn, generation_table(generation.id), row[0]) if row else None


def _differences(
    conn: Connection, generation: Generation, shards: Sequence[ShardRef], table: Mapping[int, Content]
) -> list[Difference]:
    """Where the ledger does not have exactly these shards, or the table does not hold what the ledger says was sent."""
    ledger = {
        shard: (key, Fingerprint(rows, digest))
        for shard, key, rows, digest in conn.execute(
            "SELECT shard, key, rows, fingerprint FROM embedding_assets.ledger WHERE generation = %s",
            [generation.id],
        )
    }
    wanted = {ref.shard: ref for ref in shards}
    differences = []
    for shard in sorted(ledger.keys() | wanted.keys() | table.keys()):
        ref, (key, sent) = wanted.get(shard), ledger.get(shard, ("", fingerprint.NOTHING))
        stored, *unsound = table.get(shard, fingerprint.NO_CONTENT)
        if ref is None:
            differences.append(Difference(generation.source, shard, f"loaded ({key}), and not in the snapshot"))
        elif key != ref.key:
            differences.append(
                Difference(generation.source, shard, f"loaded from {key or 'nothing'}, wanted {ref.key}")
            )
        elif sent.rows != ref.rows or stored != sent:
            differences.append(
                Difference(
                    generation.source,
                    shard,
                    f"{ref.rows} rows wanted, {sent.rows} sent with fingerprint {sent.digest}, "
                    f"{stored.rows} in the table with {stored.digest}",
                )
            )
        elif any(unsound):
            differences.append(Difference(generation.source, shard, unsound_rows(*unsound)))
    return differences


def _content(conn: Connection, generation: Generation) -> dict[int, Content]:
    """What each shard holds in a generation that nobody writes to meanwhile, read over several connections.

    Hashing is what takes long, and Postgres does it in one process.
    """
    table, types = generation_table(generation.id), bound_types(conn)
    row = conn.execute(
        "SELECT pg_relation_size(to_regclass(%s)) / current_setting('block_size')::integer", [table.as_string(conn)]
    ).fetchone()
    assert row is not None
    firsts = range(0, max(row[0], 1), _PAGES)
    # The last one without an end: whatever was written since the size was asked for is in it.
    pieces = [Pages(first, first + _PAGES) for first in firsts[:-1]] + [Pages(firsts[-1])]

    read = on_connections(conn, pieces, lambda own, pages: fingerprint.of_table(own, table, types, pages))
    return reduce(fingerprint.together, read)


def unsound_rows(misdigested: int, misnormed: int) -> str:
    """What is wrong with rows whose content is as it should be."""
    return (
        f"{misdigested} rows have another digest stored than their own, {misnormed} have a vector whose length is not 1"
    )


def _invalid(conn: Connection, generation: Generation) -> list[Difference]:
    return [
        Difference(generation.source, None, f"index {name} is missing or invalid")
        for name in invalid_indexes(conn, generation)
    ]


def _swap(conn: Connection, new: Generation, old: Generation | None) -> None:
    chunks = sql.SQL("embedding_assets.chunks")
    if old is not None:
        conn.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(chunks, generation_table(old.id)))
        words.detach(conn, old)
        conn.execute("UPDATE embedding_assets.generations SET state = 'retired' WHERE id = %s", [old.id])
    conn.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES IN ({})").format(
            chunks, generation_table(new.id), sql.Literal(new.source)
        )
    )
    words.attach(conn, new)
    conn.execute(
        "UPDATE embedding_assets.generations SET state = 'published', published_at = clock_timestamp() WHERE id = %s",
        [new.id],
    )
    put_to_use(conn)
    failpoint(Failpoint.PUBLISH_SWAP)


def _drop_retired(conn: Connection, source: str) -> None:
    retired = conn.execute(
        "SELECT id FROM embedding_assets.generations WHERE source = %s AND state = 'retired'", [source]
    ).fetchall()
    for (generation,) in retired:
        try:
            drop_generation(conn, generation)
        except TransientError as error:  # the new generation serves: the old one's disk space can wait
            _log.warning("source %r: %s; the next run drops it", source, error)
        failpoint(Failpoint.PUBLISH_DROPPED)
