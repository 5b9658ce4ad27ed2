"""What a region's table holds of a row, and its hashes: computed once, where rows are made.

Loaders in every region make the digests of rows from these hashes, and SQL makes them from what is stored.
"""

import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

_BLOCK: Final = 256  # rows: no second copy of a shard's vectors
_CHUNK: Final = struct.Struct(">16siii32si")

HASHED_COLUMNS: Final = ("chunk_id", "document_id", "ordinal", "start", "end", "text_hash", "metadata")
"""The columns of a chunk that `chunk_hashes` covers."""


def chunk_hashes(columns: Mapping[str, Sequence[Any]]) -> list[bytes]:
    """The SHA-256 of each chunk, given the columns of the schema CHUNKS by name.

    It is that of `chunk_id`, `ordinal`, `start`, `end`, `text_hash` and the length of `document_id`, with integers as
    big-endian int32, and of `document_id` and `metadata` in UTF-8.
    """
    hashes = []
    for chunk_id, document_id, ordinal, start, end, text_hash, metadata in zip(
        *(columns[name] for name in HASHED_COLUMNS), strict=True
    ):
        document = document_id.encode()
        head = _CHUNK.pack(chunk_id, ordinal, start, end, text_hash, len(document))
        hashes.append(sha256(head + document + metadata.encode()).digest())
    return hashes


def binary_vectors(values: npt.NDArray[np.float32], floats: Literal["f4", "f2"] = "f4") -> npt.NDArray[Any]:
    """(n, d) float32 as (n,) records in the binary form of pgvector's vector (f4) or halfvec (f2).

    That is: dimensions and zero as int16, then the values, all big-endian (`vector_send` in pgvector's src/vector.c).
    """
    n, dimensions = values.shape
    records = np.empty(n, [("dimensions", ">i2"), ("unused", ">i2"), ("values", f">{floats}", (dimensions,))])
    records["dimensions"], records["unused"], records["values"] = dimensions, 0, values
    return records


def vector_hashes(values: npt.NDArray[np.float32], floats: Literal["f4", "f2"] = "f4") -> npt.NDArray[np.uint8]:
    """The SHA-256 of each of (n, d) vectors in that form: (n, 32) uint8."""
    hashes = []
    for start in range(0, len(values), _BLOCK):
        records = binary_vectors(values[start : start + _BLOCK], floats)
        size = records.dtype.itemsize
        data = memoryview(records.view(np.uint8))  # type: ignore[arg-type]
        hashes += [sha256(data[at : at + size]).digest() for at in range(0, records.nbytes, size)]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(values), 32)
