"""JSON lines, one document a line; `.gz` items are unpacked on the way."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, BinaryIO, ClassVar, Final, NoReturn

from embedding_assets.snapshots.rejections import DocumentErrorClass, RejectedDocument
from embedding_assets.sources.documents import MAX_TEXT_BYTES, Document, reject, unreadable, validate
from embedding_assets.sources.formats import Kept, nothing_kept
from embedding_assets.sources.formats.lines import MAX_UNPACKED, UnpacksTooFarError, UnreadableError, lines
from embedding_assets.sources.jsonb import MAX_DIGITS

MAX_LINE_BYTES: Final = MAX_TEXT_BYTES

MAX_NESTING: Final = 200
"""Python's own limit depends on how deep the caller already is; this one is the same for every run."""

MAX_TOKENS: Final = 1_000_000
"""Strings, brackets and commas in a line: as many objects take up to 0.1 GB."""


@dataclass(frozen=True)
class Jsonl:
    """Documents from the named fields of each line's object; a metadata field that a line lacks is left out."""

    id: str
    text: str
    metadata: tuple[str, ...]

    is_named_by_item: ClassVar[bool] = False

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""
        return f"jsonl-2 {json.dumps([self.id, self.text, sorted(self.metadata)])}"

    def documents(
        self, source: str, item: str, size: int | None, stream: BinaryIO, kept: Kept = nothing_kept
    ) -> Iterator[Document | RejectedDocument]:
        """Each line's document, or why there is none; blank lines are passed over. Holds one line at a time.

        A line that was rejected is read again, for its reason has its place.
        """
        position = 0
        try:
            for position, line in lines(stream, packed=item.lower().endswith(".gz"), longest=MAX_LINE_BYTES):
                if line is None:
                    reason = f"the line has over {MAX_LINE_BYTES:,} bytes"
                    yield reject("too-large", reason, source=source, item=item, position=position)
                    continue
                # SHA-256 is the machine's own instruction; half of it tells lines apart as well.
                line_hash = hashlib.sha256(line).digest()[:16]
                if kept(line_hash, position):
                    continue
                read = self._document(source, item, position, line, line_hash)
                if read is not None:
                    yield read
        except UnpacksTooFarError:
            reason = f"from here on the file unpacks to over {MAX_UNPACKED} times its size"
            yield reject("unpacks-too-far", reason, source=source, item=item, position=position + 1)
        except (OSError, UnreadableError) as error:
            # The lines before stand. Where bytes were turned over, some may hold nonsense: gzip's checksum comes last.
            yield unreadable(error, source=source, item=item, position=position + 1)

    def _document(
        self, source: str, item: str, position: int, line: bytes, line_hash: bytes
    ) -> Document | RejectedDocument | None:
        def refused(error_class: DocumentErrorClass, reason: str, document_id: str | None = None) -> RejectedDocument:
            return reject(
                error_class,
                reason,
                source=source,
                item=item,
                position=position,
                document_id=document_id,
            )

        if not line.strip():
            return None
        try:
            record = _parsed(line.decode())
        except UnicodeDecodeError as error:
            return refused("undecodable", f"byte {error.start:,} of the line is not UTF-8")
        except _BrokenJsonError as error:
            return refused("broken-json", str(error))
        except _OversizeError as error:
            return refused("too-many-values", str(error))

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
            line_hash=line_hash,
        )


class _OversizeError(ValueError):
    """The line's JSON has more parts than are built in memory."""


class _BrokenJsonError(ValueError):
    """The line is not one JSON object; the message says why, without its content."""


def _parsed(line: str) -> dict[str, Any]:
    _bound(line)
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


_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]},]', re.DOTALL)


def _bound(line: str) -> None:
    """Refuse what would be large as objects, however it is written: 32 MB of `[],` took 1 GB."""
    if len(line) <= MAX_TOKENS and line.count("[") + line.count("{") <= MAX_NESTING:
        return  # whatever stands in its strings
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(line), start=1):
        mark = line[token.start()]
        if mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
        if depth > MAX_NESTING:
            raise _BrokenJsonError(f"nested deeper than {MAX_NESTING} levels")
        if count > MAX_TOKENS:
            raise _OversizeError(f"the line has over {MAX_TOKENS:,} strings, brackets and commas")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _BrokenJsonError("an object has a key twice")
    return members


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= MAX_DIGITS else _decimal(digits)


def _decimal(digits: str) -> Decimal:
    # Digit for digit, as PostgreSQL's numeric keeps them.
    if len(digits) > 2 * MAX_DIGITS + 32:
        return _OVERLONG
    try:
        return Decimal(digits)
    except InvalidOperation:
        return _OVERLONG  # an exponent beyond all reason


_OVERLONG: Final = Decimal(10) ** MAX_DIGITS
"""Stands for a number that is refused where it is used; no digit of it is kept, there may be 32 million."""


def _constant(name: str) -> NoReturn:
    raise _BrokenJsonError(f"{name} is not JSON")


def _id(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None
