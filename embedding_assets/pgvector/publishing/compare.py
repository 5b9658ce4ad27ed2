"""What differs between the table that readers see and what it was loaded from."""

from collections.abc import Sequence

from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.indexes.index import invalid_indexes
from embedding_assets.pgvector.publishing.publish import Difference, unsound_rows
from embedding_assets.pgvector.rows import fingerprint
from embedding_assets.pgvector.rows.shards import ReadShard, ShardRef
from embedding_assets.pgvector.schema import words
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.pgvector.schema.models import bound_types
from embedding_assets.pgvector.schema.names import generation_table


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
        broken = [f"index {name} is missing or invalid" for name in invalid_indexes(conn, generation)]
        broken += filter(None, [words.mismatched(conn, generation)])
    differences = [
        Difference(source, shard, f"{table[shard].fingerprint.rows} rows in the table, and not in the snapshot")
        for shard in sorted(table.keys() - {ref.shard for ref in shards})
    ]
    for ref in shards:
        stored, *unsound = table.get(ref.shard, fingerprint.NO_CONTENT)
        if stored.rows != ref.rows:
            differences.append(
                Difference(source, ref.shard, f"{stored.rows} rows in the table, {ref.rows} in the snapshot")
            )
        elif (expected := fingerprint.of_rows(read_shard(ref), types)) != stored:
            differences.append(
                Difference(
                    source,
                    ref.shard,
                    f"content differs: fingerprint {stored.digest} in the table, {expected.digest} in the snapshot",
                )
            )
        elif any(unsound):
            differences.append(Difference(source, ref.shard, unsound_rows(*unsound)))
    return differences + [Difference(source, None, what) for what in broken]
