"""What a store lists of a snapshot. Apart from replication: whoever only looks imports no Arrow with it."""

from pathlib import PurePosixPath

from embedding_assets.snapshots.snapshot import Part, Snapshot
from embedding_assets.snapshots.stores import Store


def unlisted(store: Store, snapshot: Snapshot) -> list[Part]:
    """The parts of a snapshot that its store does not list with their sizes. Lists, and reads nothing."""
    folders = {PurePosixPath(part.path(snapshot.source)).parent.as_posix() for part in snapshot.parts}
    sizes = {found.path: found.bytes for folder in sorted(folders) for found in store.entries(folder)}
    return [part for part in snapshot.parts if sizes.get(part.path(snapshot.source)) != part.bytes]
