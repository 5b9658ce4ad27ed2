"""A shard's documents as a part: the documents that changed as a delta on the last part, or all of them as a base."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from embedding_assets.errors import TransientError
from embedding_assets.snapshots.changes import covering
from embedding_assets.snapshots.derivation import Shelf, Wanted
from embedding_assets.snapshots.keys import Hex, PartKey, part_key
from embedding_assets.snapshots.layers import LayerDamaged, read_layer, write_layer
from embedding_assets.snapshots.names import RAW_DOCS
from embedding_assets.snapshots.parts import merged, read_part
from embedding_assets.snapshots.schemas import DOCUMENTS
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.snapshots.tasks import Task
from embedding_assets.sources.catalog import Row, shard_rows

VERSION: Final = "raw_docs-1"

MOST_DELTAS: Final = 8
"""A part's layers are read one after the other by whoever needs it whole."""

LARGEST_SHARE: Final = 1 / 4
"""What deltas may hold of a base's rows. Rows that they hide are stored, copied and read with it for nothing."""


class CatalogStale(TransientError):
    """The catalog names a document whose text is neither in it nor in the last snapshot: it is read anew."""


class _Change(NamedTuple):
    """What makes a shard's documents the present ones: those that are new or have other contents, and those gone."""

    rows: list[Row]
    gone: list[str]


class DocumentsTask(Task):
    """The documents of one shard to be written."""

    catalog: Path
    """It has the shard's documents, on the machine that looked at the source."""
    shard: int
    bits: int
    """The shard is one out of 2**bits."""
    key: Hex
    before: Part | None
    """The shard's part in the last snapshot, if the store has all of it."""
    left: Layer | None
    """The delta on it that an earlier run left."""
    holders: tuple[Part, ...]
    """The parts of the last snapshot that have the texts which the catalog has no more."""


def task_of(
    source: str, catalog: Path, shelf: Shelf, want: Wanted, previous: Snapshot | None, bits: int
) -> DocumentsTask:
    """What is to be done for a part that is wanted, out of 2**bits."""
    before = shelf.before.get(want.shard) if previous is not None and previous.shard_bits == bits else None
    if before is not None and not all(map(shelf.has, before.layers)):
        before = None
    left = None
    if before is not None:
        key, inputs = _delta_on(before, want.key)
        left = shelf.layer(Wanted(want.shard, key, inputs))
    holders = covering(previous.parts, previous.shard_bits, want.shard, bits) if previous else []
    return DocumentsTask(
        source=source,
        catalog=catalog,
        shard=want.shard,
        bits=bits,
        key=want.key,
        before=before,
        left=left,
        holders=tuple(holders),
    )


def make_documents(store: Store, task: DocumentsTask) -> Part:
    """Write the part of a shard's documents.

    Raises:
        CatalogStale: see there.
    """
    rows = shard_rows(task.catalog, task.shard, task.bits)
    if task.before is not None:
        with suppress(LayerDamaged):  # what cannot be laid on is written whole
            if (part := _on_top(store, task, task.before, rows)) is not None:
                return part
    table = _table(store, task.source, rows, task.holders)
    key = PartKey(task.key)
    return Part.alone(write_layer(store, table, asset=RAW_DOCS, source=task.source, shard=task.shard, key=key))


def _on_top(store: Store, task: DocumentsTask, before: Part, rows: Sequence[Row]) -> Part | None:
    """The part as the last one with a delta on it; None where deltas would hold too much."""
    source = task.source
    kept = _kept_of(before)
    held = merged([read_layer(store, source, layer, ["document_id", "content_hash"]) for layer in kept])
    change = _difference(rows, held.table)
    base, *deltas = kept
    size = sum(delta.rows + delta.gone for delta in deltas) + len(change.rows) + len(change.gone)
    if size > LARGEST_SHARE * base.rows:
        return None
    key, inputs = _delta_on(before, task.key)
    delta = task.left or write_layer(
        store,
        _table(store, source, change.rows, [before]),
        asset=RAW_DOCS,
        source=source,
        shard=task.shard,
        key=key,
        inputs=inputs,
        gone=pa.array(change.gone, pa.string()),
    )
    below = before.contents[: len(kept)]
    return Part(asset=RAW_DOCS, shard=task.shard, key=task.key, rows=len(rows), below=below, layers=(*kept, delta))


def _kept_of(before: Part) -> tuple[Layer, ...]:
    """What a new delta lies on. Where there are many deltas already, it takes the place of them all."""
    return before.layers if len(before.layers) <= MOST_DELTAS else before.layers[:1]


def _delta_on(before: Part, key: str) -> tuple[PartKey, tuple[str, ...]]:
    """The name of the delta that makes this part one of that key, and its inputs."""
    inputs = (before.contents[len(_kept_of(before)) - 1], key)
    return part_key(RAW_DOCS, VERSION, inputs), inputs


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
                raise CatalogStale(f"source {source}: its catalog is of another snapshot. Cure: run again.")
        filled.append((document_id, text, metadata, content_hash))
    columns = list(zip(*filled, strict=True)) or [()] * len(DOCUMENTS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, DOCUMENTS, strict=True)]
    return pa.table(arrays, schema=DOCUMENTS)
