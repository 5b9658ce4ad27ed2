"""What a stage has to make anew: the parts it wants by name, less those that its last snapshot or the store holds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embedding_assets.snapshots import log
from embedding_assets.snapshots.keys import PartKey
from embedding_assets.snapshots.parts import find_part
from embedding_assets.snapshots.snapshot import Part, Snapshot, root_of_parts, sorted_parts
from embedding_assets.snapshots.stores import Store


class Wanted(NamedTuple):
    """A part that the next snapshot names, whether or not it exists yet."""

    shard: int
    key: PartKey
    inputs: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()


Accept = Callable[[Snapshot, Sequence[Part]], None]
"""Looks at a snapshot that is about to be committed, and at those of its parts that the last one had not."""


@dataclass(frozen=True)
class Plan:
    """What a stage does next: `kept` parts are read by nobody, `missing` ones are made."""

    kept: tuple[Part, ...]
    missing: tuple[Wanted, ...]


def plan(store: Store, asset: str, source: str, wanted: Iterable[Wanted], previous: Snapshot | None) -> Plan:
    """Tell the parts that exist from those to be made.

    A part of the previous snapshot is kept unseen. One that only the store has was left by a run that died before it
    committed: it is found by name, so the work is not done twice.
    """
    known = {part.key: part for part in previous.parts} if previous else {}
    kept: list[Part] = []
    missing: list[Wanted] = []
    for want in wanted:
        part = known.get(want.key) or find_part(
            store,
            asset=asset,
            source=source,
            shard=want.shard,
            key=want.key,
            inputs=want.inputs,
            dead=want.dead,
        )
        if part is None:
            missing.append(want)
        else:
            kept.append(part)
    return Plan(tuple(kept), tuple(missing))


def commit(
    store: Store,
    previous: Snapshot | None,
    *,
    asset: str,
    source: str,
    version: str,
    shard_bits: int,
    parts: Sequence[Part],
    counts: dict[str, int],
    upstream: dict[str, str],
    rejected: Sequence[dict[str, object]] = (),
    model: dict[str, object] | None = None,
    accept: Accept = lambda snapshot, made: None,
) -> Snapshot:
    """Append the snapshot of these parts to the log, unless the log's head says the same already.

    `accept` is called first, and raises where the snapshot must not be. What it refused it is asked again by the next
    run, since the parts that nobody committed are found by name; so what is committed was accepted, whoever crashed.
    """
    ordered = sorted_parts(list(parts))
    snapshot = Snapshot(
        asset=asset,
        source=source,
        root=root_of_parts(ordered),
        version=version,
        shard_bits=shard_bits,
        parts=ordered,
        counts=counts,
        rejected=tuple(rejected),
        upstream=upstream,
        model=model,
        created_at="",
    )
    known = {part.key for part in previous.parts} if previous else set()
    accept(snapshot, [part for part in ordered if part.key not in known])
    return log.append(store, snapshot, after=previous)


RunShards = Callable[[Callable[[Wanted], Part], Sequence[Wanted]], list[Part]]
"""How shards are worked on: calls the function once for each, in any order, and returns the parts."""
