"""Small parts and snapshots of any asset, for tests of what is the same for all."""

from collections.abc import Mapping

import pyarrow as pa

from embedding_assets.snapshots import log
from embedding_assets.snapshots.draft import Draft
from embedding_assets.snapshots.keys import document_bucket, part_key, shard_of
from embedding_assets.snapshots.layers import write_layer
from embedding_assets.snapshots.snapshot import Part, Snapshot, sorted_parts
from embedding_assets.snapshots.stores import Store

SOURCE = "handbook"


def rows_of(contents: Mapping[str, str]) -> pa.Table:
    return pa.table({"name": list(contents), "content": list(contents.values())})


def write(
    store: Store, contents: Mapping[str, str], *, asset: str = "raw_docs", shard: int = 0, inputs: tuple[str, ...] = ()
) -> Part:
    """A part with these rows, named by them."""
    key = part_key(asset, "1", [*inputs, str(shard), *sorted(f"{name}={value}" for name, value in contents.items())])
    rows = rows_of(contents)
    return Part.alone(write_layer(store, rows, asset=asset, source=SOURCE, shard=shard, key=key, inputs=inputs))


def write_shards(store: Store, contents: Mapping[str, str], bits: int, asset: str = "raw_docs") -> list[Part]:
    """Parts of 2**bits shards; none for a shard without rows."""
    shards: dict[int, dict[str, str]] = {}
    for name, value in contents.items():
        shards.setdefault(shard_of(document_bucket(name), bits), {})[name] = value
    return [write(store, rows, asset=asset, shard=shard) for shard, rows in shards.items()]


def draft_of(
    parts: list[Part],
    *,
    asset: str = "raw_docs",
    bits: int = 0,
    after: Snapshot | None = None,
    upstream: dict[str, str] | None = None,
) -> Draft:
    """A draft of these parts."""
    counts = {f"rows_{asset}": sum(part.rows for part in parts)}
    return Draft(asset, SOURCE, "1", bits, sorted_parts(parts), counts, upstream or {}, after)


def snapshot_of(parts: list[Part], *, asset: str = "raw_docs", bits: int = 0) -> Snapshot:
    """A log's first entry that no log has."""
    return draft_of(parts, asset=asset, bits=bits).numbered(1, "2026-11-01T00:00:00+00:00")


def commit(
    store: Store,
    parts: list[Part],
    previous: Snapshot | None = None,
    *,
    asset: str = "raw_docs",
    upstream: dict[str, str] | None = None,
) -> Snapshot:
    return log.append(store, draft_of(parts, asset=asset, after=previous, upstream=upstream))
