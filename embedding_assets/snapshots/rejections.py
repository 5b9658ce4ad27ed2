"""What could not be processed, in one form: sources and the embeddings stage make it, snapshots hold it, the table of
dead letters stores it.

`ERROR_CLASSES` is the one list of what can be wrong. A reason tells of this case; the cure is that of its class.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from embedding_assets.snapshots.keys import Hex

RejectionKind = Literal["document", "text"]

DocumentErrorClass = Literal[
    "undecodable",
    "broken-json",
    "broken-html",
    "missing-id",
    "bad-id",
    "doubled-id",
    "missing-text",
    "empty-text",
    "nul-byte",
    "lone-surrogate",
    "too-large",
    "too-many-values",
    "unpacks-too-far",
    "unreadable",
    "outside-link",
    "bad-metadata",
]


class ErrorClass(NamedTuple):
    """What is known of a class of errors."""

    kind: RejectionKind
    cure: str
    """What a person does about it."""
    may_heal: bool = False
    """Whether a text may get a vector when it is sent again as it is, since the provider was at fault.

    False for documents: the next run reads again what could not be read, without being asked.
    """


_MEND: Final = "mend the text at its source, or leave it out"
_SHORTEN: Final = "lower max_tokens of the source's chunking"
_ASK: Final = "other texts are answered well: ask who runs the endpoint why not this one, or leave it out"
_REPLAY: Final = "replay it (embedding-assets dead-letters replay); if it fails again, mend the text at its source"

ERROR_CLASSES: Final[Mapping[str, ErrorClass]] = {
    "undecodable": ErrorClass("document", "save it as UTF-8, and let it declare no other charset"),
    "broken-json": ErrorClass("document", "write one JSON object a line, each key once"),
    "broken-html": ErrorClass("document", "simplify the page's markup, or supply its text"),
    "missing-id": ErrorClass("document", "give each document an id: a string, or an integer"),
    "bad-id": ErrorClass("document", "name it with at most 1,024 bytes of UTF-8, without control characters"),
    "doubled-id": ErrorClass("document", "give each document of the source an id of its own"),
    "missing-text": ErrorClass("document", "put the text, as a string, into the field that the source's settings name"),
    "empty-text": ErrorClass("document", "fill it, or remove the document from the source"),
    "nul-byte": ErrorClass(
        "document", "remove the NUL characters, which PostgreSQL cannot store; perhaps the file is not text"
    ),
    "lone-surrogate": ErrorClass(
        "document", "write characters beyond U+FFFF as both halves of their \\u escape, or as UTF-8"
    ),
    "too-large": ErrorClass("document", "split the document"),
    "too-many-values": ErrorClass("document", "leave out of the line what the source's settings do not name"),
    "unpacks-too-far": ErrorClass("document", "store the file unpacked"),
    "unreadable": ErrorClass(
        "document", "let this process read it, copy it anew if it is damaged, or remove it from the source"
    ),
    "outside-link": ErrorClass(
        "document", "copy the file into the source's folder, or add a source for the place it lies in"
    ),
    "bad-metadata": ErrorClass(
        "document", "correct the fields that the source's settings list under metadata, or list fewer"
    ),
    "refused": ErrorClass("text", _MEND),
    "refused-by-gateway": ErrorClass("text", "let the gateway's firewall pass this text, then replay it"),
    "too-long": ErrorClass("text", _SHORTEN),
    "request-too-large": ErrorClass("text", _SHORTEN),
    "bad-vector": ErrorClass("text", _MEND, may_heal=True),
    "credentials": ErrorClass("text", _ASK, may_heal=True),
    "not-found": ErrorClass("text", _ASK, may_heal=True),
    "unexpected-status": ErrorClass("text", _ASK, may_heal=True),
    "other-model": ErrorClass("text", _ASK, may_heal=True),
    "wrong-dimension": ErrorClass("text", _ASK, may_heal=True),
    "timeout": ErrorClass("text", "raise timeout_seconds of the model, then replay it", may_heal=True),
    "server-error": ErrorClass(
        "text", "see the provider's log; then replay it, or mend the text at its source", may_heal=True
    ),
    "conflict": ErrorClass("text", _REPLAY, may_heal=True),
    "too-early": ErrorClass("text", _REPLAY, may_heal=True),
    "connection-broken": ErrorClass("text", _REPLAY, may_heal=True),
    "not-json": ErrorClass("text", _REPLAY, may_heal=True),
    "bad-index": ErrorClass("text", _REPLAY, may_heal=True),
    "answer-too-big": ErrorClass("text", _REPLAY, may_heal=True),
}


def may_heal(error_class: str) -> bool:
    """Whether what was rejected for this may pass when it is tried again as it is; False where the class is unknown."""
    known = ERROR_CLASSES.get(error_class)
    return known is not None and known.may_heal


def _encodable(text: str) -> str:
    """The text as UTF-8 can hold it: names of files, and ids, may be what they are rejected for."""
    return text.encode("utf-8", "replace").decode()


_Text = Annotated[str, AfterValidator(_encodable)]


class _Rejection(BaseModel):
    """What both kinds say; `where` it lies and never what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: RejectionKind
    source: str
    error_class: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """One of `ERROR_CLASSES`, or a newer version's."""
    reason: _Text
    cure: str
    attempts: int = Field(default=1, ge=0)
    """How often it was tried; 0 where it was seen before that it would be in vain."""


