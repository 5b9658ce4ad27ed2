"""What a stage has to make anew: the parts it wants by name, less those that its last snapshot or the store holds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from embedding_assets.snapshots.keys import PartKey
from embedding_assets.snapshots.parts import find_part
from embedding_assets.snapshots.snapshot import Part, Snapshot, part_path
from embedding_assets.snapshots.stores import Store


class Wanted(NamedTuple):
    """A part that the next snapshot names, whether or not it exists yet."""

    shard: int
    key: PartKey
    inputs: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a stage does next: `kept` parts are read by nobody, `missing` ones are made."""

    kept: tuple[Part, ...]
    missing: tuple[Wanted, ...]


def plan(store: Store, asset: str, source: str, wanted: Iterable[Wanted], previous: Snapshot | None) -> Plan:
    """Tell the parts that exist from those to be made.

    A part of the previous snapshot is kept unread, if the store still has as many bytes under its name; one that was
    lost is made again. A part that only the store has was left by a run that died before it committed: it is found by
    name and proved, so the work is not done twice.
    """
    known = {part.key: part for part in previous.parts} if previous else {}
    held = {found.path: found.bytes for found in store.entries(f"parts/{asset}/{source}")}
    kept: list[Part] = []
    missing: list[Wanted] = []
    for want in wanted:
        path, part = part_path(asset, source, want.key), known.get(want.key)
        if path not in held:
            part = None
        elif part is None or part.bytes != held[path]:
            part = find_part(
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


Task = TypeVar("Task")
Make = Callable[[Store, Task], Part]
"""Makes the part that a task names. It is a function of a module, and the task is a value of plain fields: both can be
sent to another process, which opens the store by its URL."""


class RunShards(Protocol):
    """How shards are worked on: in this process, or by a queue's workers."""

    def __call__(self, work: Make[Task], store: Store, tasks: Sequence[Task]) -> list[Part]:
        """Call `work` once for each task, in any order; the parts in the order of the tasks."""
