"""What goes through the engine: texts in, vectors or dead letters out."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Text(NamedTuple):
    """A text to embed; `text_hash` names it to the caller, `tokens` are cl100k tokens."""

    text_hash: bytes
    text: str
    tokens: int


class Embedded(NamedTuple):
    """Vectors of one request: (n, d) float32, finite, unit rows, row for row those of `text_hashes`."""

    text_hashes: list[bytes]
    vectors: NDArray[np.float32]


class Dead(NamedTuple):
    """A text that got no vector, and why; `error_class` is one of `snapshots.rejections`."""

    text_hash: bytes
    error_class: str
    reason: str
    attempts: int


def tokens_of(texts: list[Text]) -> int:
    """All their cl100k tokens."""
    return sum(text.tokens for text in texts)
