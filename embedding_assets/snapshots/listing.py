"""What a store lists of a snapshot. Apart from replication: whoever only looks imports no Arrow with it."""

from pathlib import PurePosixPath

from embedding_assets.snapshots.snapshot import Layer, Snapshot
from embedding_assets.snapshots.stores import Store


def unlisted(store: Store, snapshot: Snapshot) -> list[Layer]:
    """The layers of a snapshot that its store does not list with their sizes. Lists, and reads nothing."""
    folders = {PurePosixPath(layer.path(snapshot.source)).parent.as_posix() for layer in snapshot.layers}
    sizes = {entry.path: entry.bytes for folder in sorted(folders) for entry in store.entries(folder)}
    return [layer for layer in snapshot.layers if sizes.get(layer.path(snapshot.source)) != layer.bytes]
