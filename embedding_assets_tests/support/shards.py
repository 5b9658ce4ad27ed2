"""Small parts and snapshots of any asset, for tests of what is the same for all."""

from collections.abc import Mapping

import pyarrow as pa

from embedding_assets.snapshots import derivation
from embedding_assets.snapshots.keys import document_bucket, part_key, shard_of
from embedding_assets.snapshots.parts import write_part
from embedding_assets.snapshots.snapshot import Part, Snapshot, root_of_parts, sorted_parts
from embedding_assets.snapshots.stores import Store

SOURCE = "handbook"


def rows_of(contents: Mapping[str, str]) -> pa.Table:
    return pa.table({"name": list(contents), "content": list(contents.values())})


def write(
    store: Store, contents: Mapping[str, str], *, asset: str = "raw_docs", shard: int = 0, inputs: tuple[str, ...] = ()
) -> Part:
    """A part with these rows, named by them."""
    key = part_key(asset, "1", [*inputs, str(shard), *sorted(f"{name}={value}" for name, value in contents.items())])
    return write_part(store, rows_of(contents), asset=asset, source=SOURCE, shard=shard, key=key, inputs=inputs)


def write_shards(store: Store, contents: Mapping[str, str], bits: int, asset: str = "raw_docs") -> list[Part]:
    """Parts of 2**bits shards; none for a shard without rows."""
    shards: dict[int, dict[str, str]] = {}
    for name, value in contents.items():
        shards.setdefault(shard_of(document_bucket(name), bits), {})[name] = value
    return [write(store, rows, asset=asset, shard=shard) for shard, rows in shards.items()]


def snapshot_of(
    parts: list[Part], *, asset: str = "raw_docs", bits: int = 0, upstream: dict[str, str] | None = None
) -> Snapshot:
    """A snapshot that is in no log yet."""
    ordered = sorted_parts(parts)
    return Snapshot(
        asset=asset,
        source=SOURCE,
        root=root_of_parts(ordered),
        version="1",
        shard_bits=bits,
        parts=ordered,
        counts={},
        upstream=upstream or {},
        created_at="",
    )


def commit(
    store: Store,
    parts: list[Part],
    previous: Snapshot | None = None,
    *,
    asset: str = "raw_docs",
    upstream: dict[str, str] | None = None,
) -> Snapshot:
    return derivation.commit(
        store,
        previous,
        asset=asset,
        source=SOURCE,
        version="1",
        shard_bits=0,
        parts=parts,
        counts={f"rows_{asset}": sum(part.rows for part in parts)},
        upstream=upstream or {},
    )
