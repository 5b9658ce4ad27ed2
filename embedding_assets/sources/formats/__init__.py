"""What an item's bytes mean: the documents in them.

Here belongs what knows of markup, encodings and fields. Where the bytes lie belongs to `places`.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.documents import Document

Kept = Callable[[bytes, int], bool]
"""Told the hash and the number of each line in turn, says whether its document is kept from the last look."""


def nothing_kept(line_hash: bytes, line: int) -> bool:
    """Every line is read."""
    return False


class Format(Protocol):
    """How the items of one source are read."""

    @property
    def is_named_by_item(self) -> bool:
        """Whether an item's one document has the item's name as its id."""

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""

    def documents(
        self, source: str, item: str, size: int | None, stream: BinaryIO, kept: Kept = nothing_kept
    ) -> Iterator[Document | RejectedDocument]:
        """The documents of the item called `item`, in the order they stand in it, and what cannot be one.

        The document of a line that is told to be `kept` does not come. `size` is that of the stream in bytes as it was
        listed, where it is known; it may have another by now. Streamed: one document is held at a time. Ids that occur
        twice are not looked for.

        Raises:
            OSError: the bytes cannot be read.
        """
