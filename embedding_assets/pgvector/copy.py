"""Rows of a shard as PostgreSQL's binary COPY stream, encoded a block at a time by NumPy and Arrow. Pure: no I/O.

A row is the join of a few columns of bytes: fixed-size headers (field counts and lengths, big-endian, written by NumPy
structured arrays) between the texts and the vectors. `binary_join_element_wise` interleaves them, and its value buffer
is the stream: no Python object for a row or a field (FIELD §4). Each row carries the digest of what follows it in the
stream; the digests are written into the joined buffer, all of a block at once. Hashing takes a third of the time.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.shards import ShardRows, VectorType, VectorTypes

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
    "embedding_v1",
    "embedding_v2",
)
"""The columns of a row in the stream, in order; `source` is the table's default."""

CONTENT_START: Final = 22
"""Where in a row the bytes begin that its digest covers: after the field count, the shard and the digest itself."""

_DIGEST_START: Final = 14

BLOCK_BYTES: Final = 1 << 21  # best of 1, 2, 4 and 8 MB in bench/load, by little
_LARGEST_ROW: Final = (1 << 30) - 1  # what a Postgres field and row can hold

_HEAD: Final = np.dtype(
    [
        ("fields", ">i2"),
        ("shard_len", ">i4"),
        ("shard", ">i4"),
        ("digest_len", ">i4"),
        ("digest", "V8"),
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
_METADATA: Final = np.dtype([("len", ">i4"), ("version", "i1")])  # jsonb's binary form opens with its version, 1


class Block(NamedTuple):
    """Some rows of the stream: their bytes, where each begins and the last ends ((n + 1,) int64), and their digests.

    A digest ((n,) int64) is the first eight bytes of the SHA-256 of a row's fields from `chunk_id` on, as a big-endian
    signed number.
    """

    data: memoryview
    offsets: npt.NDArray[np.int64]
    digests: npt.NDArray[np.int64]


def encode(rows: ShardRows, shard: int, types: VectorTypes, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Encode a shard's rows, in order, in blocks of about `block_bytes` and at least a row.

    `HEADER`, the blocks' data and `TRAILER` are the whole stream. Vectors, which have the dimensions of `types`, become
    `vector` or `halfvec`; NULL stays NULL. Raises PermanentError for a row that Postgres cannot hold.
    """
    chunks, vectors = rows.chunks, (rows.v1, rows.v2)
    sizes = np.full(chunks.num_rows, sum(4 * each.dimensions for each in types), dtype=np.int64)
    for name in ("document_id", "text", "metadata"):
        sizes += pc.binary_length(chunks.column(name)).to_numpy()
    if sizes.max(initial=0) > _LARGEST_ROW:
        largest = int(sizes.argmax())
        document = chunks.column("document_id")[largest].as_py()
        raise PermanentError(
            f"a chunk of document {document!r} (shard {shard}) takes {sizes[largest]:,} bytes; a Postgres row holds "
            f"{_LARGEST_ROW:,}. Chunk this source into smaller pieces"
        )
    # A cut wherever the running total passes a multiple of the block's size, so no offset nears Arrow's 2 GiB.
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // block_bytes)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(sizes)], strict=True):
        if end > start:
            some = [table.slice(start, end - start) for table in (chunks, *vectors)]
            yield _block(some[0], some[1:], shard, types)


def _block(chunks: pa.Table, vectors: list[pa.Table], shard: int, types: VectorTypes) -> Block:
    n = chunks.num_rows
    document, content, metadata = (_bytes(chunks.column(name)) for name in ("document_id", "text", "metadata"))

    head = np.empty(n, _HEAD)
    head["fields"], head["shard_len"], head["shard"] = len(COLUMNS), 4, shard
    head["digest_len"] = 8  # the digest itself is written below, once there is something to digest
    head["id_len"], head["id"] = 16, _fixed(one_array(chunks.column("chunk_id")), np.dtype("V16"))
    head["document_len"] = _lengths(document)

    middle = np.empty(n, _MIDDLE)
    for name in ("ordinal", "start", "end"):
        middle[f"{name}_len"], middle[name] = 4, chunks.column(name).to_numpy()
    middle["content_len"] = _lengths(content)

    meta = np.empty(n, _METADATA)
    meta["len"], meta["version"] = _lengths(metadata) + 1, 1

    pieces = [_as_binary(head), document, _as_binary(middle), content, _as_binary(meta), metadata]
    for table, each in zip(vectors, types, strict=True):
        pieces += _vector_field(one_array(table.column("embedding")), each)
    joined = pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.binary()))
    offsets = np.frombuffer(joined.buffers()[1], np.int32)[joined.offset : joined.offset + n + 1].astype(np.int64)
    data = memoryview(joined.buffers()[2])[: offsets[-1]]
    starts, ends = (offsets[:-1] + CONTENT_START).tolist(), offsets[1:].tolist()
    hashes = b"".join([sha256(data[start:end]).digest() for start, end in zip(starts, ends, strict=True)])
    digests = np.frombuffer(hashes, np.uint8).reshape(n, 32)[:, :8]
    places = offsets[:-1, np.newaxis] + np.arange(_DIGEST_START, _DIGEST_START + 8)
    np.frombuffer(data, np.uint8)[places] = digests
    return Block(data, offsets, np.ascontiguousarray(digests).view(">i8").ravel().astype(np.int64))


def _vector_field(embedding: pa.FixedSizeBinaryArray, each: VectorType) -> list[pa.Array]:
    """A vector's field: its length (-1 where NULL), and its body: dimensions, two unused bytes, big-endian floats."""
    floats = np.dtype((">f4" if each.name == "vector" else ">f2", each.dimensions))
    body_type = np.dtype([("dimensions", ">i2"), ("unused", ">i2"), ("values", floats)])
    given = np.ones(len(embedding), bool)
    if embedding.null_count:
        given = embedding.is_valid().to_numpy(zero_copy_only=False)
    body = np.empty(int(given.sum()), body_type)
    body["dimensions"], body["unused"] = each.dimensions, 0
    values = _fixed(embedding, np.dtype(("<f4", each.dimensions)))
    body["values"] = values if len(body) == len(embedding) else values[given]
    length = np.where(given, body_type.itemsize, -1).astype(">i4")
    return [_as_binary(length), _as_binary(body, given * body_type.itemsize)]


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
