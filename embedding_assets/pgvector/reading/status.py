"""What a region's database serves of each source."""

from datetime import datetime
from typing import NamedTuple

from embedding_assets.pgvector.connection import Connection, pipeline_errors


class IndexStatus(NamedTuple):
    """An index of a published generation."""

    name: str
    valid: bool
    size_bytes: int


class ServedSource(NamedTuple):
    """A source as this region serves it. `rows` is what was loaded and checked; `ledger` maps shards to their keys."""

    source: str
    generation: int
    target_root: str
    published_at: datetime
    rows: int
    live_model: str
    indexes: tuple[IndexStatus, ...]
    ledger: dict[int, str]
    language: str | None
    """Of the words that hybrid search ranks by, as `language.language_of` has it."""


def region_status(conn: Connection) -> list[ServedSource]:
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
                    FROM embedding_assets.ledger WHERE generation = id),
                   language
            FROM embedding_assets.generations WHERE state = 'published' ORDER BY source
            """
        ).fetchall()
    return [
        ServedSource(
            source=source,
            generation=generation,
            target_root=target_root,
            published_at=published_at,
            rows=loaded,
            live_model=live_model,
            indexes=tuple(IndexStatus(*index) for index in indexes),
            ledger={int(shard): key for shard, key in ledger.items()},
            language=language,
        )
        for source, generation, target_root, published_at, loaded, live_model, indexes, ledger, language in rows
    ]
