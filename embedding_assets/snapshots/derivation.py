"""What a stage has to make anew: of each part the rows that changed, less what its last snapshot or the store holds."""

from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from embedding_assets.snapshots.keys import PartKey
from embedding_assets.snapshots.layers import find_layer
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot, layer_path
from embedding_assets.snapshots.stores import Store


class Wanted(NamedTuple):
    """A layer that the next snapshot names, whether or not it exists yet. That of a base is the name of its part."""

    shard: int
    key: PartKey
    inputs: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()


class Shelf:
    """What there is of an asset of a source: the parts of its last snapshot, and layers that only the store has.

    Parts of the last snapshot are taken unread, if the store has as many bytes under the names of their layers. A layer
    that only the store has was left by a run that died before it committed: it is found by its name and proved, so the
    work is not done twice.
    """

    def __init__(self, store: Store, asset: str, source: str, previous: Snapshot | None) -> None:
        self._store, self._asset, self._source = store, asset, source
        self._bytes = {entry.path: entry.bytes for entry in store.entries(f"parts/{asset}/{source}")}
        parts = previous.parts if previous else ()
        self._parts = {part.key: part for part in parts}
        self.before = {part.shard: part for part in parts}
        """The last snapshot's parts, by shard."""

    def has(self, layer: Layer) -> bool:
        """Whether the store has as many bytes under a layer's name as were recorded."""
        return self._bytes.get(layer.path(self._source)) == layer.bytes

    def part(self, want: Wanted) -> Part | None:
        """The part of this name, if it need not be made."""
        part = self._parts.get(want.key)
        if part is not None and all(map(self.has, part.layers)):
            return part
        base = self.layer(want)
        return Part.alone(base) if base else None

    def layer(self, want: Wanted) -> Layer | None:
        """The layer of this name that a run left in the store."""
        if layer_path(self._asset, self._source, want.key) not in self._bytes:
            return None
        return find_layer(
            self._store,
            asset=self._asset,
            source=self._source,
            shard=want.shard,
            key=want.key,
            inputs=want.inputs,
            dead=want.dead,
        )


class Growth(BaseModel):
    """What a stage lays on what it has of a part: one layer, made of those of the part before it that are new.

    Where it has nothing that can be kept it makes a base, of all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: Part
    """The part of the stage before."""
    made_of: tuple[Layer, ...]
    """The layers of it that the new one is made of, the lowest first; none where nothing is new."""
    under: tuple[Layer, ...] = ()
    """What the stage keeps."""
    below: tuple[str, ...] = ()
    """The key of the stage's part with each of the layers kept."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Of the new layer."""
        return (self.below[-1], *(layer.key for layer in self.made_of)) if self.under else (self.of.key,)

    def part(self, key: PartKey, layer: Layer | None, rows: int, dead: tuple[str, ...] = ()) -> Part:
        """The stage's part of this key, with the new layer on what was kept."""
        layers = (*self.under, layer) if layer else self.under
        below = self.below if layer else self.below[:-1]
        return Part(
            asset=layers[0].asset,
            shard=self.of.shard,
            key=key,
            inputs=(self.of.key,),
            dead=dead,
            rows=rows,
            below=below,
            layers=layers,
        )


def growth(of: Part, before: Part | None, is_sound: Callable[[Layer], bool]) -> Growth:
    """What a stage has to do for a part of the stage before, given its own part of that shard.

    `is_sound` tells whether a layer of it can be kept.
    """
    if before is not None:
        covered, kept = 0, 0
        for layer, reach in zip(before.layers, reaches(of, before), strict=False):
            if not is_sound(layer):
                break
            covered, kept = reach, kept + 1
        if kept:
            return Growth(of=of, made_of=of.layers[covered:], under=before.layers[:kept], below=before.contents[:kept])
    return Growth(of=of, made_of=of.layers)


def reaches(of: Part, derived: Part) -> list[int]:
    """How many layers of a part each layer of what was derived from it reaches up to, as far as they are of it."""
    base, *deltas = derived.layers
    reached = [place for place, key in enumerate(of.contents, start=1) if base.inputs == (key,)][-1:]
    keys = [layer.key for layer in of.layers]
    for delta in deltas if reached else ():
        made_of = [*delta.inputs[1:]]
        reach = reached[-1] + len(made_of)
        if made_of != keys[reached[-1] : reach]:
            break
        reached.append(reach)
    return reached


def sources_of(layer: Layer, of: Part) -> tuple[Layer, ...]:
    """The layers of a part that the newest layer of what was derived from it was made of."""
    if layer.inputs == (of.key,):
        return of.layers
    return tuple(below for below in of.layers if below.key in layer.inputs)
