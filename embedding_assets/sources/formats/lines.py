"""Bytes as lines of UTF-8, with a bound on each line and on what a packed stream may unfold to.

One line is held at a time, and a block of the stream.
"""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, Final, NamedTuple

_BLOCK: Final = 1 << 18

MAX_UNPACKED: Final = 200
"""Bytes from each byte of a packed stream. Documents as JSON pack to a tenth, the same line over and over to a
hundredth; gzip goes to a thousandth."""

_UNPACKED_ANYWAY: Final = 64 << 20
"""Bytes that a packed stream may have however small it is."""

_BLANK_LINES = re.compile(rb"(?:[ \t\r]*+\n)++")


class UnreadableError(Exception):
    """A packed stream is damaged; the message says how."""


class UnpacksTooFarError(Exception):
    """A packed stream unfolds to more than `MAX_UNPACKED` times its size."""


class Line(NamedTuple):
    number: int
    """From 1. Blank lines count, though they do not come."""
    content: bytes | None
    """Without its end; None where it has more than the allowed bytes."""


def lines(stream: BinaryIO, *, packed: bool, longest: int) -> Iterator[Line]:
    """Each line that is not blank. `packed` says that the stream is gzip.

    A stream that begins with the byte order mark of UTF-16 comes as UTF-8; what is no UTF-16 in it comes as bytes that
    are no UTF-8.

    Raises:
        UnreadableError, UnpacksTooFarError: the lines before it have come, and are sound as far as they can be told.
        OSError: of the stream itself.
    """
    number = 1
    held: list[bytes] = []
    size = 0  # of the line so far, what is no longer held included
    for block in _as_utf8(_unpacked(stream) if packed else iter(lambda: stream.read(_BLOCK), b"")):
        start = 0
        while start < len(block):
            if not size and (blank := _BLANK_LINES.match(block, start)):
                number += block.count(b"\n", start, blank.end())
                start = blank.end()
                continue
            end = block.find(b"\n", start)
            stop = len(block) if end < 0 else end
            size += stop - start
            held = [*held, block[start:stop]] if size <= longest else []
            if end < 0:
                break
            yield Line(number, b"".join(held) if size <= longest else None)
            number, held, size, start = number + 1, [], 0, end + 1
    if size:
        yield Line(number, b"".join(held) if size <= longest else None)


def _unpacked(stream: BinaryIO) -> Iterator[bytes]:
    counted = _Counted(stream)
    unpacked = 0
    with gzip.GzipFile(fileobj=counted) as unpacking:  # type: ignore[call-overload]
        while True:
            try:
                block = unpacking.read1(_BLOCK)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UnreadableError(str(error)) from None
            if not block:
                return
            unpacked += len(block)
            if unpacked > _UNPACKED_ANYWAY + MAX_UNPACKED * counted.read_so_far:
                raise UnpacksTooFarError
            yield block


class _Counted:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.read_so_far = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.read_so_far += len(data)
        return data


def _as_utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks without a byte order mark, in UTF-8 if it was that of UTF-16."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= len(codecs.BOM_UTF8):
            break
    blocks = chain([head], blocks)
    if not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield head.removeprefix(codecs.BOM_UTF8)
        next(blocks)
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    try:
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        yield b"\xff"  # it ends within a character
