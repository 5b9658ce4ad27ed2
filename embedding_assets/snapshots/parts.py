"""Parts: Parquet files named by what they were derived from, written once, verified whenever they are read."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.keys import PartKey
from embedding_assets.snapshots.snapshot import Part, part_path
from embedding_assets.snapshots.stores import ObjectTooLarge, Store

_CONTENT: Final = b"embedding_assets.content"


class PartDamaged(PermanentError):
    """A part is missing, or its bytes are not those that its snapshot recorded."""

    def __init__(self, store: Store, source: str, part: Part, what: str) -> None:
        self.what = f"store {store.url}: {part.path(source)} of source {source} {what}."
        super().__init__(
            f"{self.what} Cure: run `embedding-assets materialize --source {source}`: it is taken from a store "
            "that has it, or made again."
        )
        self.store = store
        self.source = source
        self.part = part


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
    """Write a part unless it exists whole; describe the file that is there."""
    sink = pa.BufferOutputStream()
    # Statistics of hashes and vectors help nobody; dictionary pages of them only cost time.
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression=compression,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_CONTENT: content_digest(table)})
    data = sink.getvalue().to_pybytes()
    path = part_path(asset, source, key)
    failpoint(Failpoint.BEFORE_PART)
    won = store.put_if_absent(path, data)
    failpoint(Failpoint.AFTER_PART)
    if not won:
        found = find_part(store, asset=asset, source=source, shard=shard, key=key, inputs=inputs, dead=dead)
        if found is not None:
            return found
        store.replace(path, data)
    return _describe(data, table.num_rows, asset, shard, key, inputs, dead)


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
    """The part of this name that an earlier run left, if its content is proved to be what that run wrote.

    No snapshot names it yet, so nobody has recorded its bytes: the digest of its rows, written with them, has to fit.
    A snapshot is about to name it: it is kept from garbage collection meanwhile.
    """
    path = part_path(asset, source, key)
    data = store.get(path)
    if data is None:
        return None
    try:
        with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
            said = (file.metadata.metadata or {}).get(_CONTENT)
            table = file.read(use_threads=False)
        if said != content_digest(table).encode():
            return None
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        return None
    store.keep_young(path, data)
    return _describe(data, table.num_rows, asset, shard, key, inputs, dead)


def content_digest(table: pa.Table) -> str:
    """SHA-256, in hex, over a table's column names, types, nulls and values: the same however it is laid out.

    For each column: its name and type; a byte a row, 1 where it is null; the length of each value that is not null as
    little-endian int64 where values vary in length; the values' bytes.
    """
    digest = hashlib.sha256(str(table.num_rows).encode())
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(f"\n{field.name}\n{field.type}\n".encode())
        nulls = column.is_null().to_numpy().astype(np.uint8)
        digest.update(nulls.tobytes())
        for chunk in column.drop_null().chunks:
            if pa.types.is_string(chunk.type):
                chunk = chunk.cast(pa.binary())
            if pa.types.is_binary(chunk.type):
                digest.update(pc.binary_length(chunk).to_numpy().astype("<i8").tobytes())
        for chunk in column.drop_null().chunks:
            digest.update(_values(chunk))
    return digest.hexdigest()


def _values(chunk: pa.Array) -> bytes | memoryview:
    """The bytes of an array's values, one after the other; it has no nulls."""
    if not len(chunk):
        return b""
    if pa.types.is_fixed_size_binary(chunk.type):
        width = chunk.type.byte_width
        return memoryview(chunk.buffers()[1])[chunk.offset * width : (chunk.offset + len(chunk)) * width]
    if pa.types.is_string(chunk.type) or pa.types.is_binary(chunk.type):
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        return memoryview(chunk.buffers()[2])[int(offsets[0]) : int(offsets[-1])]
    values = chunk.to_numpy(zero_copy_only=False)
    return bytes(values.astype(values.dtype.newbyteorder("<")).tobytes())


def read_part(store: Store, source: str, part: Part, columns: list[str] | None = None) -> pa.Table:
    """A part's rows, after its bytes were verified against the snapshot's hash.

    Raises:
        PartDamaged: it is missing, or has other bytes than recorded.
    """
    return pq.read_table(io.BytesIO(read_bytes(store, source, part)), columns=columns, use_threads=False)


def read_bytes(store: Store, source: str, part: Part) -> bytes:
    """A part's verified bytes. Raises `PartDamaged` as `read_part` does."""
    try:
        data = store.get(part.path(source), at_most=part.bytes)
    except ObjectTooLarge as error:
        raise PartDamaged(store, source, part, "is larger than recorded") from error
    if data is None:
        raise PartDamaged(store, source, part, "is missing")
    if not is_whole(part, data):
        raise PartDamaged(store, source, part, "has other bytes than recorded")
    return data


def is_whole(part: Part, data: bytes) -> bool:
    """Whether these are the bytes that the part's snapshot recorded."""
    return hashlib.sha256(data).hexdigest() == part.sha256


def _describe(
    data: bytes, rows: int, asset: str, shard: int, key: PartKey, inputs: Sequence[str], dead: Sequence[str]
) -> Part:
    described: dict[str, Any] = {"asset": asset, "shard": shard, "key": key, "rows": rows, "bytes": len(data)}
    return Part(**described, inputs=tuple(inputs), dead=tuple(sorted(dead)), sha256=hashlib.sha256(data).hexdigest())
