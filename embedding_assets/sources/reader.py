"""The one way to read a source, whatever its kind."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from embedding_assets.sources.documents import Document, Rejected
from embedding_assets.sources.files import FilesReader
from embedding_assets.sources.jsonl import JsonlReader
from embedding_assets.sources.walk import Item


class Reader(Protocol):
    """Reads one source."""

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""

    def list_items(self) -> Iterator[Item | Rejected]:
        """The source's input files in ascending order of name, and what cannot be one.

        Raises:
            PermanentError: the source's path is not there, or matches nothing: that is not "everything was deleted".
        """

    def read_item(self, item: Item) -> Iterator[Document | Rejected]:
        """The item's documents in the order they stand in it, and what cannot be one. Streamed: one is held at a time.

        Ids that occur twice, in one item or in several, are not looked for.
        """


class Files(Protocol):
    """What the settings say of a source of kind `files`."""

    @property
    def kind(self) -> Literal["files"]: ...
    @property
    def path(self) -> Path: ...
    @property
    def include(self) -> Sequence[str]: ...


class Jsonl(Protocol):
    """What the settings say of a source of kind `jsonl`."""

    @property
    def kind(self) -> Literal["jsonl"]: ...
    @property
    def path(self) -> Path: ...
    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def metadata(self) -> Sequence[str]: ...


def open_reader(name: str, source: Files | Jsonl) -> Reader:
    """The reader of the source called `name`. Nothing is opened yet."""
    if source.kind == "files":
        return FilesReader(name, source.path, tuple(source.include))
    return JsonlReader(name, source.path, source.id, source.text, tuple(source.metadata))
