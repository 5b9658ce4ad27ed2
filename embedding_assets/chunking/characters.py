"""A text as an array of code points, and what each of them means to one who looks for words and sentences.

The tables are fixed here, and not asked of `str`, wherever a newer Unicode could answer differently: a newer
Python must not move a cut.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8] | NDArray[np.uint32]
Kinds = NDArray[np.uint8]
Positions = NDArray[np.int64]
"""Sorted offsets into a text, in characters. int64 throughout: `searchsorted` would copy any other array, whole."""

SPACE: Final = 1
STOP: Final = 2  # ends a sentence
CLOSER: Final = 4  # may stand between a stop and the space after it
LOWER: Final = 8  # begins no sentence
JOINT: Final = 16  # a word may end after it without a space, as in Chinese and Japanese

_MEANINGS: Final = {
    # White space is what str.strip() takes away; Unicode has promised to add no more.
    SPACE: "".join(c for c in map(chr, range(0x3001)) if c.isspace()),
    STOP: ".!?…‼⁇⁈⁉。．！？｡।॥؟۔։።។။",
    CLOSER: "\"')]}>*_`”’»›」』）】》〉］",
    # Latin, Greek and Cyrillic: all assigned since Unicode 7.
    LOWER: "".join(c for c in map(chr, range(0x530)) if c.islower()),
    JOINT: "。！？｡，、；：」』）】》〉］．",
}


def _kinds() -> Kinds:
    table = np.zeros(0x110000, dtype=np.uint8)
    for meaning, characters in _MEANINGS.items():
        table[[ord(c) for c in characters]] |= meaning
    return table


_KINDS: Final = _kinds()
_ASCII_KINDS: Final = _KINDS[:256].tobytes()


def code_points(text: str) -> tuple[Codes, Kinds]:
    """The code points of `text` and their kinds (a sum of the flags above), each of shape (len(text),).

    Raises UnicodeEncodeError for a lone surrogate, which no document that came through a reader holds.
    """
    if text.isascii():
        raw = text.encode("ascii")
        # bytes.translate looks a table up 5 times as fast as NumPy, which widens the indices first.
        return np.frombuffer(raw, dtype=np.uint8), np.frombuffer(raw.translate(_ASCII_KINDS), dtype=np.uint8)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return codes, _KINDS[codes]
