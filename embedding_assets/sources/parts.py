"""A shard's documents as a part: the documents that changed as a delta on the last part, or all of them as a base."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import pyarrow as pa

from embedding_assets.snapshots.changes import covering
from embedding_assets.snapshots.derivation import Shelf, Wanted
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import LayerDamaged, read_layer, write_layer
from embedding_assets.snapshots.names import RAW_DOCS
from embedding_assets.snapshots.parts import merged, read_part
from embedding_assets.snapshots.schemas import DOCUMENTS
from embedding_assets.snapshots.snapshot import Part, Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.sources.catalog import Row

VERSION: Final = "raw_docs-1"

MOST_DELTAS: Final = 8
"""A part's layers are read one after the other by whoever needs it whole."""

LARGEST_SHARE: Final = 1 / 4
"""What deltas may hold of a base's rows. Rows that they hide are stored, copied and read with it for nothing."""


class CatalogStale(Exception):
    """The catalog names a document whose text is neither in it nor in the last snapshot: it is read anew."""


class _Change(NamedTuple):
    """What makes a shard's documents the present ones: those that are new or have other contents, and those gone."""

    rows: list[Row]
    gone: list[str]


def write(
    store: Store, source: str, shelf: Shelf, want: Wanted, rows: Sequence[Row], previous: Snapshot | None, bits: int
) -> Part:
    """The part of a shard with these documents, by their ids, out of 2**bits.

    Raises:
        CatalogStale: see there.
    """
    before = shelf.before.get(want.shard) if previous is not None and previous.shard_bits == bits else None
    if before is not None and all(map(shelf.has, before.layers)):
        with suppress(LayerDamaged):  # what cannot be laid on is written whole
            if (part := _on_top(store, source, shelf, want, rows, before)) is not None:
                return part
    holders = covering(previous.parts, previous.shard_bits, want.shard, bits) if previous else []
    table = _table(store, source, rows, holders)
    return Part.alone(write_layer(store, table, asset=RAW_DOCS, source=source, shard=want.shard, key=want.key))


def _on_top(store: Store, source: str, shelf: Shelf, want: Wanted, rows: Sequence[Row], before: Part) -> Part | None:
    """The part as the last one with a delta on it; None where deltas would hold too much.

    Where there are many already, the new one takes the place of them all.
    """
    kept = before.layers if len(before.layers) <= MOST_DELTAS else before.layers[:1]
    held = merged([read_layer(store, source, layer, ["document_id", "content_hash"]) for layer in kept])
    change = _difference(rows, held.table)
    base, *deltas = kept
    size = sum(delta.rows + delta.gone for delta in deltas) + len(change.rows) + len(change.gone)
    if size > LARGEST_SHARE * base.rows:
        return None
    below = before.contents[: len(kept)]
    inputs = (below[-1], want.key)
    key = part_key(RAW_DOCS, VERSION, inputs)
    delta = shelf.layer(Wanted(want.shard, key, inputs)) or write_layer(
        store,
        _table(store, source, change.rows, [before]),
        asset=RAW_DOCS,
        source=source,
        shard=want.shard,
        key=key,
        inputs=inputs,
        gone=pa.array(change.gone, pa.string()),
    )
    return Part(asset=RAW_DOCS, shard=want.shard, key=want.key, rows=len(rows), below=below, layers=(*kept, delta))


def _difference(rows: Sequence[Row], held: pa.Table) -> _Change:
    """What is to be changed in documents that are held (by `document_id` and `content_hash`) to make them `rows`."""
    stored = dict(zip(held["document_id"].to_pylist(), held["content_hash"].to_pylist(), strict=True))
    changed = [row for row in rows if stored.pop(row.document_id, None) != row.content_hash]
    return _Change(changed, list(stored))


def _table(store: Store, source: str, rows: Sequence[Row], holders: Sequence[Part]) -> pa.Table:
    """These documents; texts that the catalog has no more are those that the last snapshot's parts hold.

    Raises:
        CatalogStale: they do not hold one.
    """
    texts: dict[str, tuple[bytes, str, str]] = {}
    for part in holders if any(row.text is None for row in rows) else ():
        with suppress(LayerDamaged):  # a text that only it had makes the catalog stale
            table = read_part(store, source, part).to_pydict()
            contents = zip(table["content_hash"], table["text"], table["metadata"], strict=True)
            texts.update(zip(table["document_id"], contents, strict=True))
    filled: list[tuple[str, str, str, bytes]] = []
    for document_id, content_hash, text, metadata in rows:
        if text is None or metadata is None:
            stored_hash, text, metadata = texts.get(document_id, (b"", "", ""))
            if stored_hash != content_hash:
                raise CatalogStale
        filled.append((document_id, text, metadata, content_hash))
    columns = list(zip(*filled, strict=True)) or [()] * len(DOCUMENTS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, DOCUMENTS, strict=True)]
    return pa.table(arrays, schema=DOCUMENTS)
