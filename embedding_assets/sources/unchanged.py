"""Whether a source is what its snapshot says, by the names and marks of its items: nothing is opened or written."""

from pathlib import Path

from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.sources.catalog import open_catalog
from embedding_assets.sources.parts import VERSION
from embedding_assets.sources.places import Item, PassedOver
from embedding_assets.sources.reader import Reader
from embedding_assets.sources.stage import Looked, Passed


def look(reader: Reader, catalog: Path, documents: Snapshot) -> Looked | None:
    """What a look at the source finds; None where the stage has something to do, or may have.

    A source with rejections always may: somebody may have asked for one to be read again.

    Raises:
        PermanentError: as the place's `list_items`.
        TransientError: as `open_catalog`.
    """
    if documents.version != VERSION or documents.rejected:
        return None
    passed = Passed()
    listed = 0
    with open_catalog(catalog) as known:
        if not known.holds_what(reader.version, documents.root):
            return None
        for item in reader.list_items():
            if isinstance(item, PassedOver):
                passed.note(item)
                continue
            if not isinstance(item, Item) or not known.unchanged(item.name, item.mark):
                return None
            listed += 1
        if listed != known.number_of_items():
            return None
    return Looked(listed, 0, 0, passed.number, tuple(passed.first))