class RejectedDocument(_Rejection):
    """An input of a source that is no document."""

    kind: Literal["document"] = "document"
    item: _Text
    """The input file (a folder that could not be entered ends in `/`), relative to the source's path."""
    position: int | None = None
    """The line, from 1; None where it is the whole item."""
    document_id: _Text | None = None
    """None where it has none that could be used."""

    @property
    def where(self) -> str:
        """`item`, or `item:line`."""
        return self.item if self.position is None else f"{self.item}:{self.position}"

    @property
    def identity(self) -> str:
        """64 hex digits that tell it from what else its stage rejects: of its place in the source."""
        place = json.dumps([self.item, self.position, self.document_id])
        return hashlib.sha256(place.encode()).hexdigest()


class RejectedText(_Rejection):
    """A text without a vector. It stands for every chunk with that text, and names the first."""

    kind: Literal["text"] = "text"
    text_hash: Hex
    document_id: str
    chunk_id: str
    part: str
    """Path of the part of chunks, in the primary region's store, in which the chunk was found."""

    @property
    def where(self) -> str:
        """`part#chunk`."""
        return f"{self.part}#{self.chunk_id}"

    @property
    def identity(self) -> str:
        """64 hex digits that tell it from what else its stage rejects: the hash of the text."""
        return self.text_hash


def of_format_1(entry: Any) -> Any:
    """An entry of format 1, which had no kind, as one of today; anything else as it is.

    Documents had `snake_case` classes. Texts had `payload` for part and chunk, and the cure at the end of the reason.
    """
    if not isinstance(entry, dict) or "kind" in entry:
        return entry
    old = dict(entry)
    if "text_hash" in old:
        kind, error_class = "text", _RENAMED_TEXTS.get(old["error_class"], old["error_class"])
        old["part"] = str(old.pop("payload", "")).partition("#")[0]
        old["reason"] = _without_cure(str(old["reason"]))
    else:
        kind, error_class = "document", str(old["error_class"]).replace("_", "-")
    known = ERROR_CLASSES.get(error_class)
    cure = known.cure if known else old.get("cure", _MEND)
    return {**old, "kind": kind, "error_class": error_class, "cure": cure}


_RENAMED_TEXTS: Final = {"too-large": "request-too-large"}

# As format 1 had them behind "; " or ": ", word for word.
_CURES_OF_FORMAT_1: Final = (
    "mend the text at its source, or leave it out",
    "let the gateway's firewall pass this text",
    "lower max_tokens of the source's chunking",
    "raise timeout_seconds, or lower max_items",
    "lower max_items",
    "see the provider's log",
    "other texts are answered well: ask who runs the endpoint why not this one, or leave it out",
)


def _without_cure(reason: str) -> str:
    for cure in _CURES_OF_FORMAT_1:
        for between in ("; ", ": "):
            if reason.endswith(between + cure):
                return reason.removesuffix(between + cure)
    return reason


Rejection = Annotated[
    Annotated[RejectedDocument | RejectedText, Field(discriminator="kind")], BeforeValidator(of_format_1)
]
"""A document or a text that could not be processed."""

_ANY: Final[TypeAdapter[Rejection]] = TypeAdapter(Rejection)


def parsed(entry: str) -> Rejection:
    """A rejection from its JSON, of this format or of format 1. Raises ValidationError."""
    return _ANY.validate_json(entry)


def said(rejected: Iterable[Rejection]) -> list[tuple[str, ...]]:
    """What these say of what, in any order: equal where a reader learns the same from both.

    Attempts are history. The cure is that of the class, in the words of the version that wrote it.
    """
    return sorted((one.kind, one.identity, one.error_class, one.reason) for one in rejected)
