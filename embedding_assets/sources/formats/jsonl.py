"""JSON lines, one document a line; `.gz` items are unpacked on the way."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, BinaryIO, Final, NoReturn

from embedding_assets.snapshots.rejections import DocumentErrorClass, RejectedDocument
from embedding_assets.sources.documents import MAX_TEXT_BYTES, Document, reject, unreadable, validate
from embedding_assets.sources.jsonb import MAX_DIGITS

MAX_LINE_BYTES: Final = MAX_TEXT_BYTES

MAX_NESTING: Final = 200
"""Python's own limit depends on how deep the caller already is; this one is the same for every run."""


@dataclass(frozen=True)
class Jsonl:
    """Documents from the named fields of each line's object; a metadata field that a line lacks is left out."""

    id: str
    text: str
    metadata: tuple[str, ...]

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""
        return f"jsonl-1 {json.dumps([self.id, self.text, sorted(self.metadata)])}"

    def documents(
        self, source: str, item: str, size: int | None, stream: BinaryIO
    ) -> Iterator[Document | RejectedDocument]:
        """Each line's document, or why there is none; blank lines are passed over. Holds one line at a time."""
        position = 0
        try:
            for position, line in enumerate(_lines(_unpacked(item, stream)), start=1):
                if line is None:
                    reason = f"the line has over {MAX_LINE_BYTES:,} bytes"
                    yield reject("too-large", reason, source=source, item=item, position=position)
                    continue
                read = self._document(source, item, position, line)
                if read is not None:
                    yield read
        except (OSError, EOFError, zlib.error) as error:
            # The lines before stand. Where bytes were turned over, some may hold nonsense: gzip's checksum comes last.
            yield unreadable(error, source=source, item=item, position=position + 1)

    def _document(self, source: str, item: str, position: int, line: bytes) -> Document | RejectedDocument | None:
        def refused(error_class: DocumentErrorClass, reason: str, document_id: str | None = None) -> RejectedDocument:
            return reject(
                error_class,
                reason,
                source=source,
                item=item,
                position=position,
                document_id=document_id,
            )

        if position == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            return None
        try:
            record = _parsed(line.decode())
        except UnicodeDecodeError as error:
            return refused("undecodable", f"byte {error.start:,} of the line is not UTF-8")
        except _BrokenJsonError as error:
            return refused("broken-json", str(error))

        document_id = _id(record.get(self.id))
        if document_id is None:
            return refused("missing-id", f"the field {self.id} is missing, or neither a string nor an integer")
        text = record.get(self.text)
        if not isinstance(text, str):
            reason = f"the field {self.text} is missing, or not a string"
            return refused("missing-text", reason, document_id)
        return validate(
            source=source,
            item=item,
            position=position,
            document_id=document_id,
            text=text,
            metadata={name: record[name] for name in self.metadata if name in record},
        )


def _unpacked(item: str, stream: BinaryIO) -> BinaryIO:
    return gzip.GzipFile(fileobj=stream) if item.endswith(".gz") else stream  # type: ignore[return-value]


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Each line with its end; None for one that is too long, which is passed over without being held."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield None


class _BrokenJsonError(ValueError):
    """The line is not one JSON object; the message says why, without its content."""


def _parsed(line: str) -> dict[str, Any]:
    if _nesting(line) > MAX_NESTING:
        raise _BrokenJsonError(f"nested deeper than {MAX_NESTING} levels")
    try:
        record = json.loads(
            line,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_decimal,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        raise _BrokenJsonError(f"{error.msg}, at character {error.pos:,} of the line") from None
    if not isinstance(record, dict):
        raise _BrokenJsonError("not an object")
    return record


_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def _nesting(line: str) -> int:
    """How deep the line's arrays and objects are nested."""
    if line.count("[") + line.count("{") <= MAX_NESTING:
        return 0  # shallow, whatever stands in its strings
    deepest = depth = 0
    for token in _TOKEN.finditer(line):
        bracket = line[token.start()]
        if bracket in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in "]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _BrokenJsonError("an object has a key twice")
    return found


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= MAX_DIGITS else _decimal(digits)


def _decimal(digits: str) -> Decimal:
    # Digit for digit, as PostgreSQL's numeric keeps them.
    try:
        return Decimal(digits)
    except InvalidOperation:
        return Decimal("Infinity")  # an exponent beyond all reason; refused where it is used


def _constant(name: str) -> NoReturn:
    raise _BrokenJsonError(f"{name} is not JSON")


def _id(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None
