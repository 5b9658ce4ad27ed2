"""What an item's bytes mean: the documents in them.

Here belongs what knows of markup, encodings and fields. Where the bytes lie belongs to `places`.
"""

from collections.abc import Iterator
from typing import BinaryIO, Protocol

from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.documents import Document


class Format(Protocol):
    """How the items of one source are read."""

    @property
    def is_named_by_item(self) -> bool:
        """Whether an item's one document has the item's name as its id."""

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""

    def documents(
        self, source: str, item: str, size: int | None, stream: BinaryIO
    ) -> Iterator[Document | RejectedDocument]:
        """The documents of the item called `item`, in the order they stand in it, and what cannot be one.

        `size` is that of the stream in bytes as it was listed, where it is known; it may have another by now. Streamed:
        one document is held at a time. Ids that occur twice are not looked for.

        Raises:
            OSError: the bytes cannot be read.
        """
