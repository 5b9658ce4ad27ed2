"""JSON text exactly as PostgreSQL prints `jsonb::text`, so that fingerprints can be computed on both sides.

The rules are those of PostgreSQL's `jsonb.c`, `jsonb_util.c` (order of keys), `json.c` (escapes) and `numeric.c`; the
tests compare with a real server.
"""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

MAX_BYTES: Final = 64 << 10
"""A document's metadata is stored with each of its chunks, so it must stay small beside a chunk's ~1 kB of text."""

MAX_DEPTH: Final = 64

MAX_DIGITS: Final = 640
"""On either side of the decimal point. Every float fits (the longest has 324), and Python turns integers of this size
into text whatever `PYTHONINTMAXSTRDIGITS` says; PostgreSQL's own limits are 131,072 and 16,383."""

_LARGEST_INTEGER: Final = 10**MAX_DIGITS - 1


class NotJsonbError(ValueError):
    """The value cannot be stored as jsonb, or only absurdly; the message says why, without the value."""


def canonical_json(value: Mapping[str, object]) -> str:
    """The JSON object as `jsonb::text`: keys by (UTF-8 length, bytes), `": "` and `", "`, numbers without exponents.

    Raises:
        NotJsonbError: NaN or an infinity, U+0000, a lone surrogate, a key that is no string, a type that JSON lacks,
            more than 64 levels, 640 digits or 64 KiB.
    """
    pieces = []
    size = 0
    for piece in _pieces(value, depth=1):
        # Counted on the way: a few bytes of input such as 1e600 can print as hundreds.
        size += len(piece.encode())
        if size > MAX_BYTES:
            raise NotJsonbError(f"larger than {MAX_BYTES:,} bytes")
        pieces.append(piece)
    return "".join(pieces)


def _pieces(value: object, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise NotJsonbError(f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case None:
            yield "null"
        case bool():
            yield "true" if value else "false"
        case str():
            yield _string(value)
        case int() | float() | Decimal():
            yield _number(value)
        case Mapping():
            yield "{"
            for place, key in enumerate(_in_jsonb_order(value)):
                yield f"{', ' if place else ''}{_string(key)}: "
                yield from _pieces(value[key], depth + 1)
            yield "}"
        case list() | tuple():
            yield "["
            for place, element in enumerate(value):
                if place:
                    yield ", "
                yield from _pieces(element, depth + 1)
            yield "]"
        case _:
            raise NotJsonbError(f"a {type(value).__name__} is not a JSON value")


def _in_jsonb_order(keys: Mapping[object, object]) -> list[str]:
    names = []
    for key in keys:
        if not isinstance(key, str):
            raise NotJsonbError("a key that is not a string")
        names.append(key)
    # jsonb_util.c, lengthCompareJsonbString: the length in bytes first. Code point order is UTF-8 byte order; the
    # replacement only keeps the sort from failing on a lone surrogate, which _string then refuses.
    return sorted(names, key=lambda name: (len(name.encode("utf-8", "replace")), name))


def _string(text: str) -> str:
    if "\0" in text:
        raise NotJsonbError("the character U+0000, which PostgreSQL cannot store")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotJsonbError("a lone surrogate, which is not Unicode text") from None
    # The standard library escapes what PostgreSQL's escape_json does, in the same way; DEL stays raw in both.
    return json.dumps(text, ensure_ascii=False)


def _number(value: float | Decimal) -> str:
    if isinstance(value, int):
        if abs(value) > _LARGEST_INTEGER:
            raise NotJsonbError(f"a number of more than {MAX_DIGITS} digits")
        return str(value)
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    exponent = exact.as_tuple().exponent
    if not isinstance(exponent, int):
        raise NotJsonbError("a number that is not finite")
    if (exact and exact.adjusted() >= MAX_DIGITS) or -exponent > MAX_DIGITS:
        raise NotJsonbError(f"a number of more than {MAX_DIGITS} digits")
    if not exact:
        return format(Decimal(0).scaleb(min(exponent, 0)), "f")  # numeric has no negative zero: -0.0 is 0.0
    return format(exact, "f")
