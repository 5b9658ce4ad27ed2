"""Vectors as pgvector sends and receives them, and the hashes of that: computed once, where the vectors are made."""

from hashlib import sha256
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

_BLOCK: Final = 256  # rows: no second copy of a shard's vectors


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
