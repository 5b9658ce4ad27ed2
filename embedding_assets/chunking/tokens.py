"""The tokens of a text in cl100k_base: where they lie, and how many a piece of the text has by itself."""

import gzip
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_assets.chunking.characters import Positions


class Tokenizer(Protocol):
    """What is used of bpe-openai."""

    def encode(self, text: str) -> list[int]:
        """The token ids; text that looks like a special token is plain text."""


# Pieces keep the tokenizer's list of Python integers, 36 bytes a token, small beside the text.
_PIECE: Final = 50_000

# A seam is where cl100k_base's splitting pattern always begins a new pre-token, whatever stands around: a blank
# after a visible character, and a line that begins with a visible one. No alternative of the pattern matches
# across either, or looks past it with another result. So a text cut at a seam has, left and right of it, the tokens
# that the whole has there.
_SEAM: Final = r"(?:(?<=\S)(?=[ \t])|(?<=\n)(?=\S))"
_FIRST_SEAM: Final = re.compile(_SEAM)
_LAST_SEAM: Final = re.compile(rf"(?s:.*){_SEAM}")


@cache
def _package() -> Path:
    spec = find_spec("bpe_openai")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def _tokenizer() -> Tokenizer:
    """The Rust tokenizer of bpe-openai, without the Python around it: that decodes three vocabularies when it is
    imported, a second of CPU and 60 MB, of which the tokenizer needs none."""
    name = "bpe_openai._bindings"
    if name not in sys.modules:  # also by itself it must not be loaded twice
        [library] = (path for suffix in EXTENSION_SUFFIXES for path in _package().glob(f"_bindings{suffix}"))
        spec = spec_from_file_location(name, library)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    tokenizer: Tokenizer = sys.modules[name].tokenizer_for_encoding("cl100k_base")
    return tokenizer


@cache
def _byte_lengths() -> Positions:
    """Bytes of each token, shape (ids,): of the vocabulary's file, in which a line is a token in base64, and its id."""
    lines = gzip.decompress((_package() / "data" / "cl100k_base.tiktoken.gz").read_bytes()).splitlines()
    tokens = [line.partition(b" ")[0] for line in lines]
    return np.array([len(token) // 4 * 3 - token.count(b"=") for token in tokens], dtype=np.int64)


def encode(text: str) -> NDArray[np.uint32]:
    """The token ids of `text`, shape (tokens,); text that looks like a special token is plain text."""
    pieces = [np.array(ids, dtype=np.uint32) for ids in _encoded(text)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint32)


def _encoded(text: str) -> Iterator[list[int]]:
    """The token ids of `text`, piece by piece.

    A stretch of more than 50,000 characters without a seam (no prose has one) is encoded in pieces of that length;
    each break may add or take a token.
    """
    start = 0
    while start < len(text):
        stop = start + _PIECE
        if stop < len(text):
            seam = _LAST_SEAM.match(text, start + 1, stop)
            stop = seam.end() if seam else stop
        yield _tokenizer().encode(text[start:stop])
        start = stop


def _count(text: str) -> int:
    return sum(map(len, _encoded(text)))


@dataclass(frozen=True, slots=True)
class Tokens:
    """The t tokens of a text that was encoded once.

    A token is a string of bytes, and may begin or end inside a character; it then touches that character.
    """

    text: str
    starts: Positions  # (t,): the first character that token i touches
    ends: Positions  # (t,): the character after the last one that it touches
    edges: Positions  # places between two tokens that are places between two characters too, 0 included

    @classmethod
    def of(cls, text: str) -> "Tokens":
        """Encodes `text`; the byte offsets are the running sum of the tokens' known lengths (bench/chunking.py)."""
        ids = encode(text)
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(_byte_lengths()[ids], out=offsets[1:])
        if text.isascii():
            return cls(text, starts=offsets[:-1], ends=offsets[1:], edges=offsets[:-1])
        utf8 = np.frombuffer(text.encode(), dtype=np.uint8)
        leads = (utf8 & 0xC0) != 0x80  # the first byte of each character
        begun = np.zeros_like(offsets)  # characters begun before each offset
        np.cumsum(np.add.reduceat(leads, offsets[:-1], dtype=np.int64), out=begun[1:])
        whole = leads[offsets[:-1]]
        return cls(text, starts=begun[:-1] - ~whole, ends=begun[1:], edges=begun[:-1][whole])

    def __len__(self) -> int:
        return len(self.starts)

    def reach(self, start: int, tokens: int) -> int:
        """The furthest end such that at most `tokens` tokens touch [start, end)."""
        after = int(self.ends.searchsorted(start, "right")) + tokens
        return int(self.starts[after]) if after < len(self) else len(self.text)

    def reach_back(self, end: int, tokens: int) -> int:
        """The furthest start such that at most `tokens` tokens touch [start, end)."""
        before = int(self.starts.searchsorted(end, "left")) - tokens
        return int(self.ends[before - 1]) if before > 0 else 0

    def count(self, start: int, end: int) -> int:
        """The tokens that text[start:end] has when it is encoded by itself.

        Between the first seam and the last one they are those of the whole text. Only the words outside of the two,
        which may have lost a neighbour, are encoded again.
        """
        first = _FIRST_SEAM.search(self.text, start, end + 1)
        if first is None:
            return _count(self.text[start:end])
        last = _LAST_SEAM.match(self.text, first.start(), end + 1)
        assert last is not None  # the first, if there is no other
        p, q = first.start(), last.end()
        inner = int(self.starts.searchsorted(q, "left") - self.starts.searchsorted(p, "left"))
        return _count(self.text[start:p]) + inner + _count(self.text[q:end])
