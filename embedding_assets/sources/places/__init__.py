"""Where a source's items lie: which there are, what a change of one looks like, and how one is opened.

Here belongs what knows of folders and files. What their bytes mean belongs to `formats`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from embedding_assets.snapshots.rejections import RejectedDocument


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a source, as it was listed."""

    name: str
    """Below the source's path, `/` between folders, Unicode NFC."""
    mark: str
    """What a change looks like without opening the item: while two looks give the same mark, its bytes are the same."""
    settled: bool
    """False where it changed so lately that it may change again and keep its mark."""
    size: int | None
    """In bytes, where the place knows it beforehand."""
    open: Callable[[], BinaryIO]
    """Its bytes. Raises OSError: it is gone, may not be read, or is something else by now."""


class Place(Protocol):
    """Where the items of one source lie."""

    def list_items(self, source: str) -> Iterator[Item | RejectedDocument]:
        """The items in strictly ascending order of name, and what cannot be one. `source` is its name for people.

        Raises:
            PermanentError: the place is not there, or holds nothing of ours: that is not "everything was deleted".
        """
