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


@dataclass(frozen=True, slots=True)
class Unknown:
    """What is there, or may be, and cannot be looked at now: what was known of it stays as it is."""

    name: str
    """As an item's. That of a folder ends in `/`, and stands for everything below it."""
    rejected: RejectedDocument | None = None
    """What people are told; None where it may well be none of ours."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file that is there and is not asked for. Only people are told of it."""

    name: str
    """As an item's; it may be anything."""


class Place(Protocol):
    """Where the items of one source lie."""

    def list_items(self, source: str) -> Iterator[Item | Unknown | PassedOver | RejectedDocument]:
        """The items, in strictly ascending order of name, what cannot be one, and what may be one and cannot be seen.

        `source` is its name for people. What is passed over may be told of.

        Raises:
            PermanentError: the place is not there, or holds nothing of ours: that is not "everything was deleted".
        """
