"""Rows of a shard as PostgreSQL's binary COPY stream, encoded a block at a time by NumPy and Arrow. Pure: no I/O.

A row is the join of a few columns of bytes: fixed-size headers (field counts and lengths, big-endian, written by NumPy
structured arrays) between the texts and the vectors. `binary_join_element_wise` interleaves them, and its value buffer
is the stream: no Python object for a row or a field (docs/decisions/0008).

Each row carries a digest of its content, made of the hashes that its parts bring along: hashing all of a row's bytes
here took as long as all else that the loader does, and its small fields alone a fifth of a load.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.rows.shards import ShardRows
from embedding_assets.pgvector.rows.vector_types import VectorType, VectorTypes
from embedding_assets.snapshots.binary import HASHED_COLUMNS, binary_vectors, chunk_hashes, vector_hashes
from embedding_assets.snapshots.slots import SLOTS, column_of

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"

COLUMNS: Final = (
    "shard",
    "digest",
    "chunk_id",
    "document_id",
    "ordinal",
    "start_offset",
    "end_offset",
    "content",
    "metadata",
    *map(column_of, SLOTS),
)
"""The columns of a row in the stream, in order; `source` is the table's default."""

BLOCK_BYTES: Final = 1 << 21  # best of 1, 2, 4 and 8 MB in bench/load, by little
_LARGEST_ROW: Final = (1 << 30) - 1  # what a Postgres field and row can hold

_HEAD: Final = np.dtype(
    [
        ("fields", ">i2"),
        ("shard_len", ">i4"),
        ("shard", ">i4"),
        ("digest_len", ">i4"),
        ("digest", ">i8"),
        ("id_len", ">i4"),
        ("id", "V16"),
        ("document_len", ">i4"),
    ]
)
_MIDDLE: Final = np.dtype(
    [
        ("ordinal_len", ">i4"),
        ("ordinal", ">i4"),
        ("start_len", ">i4"),
        ("start", ">i4"),
        ("end_len", ">i4"),
        ("end", ">i4"),
        ("content_len", ">i4"),
    ]
)
_HASH: Final = np.dtype((">i8", 4))  # SHA-256
_METADATA: Final = np.dtype([("len", ">i4"), ("version", "i1")])  # jsonb's binary form opens with its version, 1


def digests_of(rows: ShardRows, types: VectorTypes) -> npt.NDArray[np.int64]:
    """The digests of a shard's rows, as columns of these types hold them: (n,) int64.

    A digest is the XOR of the first eight bytes of the row's `chunk_hash`, the second eight of its v1 vector's hash
    (SHA-256 of pgvector's binary form) and the third eight of its v2 vector's, as big-endian integers. A vector that is
    NULL has zeros.
    """
    if not rows.chunks.num_rows:
        return np.zeros(0, np.int64)
    digests = _chunk_hashes(rows.chunks)[:, 0].astype(np.int64)
    for place, (table, each) in enumerate(zip(rows.vectors, types, strict=True), start=1):
        present = _present(one_array(table.column("embedding")))
        digests ^= np.where(present, _vector_hashes(table, each)[:, place], 0)
    return digests


