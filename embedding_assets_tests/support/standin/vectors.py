"""Deterministic vectors: the same text has the same vector on every machine."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def vector(text: str, dimensions: int) -> NDArray[np.float32]:
    """(d,) float32 in [-1, 1), drawn from SHAKE-256 of the text."""
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * dimensions)
    return (np.frombuffer(digest, "<i4") / 2.0**31).astype("<f4")
