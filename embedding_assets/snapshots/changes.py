"""What a commit changed, row by row, told from the parts that differ between two snapshots and from no others."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

from embedding_assets.snapshots.layers import Rows, read_layer
from embedding_assets.snapshots.parts import merged
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store


class Changes(NamedTuple):
    """How many rows of which kind there are in a snapshot and the one before it, by their identity."""

    new: int
    """Only the new snapshot has them."""
    changed: int
    """Both have them, with other content."""
    reused: int
    """Both have them, and they are the same."""
    removed: int
    """Only the old snapshot has them."""


def count_changes(
    store: Store, asset: str, identity: str, content: str, previous: Snapshot | None, current: Snapshot
) -> Changes:
    """Compare two snapshots of an asset by its `identity` and `content` columns; memory is that of a shard or two."""
    new = changed = removed = 0
    for old_parts, new_parts in _differing(asset, previous, current):
        read = cache(partial(read_layer, store, current.source, columns=(identity, content)))  # most are of both
        old: dict[object, object] = {}
        for part in old_parts:
            old.update(_rows(read, part, identity, content))
        for part in new_parts:
            for key, value in _rows(read, part, identity, content):
                before = old.pop(key, None)
                new += before is None
                changed += before is not None and before != value
        removed += len(old)
    total = sum(part.rows for part in current.parts_of(asset))
    return Changes(new, changed, total - new - changed, removed)


def covering(parts: tuple[Part, ...], parts_bits: int, shard: int, bits: int) -> list[Part]:
    """The parts, of a snapshot with `parts_bits`, that hold the documents of this shard out of 2**bits."""
    coarse = min(parts_bits, bits)
    return [part for part in parts if part.shard >> (parts_bits - coarse) == shard >> (bits - coarse)]


def _differing(asset: str, previous: Snapshot | None, current: Snapshot) -> Iterator[tuple[list[Part], list[Part]]]:
    """The parts that only one of the snapshots names, in groups that are about the same documents."""
    old_parts = previous.parts_of(asset) if previous else ()
    old_bits = previous.shard_bits if previous else current.shard_bits
    coarse = min(old_bits, current.shard_bits)
    old_keys = {part.key for part in old_parts}
    new_keys = {part.key for part in current.parts_of(asset)}
    groups: dict[int, tuple[list[Part], list[Part]]] = {}
    for part in old_parts:
        if part.key not in new_keys:
            groups.setdefault(part.shard >> (old_bits - coarse), ([], []))[0].append(part)
    for part in current.parts_of(asset):
        if part.key not in old_keys:
            groups.setdefault(part.shard >> (current.shard_bits - coarse), ([], []))[1].append(part)
    yield from groups.values()


def _rows(read: Callable[[Layer], Rows], part: Part, identity: str, content: str) -> Iterator[tuple[object, object]]:
    table = merged([read(layer) for layer in part.layers]).table
    return zip(table.column(identity).to_pylist(), table.column(content).to_pylist(), strict=True)
