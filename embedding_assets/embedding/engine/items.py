"""What goes through the engine: texts in, vectors or dead letters out."""

from typing import Final, NamedTuple

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
    model: str | None = None  # as the endpoint names it, if it does


class Dead(NamedTuple):
    """A text that got no vector, and why; `error_class` is one of `snapshots.rejections`."""

    text_hash: bytes
    error_class: str
    reason: str
    attempts: int


def tokens_of(texts: list[Text]) -> int:
    """All their cl100k tokens."""
    return sum(text.tokens for text in texts)


_FEWEST: Final = 1 / 16  # of our tokens: cl100k takes ten for one of another vocabulary in some scripts
_MOST_BYTES: Final = 4  # of a character, and no token has less than one byte
_FRAME: Final = 16  # tokens that a model may put around a text


def believed(tokens: int, texts: list[Text]) -> int:
    """A provider's count of the tokens of these texts; 0 where it cannot be right."""
    most = sum(_MOST_BYTES * len(text.text) + _FRAME for text in texts)
    return tokens if max(len(texts), tokens_of(texts) * _FEWEST) <= tokens <= most else 0
