"""A replica's shards as the loader takes them: chunks and the models' vectors of the same documents, together."""

from embedding_assets.pgvector.rows.shards import ReadShard, ShardRef, ShardRows
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.names import CHUNKS, VECTORS
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.snapshot import Part, Snapshot
from embedding_assets.snapshots.stores import Store


def shard_refs(replica: Snapshot) -> list[ShardRef]:
    """The shards of a replica, each named by the keys of its parts."""
    return [
        ShardRef(parts[0].shard, part_key("shard", "1", [part.key for part in parts]), parts[0].rows)
        for parts in _by_shard(replica).values()
    ]


def read_shard(store: Store, replica: Snapshot) -> ReadShard:
    """What reads a shard's rows from the region's own store, verified against the replica's hashes."""
    parts_of = _by_shard(replica)

    def read(ref: ShardRef) -> ShardRows:
        chunks, *vectors = (read_part(store, replica.source, part) for part in parts_of[ref.shard])
        return ShardRows(chunks, tuple(vectors))

    return read


def _by_shard(replica: Snapshot) -> dict[int, tuple[Part, ...]]:
    vectors = [{part.inputs[0]: part for part in replica.parts_of(asset)} for asset in VECTORS]
    return {part.shard: (part, *(of[part.key] for of in vectors)) for part in replica.parts_of(CHUNKS)}
