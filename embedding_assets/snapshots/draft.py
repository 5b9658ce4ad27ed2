"""A draft: what a stage prepares, what the checks judge, and what the log appends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedding_assets.snapshots.keys import Root
from embedding_assets.snapshots.rejections import Rejection
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot, root_of_parts, sorted_parts


@dataclass(frozen=True)
class Draft:
    """A snapshot that a stage has prepared and nobody has committed: no log names it, so it has no number yet.

    The parts lie in the store already. A draft that is refused, or lost in a crash, costs nothing: the next run finds
    them by name.
    """

    asset: str
    source: str
    version: str
    shard_bits: int
    parts: tuple[Part, ...]
    """By asset, then shard, as in the snapshot."""
    counts: dict[str, int]
    upstream: dict[str, str]
    """Root of each snapshot that it was derived from, by asset."""
    after: Snapshot | None
    """The log's head that it was prepared on; None before the first commit."""
    rejected: tuple[Rejection, ...] = ()
    model: dict[str, Any] | None = field(default=None)

    @property
    def root(self) -> Root:
        return root_of_parts(self.parts)

    @property
    def made(self) -> list[Layer]:
        """The layers that the snapshot before has not: those that nobody has judged yet."""
        known = {layer.key for layer in self.after.layers} if self.after else set()
        return [layer for part in self.parts for layer in part.layers if layer.key not in known]

    def parts_of(self, asset: str) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.asset == asset)

    def numbered(self, number: int, created_at: str) -> Snapshot:
        """The log's entry of this number."""
        return Snapshot(
            asset=self.asset,
            source=self.source,
            number=number,
            root=self.root,
            version=self.version,
            shard_bits=self.shard_bits,
            parts=self.parts,
            counts=self.counts,
            rejected=self.rejected,
            upstream=self.upstream,
            model=self.model,
            created_at=created_at,
        )


def prepare(
    *,
    asset: str,
    source: str,
    version: str,
    shard_bits: int,
    parts: Sequence[Part],
    counts: Mapping[str, int],
    upstream: Sequence[Snapshot],
    after: Snapshot | None,
    rejected: Sequence[Rejection] = (),
    model: dict[str, Any] | None = None,
) -> Draft:
    """The draft of these parts, in their order."""
    return Draft(
        asset,
        source,
        version,
        shard_bits,
        sorted_parts(list(parts)),
        dict(counts),
        {snapshot.asset: snapshot.root for snapshot in upstream},
        after,
        tuple(rejected),
        model,
    )
