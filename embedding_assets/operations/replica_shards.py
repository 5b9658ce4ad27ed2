"""A replica's shards as the loader takes them: chunks and the models' vectors of the same documents, together."""

from collections.abc import Mapping, Sequence

from embedding_assets.pgvector.rows.shards import ReadChange, ReadShard, ShardChange, ShardRef, ShardRows
from embedding_assets.snapshots.derivation import reaches
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import Rows
from embedding_assets.snapshots.names import CHUNKS, VECTORS
from embedding_assets.snapshots.parts import aligned, read_layers
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store


def shard_refs(replica: Snapshot) -> list[ShardRef]:
    """The shards of a replica, each named by the keys of its parts."""
    return [
        ShardRef(parts[0].shard, _key([part.key for part in parts]), parts[0].rows)
        for parts in _by_shard(replica).values()
    ]


def read_shard(store: Store, replica: Snapshot) -> ReadShard:
    """What reads a shard's rows from the region's own store, verified against the replica's hashes."""
    parts_of = _by_shard(replica)

    def read(ref: ShardRef) -> ShardRows:
        return _rows(store, replica.source, [part.layers for part in parts_of[ref.shard]])[0]

    return read


def read_change(store: Store, replica: Snapshot) -> ReadChange:
    """What reads the rows that make a shard of what it was when its parts had fewer layers."""
    parts_of = _by_shard(replica)

    def read(ref: ShardRef, key: str) -> ShardChange | None:
        chunks, *vectors = parts_of[ref.shard]
        reached = [reaches(chunks, part) for part in vectors]
        for level in range(1, len(chunks.layers)):
            if not all(level in levels for levels in reached):
                continue
            below = [reach.index(level) + 1 for reach in reached]
            then = [part.contents[n - 1] for part, n in zip(vectors, below, strict=True)]
            if _key([chunks.contents[level - 1], *then]) == key:
                later = [part.layers[n:] for part, n in zip(vectors, below, strict=True)]
                rows, (_, _, gone) = _rows(store, replica.source, [chunks.layers[level:], *later])
                return ShardChange(rows, gone)
        return None

    return read


def _rows(store: Store, source: str, layers: Sequence[Sequence[Layer]]) -> tuple[ShardRows, Rows]:
    """The rows of these layers of chunks and of each model's vectors; and the chunks with those that are gone."""
    chunks, *vectors = (read_layers(store, source, some) for some in layers)
    # A base of vectors has the rows of its chunks in their order, which the loader verifies.
    in_place = all(len(some) == 1 for some in layers)
    tables = tuple(rows.table if in_place else aligned(rows, chunks.names) for rows in vectors)
    return ShardRows(chunks.table, tables), chunks


def _key(parts: Sequence[str]) -> str:
    return part_key("shard", "1", parts)


def _by_shard(replica: Snapshot) -> Mapping[int, tuple[Part, ...]]:
    vectors = [{part.inputs[0]: part for part in replica.parts_of(asset)} for asset in VECTORS]
    return {part.shard: (part, *(of[part.key] for of in vectors)) for part in replica.parts_of(CHUNKS)}
