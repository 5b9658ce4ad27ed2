"""What applications and operators ask of a region's database: nearest chunks, its state, and what is wrong with it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from psycopg.types.json import Jsonb

from embedding_assets.pgvector import fingerprint
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.generations import published_generation
from embedding_assets.pgvector.index import invalid_indexes
from embedding_assets.pgvector.publish import Difference, unsound_rows
from embedding_assets.pgvector.recall import vector_literal
from embedding_assets.pgvector.schema import bound_types, generation_table
from embedding_assets.pgvector.shards import ReadShard, ShardRef


class Hit(NamedTuple):
    """A chunk found, with its cosine distance (0 the same direction, 2 the opposite)."""

    source: str
    document_id: str
    ordinal: int
    content: str
    metadata: dict[str, Any]
    distance: float


class HybridHit(NamedTuple):
    """A chunk found by hybrid search: a `Hit` with its score, the higher the better (at most 2/61)."""

    source: str
    document_id: str
    ordinal: int
    content: str
    metadata: dict[str, Any]
    distance: float
    score: float


class IndexStatus(NamedTuple):
    """An index of a published generation."""

    name: str
    valid: bool
    size_bytes: int


class SourceStatus(NamedTuple):
    """A source as this region serves it. `rows` is what was loaded and checked; `ledger` maps shards to their keys."""

    source: str
    generation: int
    target_root: str
    published_at: datetime
    rows: int
    live_model: str
    indexes: tuple[IndexStatus, ...]
    ledger: dict[int, str]


def search(
    conn: Connection,
    vector: npt.ArrayLike,
    k: int,
    source: str | None = None,
    filter: Mapping[str, Any] | None = None,
) -> list[Hit]:
    """The k chunks nearest to a vector of the live model, nearest first, by the SQL function `search`.

    `filter` is contained in the metadata of every hit. Raises PermanentError where the vector's dimensions are not
    those of the live model.
    """
    query = vector_literal(np.asarray(vector, np.float32))
    with pipeline_errors("searching"):
        rows = conn.execute(
            "SELECT * FROM public.search(%s::vector, %s, %s, %s)",
            [query, k, source, Jsonb(dict(filter or {}))],
        )
        return [Hit(*row) for row in rows]


def search_hybrid(
    conn: Connection,
    vector: npt.ArrayLike,
    text: str,
    k: int,
    source: str | None = None,
    filter: Mapping[str, Any] | None = None,
) -> list[HybridHit]:
    """The k chunks that stand highest by distance and by the words of `text` at once, by the SQL function.

    `text` is read as a web search is: all its words, "a phrase", `or`, and - for words that must not occur. Raises
    PermanentError where hybrid search is not enabled, and as `search` does.
    """
    query = vector_literal(np.asarray(vector, np.float32))
    with pipeline_errors("searching"):
        rows = conn.execute(
            "SELECT * FROM public.search_hybrid(%s::vector, %s, %s, %s, %s)",
            [query, text, k, source, Jsonb(dict(filter or {}))],
        )
        return [HybridHit(*row) for row in rows]


def region_status(conn: Connection) -> list[SourceStatus]:
    """Every source that this region serves."""
    with pipeline_errors("asking for the region's state"):
        rows = conn.execute(
            """
            SELECT source, id, target_root, published_at,
                   (SELECT coalesce(sum(rows), 0)::bigint FROM embedding_assets.ledger WHERE generation = id),
                   (SELECT name FROM embedding_assets.models WHERE live),
                   (SELECT coalesce(jsonb_agg(
                               jsonb_build_array(relname, indisvalid, pg_relation_size(indexrelid)) ORDER BY relname
                           ), '[]')
                    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                    WHERE indrelid = to_regclass(format('embedding_assets.generation_%s', id))),
                   (SELECT coalesce(jsonb_object_agg(shard, key), '{}')
                    FROM embedding_assets.ledger WHERE generation = id)
            FROM embedding_assets.generations WHERE state = 'published' ORDER BY source
            """
        ).fetchall()
    return [
        SourceStatus(
            source=source,
            generation=generation,
            target_root=target_root,
            published_at=published_at,
            rows=loaded,
            live_model=live_model,
            indexes=tuple(IndexStatus(*index) for index in indexes),
            ledger={int(shard): key for shard, key in ledger.items()},
        )
        for source, generation, target_root, published_at, loaded, live_model, indexes, ledger in rows
    ]


def compare(conn: Connection, source: str, shards: Sequence[ShardRef], read_shard: ReadShard) -> list[Difference]:
    """What differs between the table that readers see and the shards of a snapshot; empty where nothing does.

    Reads every byte of the table, and the rows of those shards of which it has as many as it should.
    """
    with pipeline_errors(f"comparing source {source!r} with its snapshot"):
        generation = published_generation(conn, source)
        if generation is None:
            return [Difference(source, None, "has no published generation in this region")]
        types = bound_types(conn)
        table = fingerprint.of_table(conn, generation_table(generation.id), types)
        broken = invalid_indexes(conn, generation)
    found = [
        Difference(source, shard, f"{table[shard].fingerprint.rows} rows in the table, and not in the snapshot")
        for shard in sorted(table.keys() - {ref.shard for ref in shards})
    ]
    for ref in shards:
        stored, *unsound = table.get(ref.shard, fingerprint.NO_CONTENT)
        if stored.rows != ref.rows:
            found.append(Difference(source, ref.shard, f"{stored.rows} rows in the table, {ref.rows} in the snapshot"))
        elif (expected := fingerprint.of_rows(read_shard(ref), types)) != stored:
            found.append(
                Difference(
                    source,
                    ref.shard,
                    f"content differs: fingerprint {stored.digest} in the table, {expected.digest} in the snapshot",
                )
            )
        elif any(unsound):
            found.append(Difference(source, ref.shard, unsound_rows(*unsound)))
    return found + [Difference(source, None, f"index {name} is missing or invalid") for name in broken]
