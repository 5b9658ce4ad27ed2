"""Reading a source: the items of its place, as its format understands them."""

from collections.abc import Iterator
from dataclasses import dataclass

from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.documents import Document, unreadable
from embedding_assets.sources.formats import Format, Kept, nothing_kept
from embedding_assets.sources.formats.jsonl import Jsonl
from embedding_assets.sources.formats.text import Text
from embedding_assets.sources.options import FilesOptions, JsonlOptions
from embedding_assets.sources.places import Item, PassedOver, Place, Unknown
from embedding_assets.sources.places.folder import Folder
from embedding_assets.sources.places.pattern import Pattern


@dataclass(frozen=True)
class Reader:
    """Reads one source."""

    source: str
    place: Place
    format: Format

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same items."""
        return self.format.version

    def list_items(self) -> Iterator[Item | Unknown | PassedOver | RejectedDocument]:
        """As the place's `list_items`."""
        return self.place.list_items(self.source)

    def read_item(self, item: Item, kept: Kept = nothing_kept) -> Iterator[Document | RejectedDocument]:
        """As the format's `documents`; an item that cannot be read is rejected."""
        try:
            with item.open() as stream:
                yield from self.format.documents(self.source, item.name, item.size, stream, kept)
        except OSError as error:
            yield unreadable(error, source=self.source, item=item.name)

    def read_anew(self, item: Item, kept: Kept) -> Iterator[Document | RejectedDocument]:
        """The same, whatever may be kept."""
        return self.read_item(item, nothing_kept)


def open_reader(name: str, options: FilesOptions | JsonlOptions) -> Reader:
    """The reader of the source called `name`. Nothing is opened yet."""
    if isinstance(options, FilesOptions):
        return Reader(name, Folder(options.path, options.include), Text())
    return Reader(name, Pattern(options.path), Jsonl(options.id, options.text, options.metadata))
