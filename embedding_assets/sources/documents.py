"""A document, and what is said of an input that could not become one. Every reader's output passes `validate`."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from embedding_assets.snapshots.rejections import ERROR_CLASSES, DocumentErrorClass, RejectedDocument
from embedding_assets.sources.jsonb import NotJsonbError, canonical_json

MAX_TEXT_BYTES: Final = 32 << 20
"""One document's text, one input file, one line: what a reader holds in memory at once."""

MAX_ID_BYTES: Final = 1024
"""PostgreSQL refuses B-tree entries over 2,704 bytes, and the primary key holds more than the document's id."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a source: the unit of change."""

    source: str
    document_id: str
    text: str
    """Unicode NFC, lines ended by `\\n`, no byte order mark, no NUL; not empty."""
    metadata_json: str
    """A JSON object, letter for letter as PostgreSQL prints it as jsonb."""
    content_hash: bytes
    """32 bytes: SHA-256 over the text's length in UTF-8 bytes (8 bytes, big-endian), the text, and the metadata."""
    position: int | None = field(default=None, compare=False)
    """The line it stands on in its input file, from 1; None where it is the whole file."""
    line_hash: bytes | None = field(default=None, compare=False)
    """16 bytes, of that line as it is in the file: the next look knows it by them."""


def reject(
    error_class: DocumentErrorClass,
    reason: str,
    *,
    source: str,
    item: str,
    position: int | None = None,
    document_id: str | None = None,
) -> RejectedDocument:
    """A rejection with the cure of its class."""
    return RejectedDocument(
        source=source,
        item=item,
        position=position,
        document_id=document_id,
        error_class=error_class,
        reason=reason,
        cure=ERROR_CLASSES[error_class].cure,
    )


def unreadable(error: Exception, *, source: str, item: str, position: int | None = None) -> RejectedDocument:
    """The rejection of an item, or of its rest from a line on, that could not be read."""
    return reject("unreadable", why(error), source=source, item=item, position=position)


def why(error: Exception) -> str:
    """What an error says, without the path that an OSError repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def validate(
    *,
    source: str,
    item: str,
    position: int | None,
    document_id: str,
    text: str,
    metadata: Mapping[str, object],
    line_hash: bytes | None = None,
) -> Document | RejectedDocument:
    """The document, with its text normalised and hashed; or why it cannot be one."""
    wrong_id = id_problem(document_id)
    if wrong_id is not None:
        return reject(*wrong_id, source=source, item=item, position=position)

    def refused(error_class: DocumentErrorClass, reason: str) -> RejectedDocument:
        return reject(error_class, reason, source=source, item=item, position=position, document_id=document_id)

    if "\0" in text:
        return refused("nul-byte", f"the text has a NUL at character {text.index(chr(0))}")
    text = normalised(text)
    if not text.strip():
        return refused("empty-text", "the text is empty, or blank")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        return refused("lone-surrogate", f"the text has a lone surrogate at character {error.start}")
    if len(encoded) > MAX_TEXT_BYTES:
        return refused("too-large", f"the text has {len(encoded):,} bytes, {MAX_TEXT_BYTES:,} are allowed")
    try:
        metadata_json = canonical_json(metadata)
    except NotJsonbError as error:
        return refused("bad-metadata", f"the metadata cannot be stored as jsonb: {error}")
    content_hash = hashlib.sha256(len(encoded).to_bytes(8, "big"))
    content_hash.update(encoded)
    content_hash.update(metadata_json.encode())
    return Document(source, document_id, text, metadata_json, content_hash.digest(), position, line_hash)


def id_problem(document_id: str) -> tuple[DocumentErrorClass, str] | None:
    """What is wrong with a document's id, or None."""
    if not document_id.strip():
        return "missing-id", "the id is empty, or blank"
    if any(unicodedata.category(character) == "Cc" for character in document_id):
        return "bad-id", "the id has a control character"
    try:
        size = len(document_id.encode())
    except UnicodeEncodeError:
        return "bad-id", "the id is not Unicode text"
    if size > MAX_ID_BYTES:
        return "bad-id", f"the id has {size:,} bytes, {MAX_ID_BYTES:,} are allowed"
    return None


def shown(name: str) -> str:
    """A name that may be anything, made fit for logs and JSON: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def normalised(text: str) -> str:
    """The text without a byte order mark, with `\\n` line ends, in Unicode NFC.

    A text that piles more than 256 combining marks on one character is left in the form it came in.
    """
    text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # unicodedata sorts a run of marks by insertion: 100,000 of them took 5 s, a 32 MiB file of them would take days.
    # Unicode itself bounds sane runs at 30 (UAX #15, Stream-Safe Text Format).
    if unicodedata.is_normalized("NFC", text) or _piles_marks(text):
        return text
    return unicodedata.normalize("NFC", text)


_MAX_MARKS: Final = 256
_MAYBE_PILE = re.compile(f"[^\\0-\u02ff]{{{_MAX_MARKS + 1},}}")  # all combining marks are at U+0300 and above


def _piles_marks(text: str) -> bool:
    return any(
        combining and sum(1 for _ in run) > _MAX_MARKS
        for candidate in _MAYBE_PILE.finditer(text)
        for combining, run in groupby(candidate[0], key=lambda c: unicodedata.combining(c) != 0)
    )