def encode(
    rows: ShardRows,
    digests: npt.NDArray[np.int64],
    shard: int,
    types: VectorTypes,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[memoryview]:
    """Encode a shard's rows with their digests, in order, in blocks of about `block_bytes` and at least a row.

    `HEADER`, the blocks and `TRAILER` are the whole stream. Vectors, which have the dimensions of `types`, become
    `vector` or `halfvec`; NULL stays NULL. Raises PermanentError for a row that Postgres cannot hold.
    """
    first = 0
    for block in _slices(rows, types, block_bytes):
        n = block.chunks.num_rows
        yield _block(block, digests[first : first + n], shard, types)
        first += n


def _slices(rows: ShardRows, types: VectorTypes, block_bytes: int = BLOCK_BYTES) -> Iterator[ShardRows]:
    """The rows of each block. Raises PermanentError for a row that Postgres cannot hold."""
    chunks = rows.chunks
    sizes = np.full(chunks.num_rows, sum(4 * each.dimensions for each in types), dtype=np.int64)
    for name in ("document_id", "text", "metadata"):
        sizes += pc.binary_length(chunks.column(name)).to_numpy()
    if sizes.max(initial=0) > _LARGEST_ROW:
        largest = int(sizes.argmax())
        document = chunks.column("document_id")[largest].as_py()
        raise PermanentError(
            f"a chunk of document {document!r} takes {sizes[largest]:,} bytes; a Postgres row holds {_LARGEST_ROW:,}. "
            "Cure: lower max_tokens of the source's chunking"
        )
    # A cut wherever the running total passes a multiple of the block's size, so no offset nears Arrow's 2 GiB.
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // block_bytes)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(sizes)], strict=True):
        if end > start:
            yield rows.each(partial(pa.Table.slice, offset=start, length=end - start))


def _chunk_hashes(chunks: pa.Table) -> npt.NDArray[np.int64]:
    """(n, 4) big-endian."""
    if "chunk_hash" in chunks.column_names:
        return _fixed(one_array(chunks.column("chunk_hash")), _HASH)
    return np.frombuffer(b"".join(chunk_hashes(chunks.select(HASHED_COLUMNS).to_pydict())), _HASH)


def _vector_hashes(table: pa.Table, each: VectorType) -> npt.NDArray[np.int64]:
    """(n, 4) big-endian; under a NULL they are anything."""
    if each.name == "vector" and "vector_hash" in table.column_names:
        return _fixed(one_array(table.column("vector_hash")), _HASH)
    # Parts have hashes of what the provider gave, and a halfvec column holds less than that.
    values = _fixed(one_array(table.column("embedding")), np.dtype(("<f4", each.dimensions)))
    return np.frombuffer(vector_hashes(values, "f4" if each.name == "vector" else "f2").data, _HASH)


def _block(rows: ShardRows, digests: npt.NDArray[np.int64], shard: int, types: VectorTypes) -> memoryview:
    chunks, n = rows.chunks, rows.chunks.num_rows
    document, content, metadata = (_bytes(chunks.column(name)) for name in ("document_id", "text", "metadata"))

    head = np.empty(n, _HEAD)
    head["fields"], head["shard_len"], head["shard"] = len(COLUMNS), 4, shard
    head["digest_len"], head["digest"] = 8, digests
    head["id_len"], head["id"] = 16, _fixed(one_array(chunks.column("chunk_id")), np.dtype("V16"))
    head["document_len"] = _lengths(document)

    middle = np.empty(n, _MIDDLE)
    for name in ("ordinal", "start", "end"):
        middle[f"{name}_len"], middle[name] = 4, chunks.column(name).to_numpy()
    middle["content_len"] = _lengths(content)

    meta = np.empty(n, _METADATA)
    meta["len"], meta["version"] = _lengths(metadata) + 1, 1

    pieces = [_as_binary(head), document, _as_binary(middle), content, _as_binary(meta), metadata]
    for table, each in zip(rows.vectors, types, strict=True):
        pieces += _vector_field(one_array(table.column("embedding")), each)
    return memoryview(pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.binary())).buffers()[2])


def _vector_field(embedding: pa.FixedSizeBinaryArray, each: VectorType) -> list[pa.Array]:
    """A vector's field: its length (-1 where NULL), and its body in pgvector's binary form."""
    present = _present(embedding)
    values = _fixed(embedding, np.dtype(("<f4", each.dimensions)))
    body = binary_vectors(values if present.all() else values[present], "f4" if each.name == "vector" else "f2")
    length = np.where(present, body.dtype.itemsize, -1).astype(">i4")
    return [_as_binary(length), _as_binary(body, present * body.dtype.itemsize)]


def _present(embedding: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
    """Where there is a vector."""
    if not embedding.null_count:
        return np.ones(len(embedding), bool)
    present: npt.NDArray[np.bool_] = embedding.is_valid().to_numpy(zero_copy_only=False)
    return present


def _as_binary(records: npt.NDArray[Any], lengths: npt.NDArray[np.int64] | None = None) -> pa.BinaryArray:
    """Records as byte strings without a copy; `lengths` where not every row has a record."""
    if lengths is None:
        lengths = np.full(len(records), records.dtype.itemsize)
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(records.view(np.uint8))]
    return pa.BinaryArray.from_buffers(pa.binary(), len(lengths), buffers)


def _fixed(array: pa.FixedSizeBinaryArray, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A fixed-size binary array's values, uncopied; under a NULL they are whatever the buffer holds."""
    base, shape = dtype.base, dtype.shape
    flat = np.frombuffer(array.buffers()[1], base)
    width = array.type.byte_width // base.itemsize
    return flat[array.offset * width : (array.offset + len(array)) * width].reshape((len(array), *shape))


def _bytes(column: pa.ChunkedArray) -> pa.BinaryArray:
    return one_array(column).cast(pa.binary())


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column's values as one array; without a copy where they are one, which `combine_chunks` would make."""
    if column.num_chunks == 1:
        return column.chunk(0)
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _lengths(array: pa.BinaryArray) -> npt.NDArray[np.int32]:
    lengths: npt.NDArray[np.int32] = pc.binary_length(array).to_numpy()
    return lengths
