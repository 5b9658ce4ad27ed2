"""JSON lines, one document a line, from one file or many; `.gz` files are unpacked on the way."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from glob import escape, has_magic
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from embedding_assets.errors import PermanentError
from embedding_assets.sources.documents import (
    MAX_TEXT_BYTES,
    Document,
    ErrorClass,
    Rejected,
    reject,
    validate,
)
from embedding_assets.sources.jsonb import MAX_DIGITS
from embedding_assets.sources.walk import Item, open_item, unreadable, walk

MAX_LINE_BYTES: Final = MAX_TEXT_BYTES

MAX_NESTING: Final = 200
"""Python's own limit depends on how deep the caller already is; this one is the same for every run."""


@dataclass(frozen=True)
class JsonlReader:
    """Documents from the named fields of each line's object; a metadata field that a line lacks is left out."""

    source: str
    path: Path
    """A file, or a glob pattern over files."""
    id: str
    text: str
    metadata: tuple[str, ...]

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""
        return f"jsonl-1 {json.dumps([self.id, self.text, sorted(self.metadata)])}"

    def list_items(self) -> Iterator[Item | Rejected]:
        """As `walk`, from the part of the path that has no wildcards; a path without any is that one file.

        Raises:
            PermanentError: there is no such file, or the pattern matches none.
        """
        root, pattern = _split(self.path)
        if not has_magic(pattern):
            return iter([self._single()])
        return walk(self.source, root, [pattern])

    def _single(self) -> Item:
        try:
            # The settings name this very file, so a link is followed wherever it leads.
            real = self.path.resolve(strict=True)
            found = real.stat()
        except OSError as error:
            raise PermanentError(
                f"source {self.source}: {self.path} cannot be read: {error.strerror}. "
                "Cure: correct the source's path; to remove a source, remove it from the settings."
            ) from error
        if real.is_dir():
            raise PermanentError(
                f"source {self.source}: {self.path} is a folder. Cure: name a file, or {self.path}/*.jsonl."
            )
        return Item(self.path.name, found.st_size, found.st_mtime_ns, real)

    def read_item(self, item: Item) -> Iterator[Document | Rejected]:
        """Each line's document, or why there is none; blank lines are passed over. Holds one line at a time."""
        position = 0
        try:
            with open_item(item) as stream:
                for position, line in enumerate(_lines(_unpacked(item, stream)), start=1):
                    if line is None:
                        reason = f"the line has over {MAX_LINE_BYTES:,} bytes"
                        yield reject("too_large", reason, source=self.source, item=item.name, position=position)
                        continue
                    read = self._document(item, position, line)
                    if read is not None:
                        yield read
        except (OSError, EOFError, zlib.error) as error:
            # The lines before stand. Where bytes were turned over, some may hold nonsense: gzip's checksum comes last.
            yield unreadable(error, source=self.source, item=item, position=position + 1)

    def _document(self, item: Item, position: int, line: bytes) -> Document | Rejected | None:
        def refused(error_class: ErrorClass, reason: str, document_id: str | None = None) -> Rejected:
            return reject(
                error_class,
                reason,
                source=self.source,
                item=item.name,
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
            return refused("broken_json", str(error))

        document_id = _id(record.get(self.id))
        if document_id is None:
            return refused("missing_id", f"the field {self.id} is missing, or neither a string nor an integer")
        text = record.get(self.text)
        if not isinstance(text, str):
            reason = f"the field {self.text} is missing, or not a string"
            return refused("missing_text", reason, document_id)
        return validate(
            source=self.source,
            item=item.name,
            position=position,
            document_id=document_id,
            text=text,
            metadata={name: record[name] for name in self.metadata if name in record},
        )


def _split(path: Path) -> tuple[Path, str]:
    """The folder to walk and the pattern below it: a folder that exists is never taken for a pattern."""
    root = Path(path.anchor)
    parts = path.parts[1:]
    for done, part in enumerate(parts):
        if has_magic(part) and not (root / part).exists():
            return root, "/".join(parts[done:])
        root /= part
    return path.parent, escape(path.name)


def _unpacked(item: Item, stream: BinaryIO) -> BinaryIO:
    return gzip.GzipFile(fileobj=stream) if item.name.endswith(".gz") else stream  # type: ignore[return-value]


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
