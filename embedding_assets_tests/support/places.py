"""Places as tests need them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.places import Item, PassedOver, Place, Unknown


@dataclass(frozen=True)
class Settled:
    """A place whose items changed long ago. A test's own files are a moment old, and nobody can date them back."""

    place: Place

    def list_items(self, source: str) -> Iterator[Item | Unknown | PassedOver | RejectedDocument]:
        for item in self.place.list_items(source):
            yield replace(item, settled=True) if isinstance(item, Item) else item
