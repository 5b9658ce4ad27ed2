"""A replica's shards as the loader takes them: chunks and the models' vectors of the same documents, together."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from embedding_assets.pgvector.rows.shards import (
    ReadChange,
    ReadShard,
    ShardChange,
    ShardRef,
    ShardRows,
    no_vectors,
)
from embedding_assets.snapshots.derivation import reaches
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import Rows
from embedding_assets.snapshots.names import CHUNKS, VECTORS
from embedding_assets.snapshots.parts import aligned, read_layers
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store


class _Shard(NamedTuple):
    """The parts of a shard; of an empty slot there is none."""

    chunks: Part
    vectors: tuple[Part | None, ...]

    @property
    def bound(self) -> list[Part]:
        return [part for part in self.vectors if part]


class _Layers(NamedTuple):
    """Layers of a shard's parts, from the top down to the same edition of its documents."""

    chunks: tuple[Layer, ...]
    vectors: tuple[tuple[Layer, ...] | None, ...]


def shard_refs(replica: Snapshot) -> list[ShardRef]:
    """The shards of a replica, each named by the keys of its parts."""
    return [
        ShardRef(number, _key([shard.chunks.key, *(part.key for part in shard.bound)]), shard.chunks.rows)
        for number, shard in _by_number(replica).items()
    ]


def read_shard(store: Store, replica: Snapshot) -> ReadShard:
    """What reads a shard's rows from the region's own store, verified against the replica's hashes."""
    shards = _by_number(replica)

    def read(ref: ShardRef) -> ShardRows:
        chunks, vectors = shards[ref.shard]
        layers = _Layers(chunks.layers, tuple(part.layers if part else None for part in vectors))
        return _rows(store, replica.source, layers)[0]

    return read


def read_change(store: Store, replica: Snapshot) -> ReadChange:
    """What reads the rows that make a shard of what it was when its parts had fewer layers."""
    shards = _by_number(replica)

    def read(ref: ShardRef, key: str) -> ShardChange | None:
        chunks, vectors = shards[ref.shard]
        reached = {part.asset: reaches(chunks, part) for part in shards[ref.shard].bound}
        for level in range(1, len(chunks.layers)):
            if not all(level in levels for levels in reached.values()):
                continue
            below = {asset: levels.index(level) + 1 for asset, levels in reached.items()}
            then = [part.contents[below[part.asset] - 1] for part in shards[ref.shard].bound]
            if _key([chunks.contents[level - 1], *then]) == key:
                later = tuple(part.layers[below[part.asset] :] if part else None for part in vectors)
                rows, (_, _, gone) = _rows(store, replica.source, _Layers(chunks.layers[level:], later))
                return ShardChange(rows, gone)
        return None

    return read


def _rows(store: Store, source: str, layers: _Layers) -> tuple[ShardRows, Rows]:
    """The rows of these layers; and those of the chunks alone with the ones that are gone."""
    chunks = read_layers(store, source, layers.chunks)
    # A base of vectors has the rows of its chunks in their order, which the loader verifies.
    in_place = all(len(each) == 1 for each in (layers.chunks, *filter(None, layers.vectors)))

    def vectors(of_slot: Sequence[Layer] | None) -> pa.Table:
        if of_slot is None:
            return no_vectors(chunks.table)
        rows = read_layers(store, source, of_slot)
        return rows.table if in_place else aligned(rows, chunks.names)

    return ShardRows(chunks.table, tuple(map(vectors, layers.vectors))), chunks


def _key(parts: Sequence[str]) -> str:
    return part_key("shard", "1", parts)


def _by_number(replica: Snapshot) -> Mapping[int, _Shard]:
    of_chunks = [{part.inputs[0]: part for part in replica.parts_of(asset)} for asset in VECTORS]
    return {
        part.shard: _Shard(part, tuple(of[part.key] if of else None for of in of_chunks))
        for part in replica.parts_of(CHUNKS)
    }
