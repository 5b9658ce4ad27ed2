"""A new generation whatever the costs say, for tests and benches of what comes after a load."""

from collections.abc import Sequence

from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.loading.generations import Loaded, fill_generation
from embedding_assets.pgvector.locks import source_lock
from embedding_assets.pgvector.rows.shards import ReadShard, ShardRef
from embedding_assets.telemetry.events import Tell, unheard


def load_generation(
    conn: Connection,
    source: str,
    target_root: str,
    shards: Sequence[ShardRef],
    read_shard: ReadShard,
    tell: Tell = unheard,
) -> Loaded:
    """`fill_generation`, holding the lock of the source: a second loader waits and finds the work done."""
    with pipeline_errors(f"loading source {source!r}"), source_lock(conn, source, tell=tell):
        return fill_generation(conn, source, target_root, shards, read_shard, tell)
