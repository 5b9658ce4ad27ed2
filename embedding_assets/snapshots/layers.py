"""Layers: Parquet files named by what they were derived from, written once, verified whenever they are read."""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.keys import PartKey
from embedding_assets.snapshots.snapshot import Layer, layer_path
from embedding_assets.snapshots.stores import ObjectTooLarge, Store

_CONTENT: Final = b"embedding_assets.content"
_GONE: Final = b"embedding_assets.gone"

NOTHING_GONE: Final = pa.nulls(0)


class Rows(NamedTuple):
    """Some columns of rows."""

    table: pa.Table
    names: pa.ChunkedArray
    """(n,) The first column of the file, which tells rows from each other."""
    gone: pa.Array
    """(m,) The names of rows of lower layers that are gone."""


class LayerDamaged(PermanentError):
    """A layer is missing, or its bytes are not those that its snapshot recorded."""

    def __init__(self, store: Store, source: str, layer: Layer, what: str) -> None:
        self.what = f"store {store.url}: {layer.path(source)} of source {source} {what}."
        super().__init__(
            f"{self.what} Cure: run `embedding-assets materialize --source {source}`: it is taken from a store "
            "that has it, or made again."
        )
        self.store = store
        self.source = source
        self.layer = layer
        self.words = what


def write_layer(
    store: Store,
    table: pa.Table,
    *,
    asset: str,
    source: str,
    shard: int,
    key: PartKey,
    inputs: Sequence[str] = (),
    dead: Sequence[str] = (),
    gone: pa.Array = NOTHING_GONE,
    compression: Literal["zstd", "none"] = "zstd",
) -> Layer:
    """Write a layer unless it exists whole; describe the file that is there.

    `gone` names rows of the layers below by their first column: strings, or binary.
    """
    sink = pa.BufferOutputStream()
    said = _said(gone)
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
        writer.add_key_value_metadata({_CONTENT: content_digest(table, said)} | ({_GONE: said} if said else {}))
    data = sink.getvalue().to_pybytes()
    path = layer_path(asset, source, key)
    failpoint(Failpoint.BEFORE_PART)
    won = store.put_if_absent(path, data)
    failpoint(Failpoint.AFTER_PART)
    if not won:
        found = find_layer(store, asset=asset, source=source, shard=shard, key=key, inputs=inputs, dead=dead)
        if found is not None:
            return found
        store.replace(path, data)
    return _describe(data, table.num_rows, len(gone), asset, shard, key, inputs, dead)


def find_layer(
    store: Store,
    *,
    asset: str,
    source: str,
    shard: int,
    key: PartKey,
    inputs: Sequence[str] = (),
    dead: Sequence[str] = (),
) -> Layer | None:
    """The layer of this name that an earlier run left, if its content is proved to be what that run wrote.

    No snapshot names it yet, so nobody has recorded its bytes: the digest of its rows, written with them, has to fit.
    A snapshot is about to name it: it is kept from garbage collection meanwhile.
    """
    path = layer_path(asset, source, key)
    data = store.get(path)
    if data is None:
        return None
    try:
        with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
            footer = file.metadata.metadata or {}
            table = file.read(use_threads=False)
        gone_names = footer.get(_GONE, b"").decode()
        gone = _named(gone_names, table.schema)
        if footer.get(_CONTENT) != content_digest(table, gone_names).encode():
            return None
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        return None
    store.keep_young(path, data)
    return _describe(data, table.num_rows, len(gone), asset, shard, key, inputs, dead)


def _said(gone: pa.Array) -> str:
    """Names of rows that are gone as a layer has them: a JSON list, of hex digits where they are binary."""
    if not len(gone):
        return ""
    names = (name if isinstance(name, str) else name.hex() for name in gone.to_pylist())
    return json.dumps(list(names), ensure_ascii=False)


def _named(said: str, schema: pa.Schema) -> pa.Array:
    """What `_said` said of a layer of this schema. Raises ValueError where it is nothing of that kind."""
    kind = schema.field(0).type
    names = json.loads(said) if said else []
    return pa.array(names if pa.types.is_string(kind) else map(bytes.fromhex, names), kind)


def content_digest(table: pa.Table, gone: str = "") -> str:
    """SHA-256, in hex, over a table's column names, types, nulls and values: the same however it is laid out.

    For each column: its name and type; a byte a row, 1 where it is null; the length of each value that is not null as
    little-endian int64 where values vary in length; the values' bytes. Then what is said to be gone, if anything is.
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
    if gone:
        digest.update(f"\ngone\n{gone}".encode())
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


def read_layer(store: Store, source: str, layer: Layer, columns: Sequence[str] | None = None) -> Rows:
    """What a layer holds, after its bytes were verified against the snapshot's hash.

    Columns that it does not have are left out.

    Raises:
        LayerDamaged: it is missing, or has other bytes than recorded.
    """
    with pq.ParquetFile(io.BytesIO(read_bytes(store, source, layer))) as file:
        schema = file.schema_arrow
        naming, wanted = schema.names[0], schema.names if columns is None else [*columns]
        table = file.read({naming, *wanted}, use_threads=False)
        said = (file.metadata.metadata or {}).get(_GONE, b"").decode()
        held = [name for name in wanted if name in schema.names]
        return Rows(table.select(held), table.column(naming), _named(said, schema))


def read_bytes(store: Store, source: str, layer: Layer) -> bytes:
    """A layer's verified bytes. Raises `LayerDamaged` as `read_layer` does."""
    try:
        data = store.get(layer.path(source), at_most=layer.bytes)
    except ObjectTooLarge as error:
        raise LayerDamaged(store, source, layer, "is larger than recorded") from error
    if data is None:
        raise LayerDamaged(store, source, layer, "is missing")
    if not is_whole(layer, data):
        raise LayerDamaged(store, source, layer, "has other bytes than recorded")
    return data


def is_whole(layer: Layer, data: bytes) -> bool:
    """Whether these are the bytes that the layer's snapshot recorded."""
    return hashlib.sha256(data).hexdigest() == layer.sha256


def _describe(
    data: bytes, rows: int, gone: int, asset: str, shard: int, key: PartKey, inputs: Sequence[str], dead: Sequence[str]
) -> Layer:
    described: dict[str, Any] = {"asset": asset, "shard": shard, "key": key, "rows": rows, "gone": gone}
    return Layer(
        **described,
        inputs=tuple(inputs),
        dead=tuple(sorted(dead)),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
