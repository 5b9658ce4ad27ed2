"""Parts: Parquet files named by what they were derived from, written once, verified whenever they are read."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.keys import PartKey
from embedding_assets.snapshots.snapshot import Part, part_path
from embedding_assets.snapshots.stores import Store


class PartDamaged(PermanentError):
    """A part is missing, or its bytes are not those that its snapshot recorded."""


def write_part(
    store: Store,
    table: pa.Table,
    *,
    asset: str,
    source: str,
    shard: int,
    key: PartKey,
    inputs: Sequence[str] = (),
    dead: Sequence[str] = (),
    compression: Literal["zstd", "none"] = "zstd",
) -> Part:
    """Write a part unless it exists; describe the file that won.

    Raises:
        TransientError: it existed, and is gone.
    """
    sink = pa.BufferOutputStream()
    # Statistics of hashes and vectors help nobody; dictionary pages of them only cost time.
    pq.write_table(table, sink, compression=compression, use_dictionary=False, write_statistics=False)
    data = sink.getvalue().to_pybytes()
    failpoint(Failpoint.BEFORE_PART)
    won = store.put_if_absent(part_path(asset, source, key), data)
    failpoint(Failpoint.AFTER_PART)
    if won:
        return _describe(data, table.num_rows, asset, shard, key, inputs, dead)
    found = find_part(store, asset=asset, source=source, shard=shard, key=key, inputs=inputs, dead=dead)
    if found is None:
        raise TransientError(
            f"store {store.url}: {part_path(asset, source, key)} was deleted while it was written. Cure: run again; if "
            "garbage was being collected, give it a longer grace period."
        )
    return found


def find_part(
    store: Store,
    *,
    asset: str,
    source: str,
    shard: int,
    key: PartKey,
    inputs: Sequence[str] = (),
    dead: Sequence[str] = (),
) -> Part | None:
    """The part of this name, if an earlier run left it there: what a crash between parts and log loses nothing by.

    A snapshot is about to name it, and none may name it yet: it is kept from garbage collection meanwhile.

    Raises:
        PartDamaged: it is no Parquet file.
    """
    path = part_path(asset, source, key)
    data = store.get(path)
    if data is None:
        return None
    try:
        rows = pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
    except pa.ArrowInvalid as error:
        raise PartDamaged(
            f"store {store.url}: {path} is not a Parquet file ({error}). Cure: delete the file and run again."
        ) from error
    store.keep_young(path, data)
    return _describe(data, rows, asset, shard, key, inputs, dead)


def read_part(store: Store, source: str, part: Part, columns: list[str] | None = None) -> pa.Table:
    """A part's rows, after its bytes were verified against the snapshot's hash.

    Raises:
        PartDamaged: it is missing, or has other bytes than recorded.
    """
    return pq.read_table(io.BytesIO(read_bytes(store, source, part)), columns=columns, use_threads=False)


def read_bytes(store: Store, source: str, part: Part) -> bytes:
    """A part's verified bytes. Raises `PartDamaged` as `read_part` does."""
    path = part.path(source)
    data = store.get(path)
    cure = "Cure: `embedding-assets verify` names what is damaged; copy the file back from another region's store."
    if data is None:
        raise PartDamaged(f"store {store.url}: {path} of source {source} is missing. {cure}")
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise PartDamaged(f"store {store.url}: {path} of source {source} has other bytes than recorded. {cure}")
    return data


def _describe(
    data: bytes, rows: int, asset: str, shard: int, key: PartKey, inputs: Sequence[str], dead: Sequence[str]
) -> Part:
    described: dict[str, Any] = {"asset": asset, "shard": shard, "key": key, "rows": rows, "bytes": len(data)}
    return Part(**described, inputs=tuple(inputs), dead=tuple(sorted(dead)), sha256=hashlib.sha256(data).hexdigest())
