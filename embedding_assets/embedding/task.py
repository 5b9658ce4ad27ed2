"""Shards to be embedded, as a task: a group of shards on one engine, so that equal texts of all of them are sent once,
and their requests share one pace, one budget and one journal."""

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedding_assets.embedding import leftovers
from embedding_assets.embedding.assembly import Assembly
from embedding_assets.embedding.engine.engine import UNLIMITED, Budget, Dead, Embedded, Usage, embed
from embedding_assets.embedding.journal import open_journal
from embedding_assets.embedding.known import Heal, cannot_heal, index, layer_sizes, reading, take_in, take_over
from embedding_assets.embedding.leftovers import Leaving
from embedding_assets.embedding.model_versions import Answering, ModelVersion
from embedding_assets.embedding.options import Binding
from embedding_assets.snapshots.derivation import Growth
from embedding_assets.snapshots.keys import Hex
from embedding_assets.snapshots.names import Name
from embedding_assets.snapshots.rejections import RejectedText
from embedding_assets.snapshots.slots import asset_of
from embedding_assets.snapshots.snapshot import Layer, Part
from embedding_assets.snapshots.stores import Store
from embedding_assets.snapshots.tasks import Task
from embedding_assets.telemetry.events import Tell, unheard

VERSION: Final = "embeddings-1"


class EmbedTask(Task):
    """Shards of one source that are to be embedded by one model."""

    binding: Binding
    identity: dict[str, Any]
    """The model's, as its parts are named by: an earlier name may stand in it."""
    shards: tuple[Growth, ...]
    dead: tuple[Hex, ...]
    """Hashes of the texts that are not sent, as they are dead letters."""
    kept: tuple[Layer, ...]
    """Layers of vectors that stay: they have to be whole."""
    before: tuple[Layer, ...]
    """Those of the last snapshot. What one of them alone has is embedded anew if it is damaged."""
    renamed_from: Name | None
    """The source's former name, whose vectors are taken."""
    left: tuple[str, ...]
    """Objects of leftovers in the store."""
    journals: Path
    """Folder of the journals, on the machine that does it."""
    budget: Budget = UNLIMITED

    @property
    def asset(self) -> str:
        return asset_of(self.binding.slot)

    @property
    def version(self) -> str:
        """Of the stage with this model."""
        return version_of(self.identity)


@dataclass(frozen=True)
class Bought:
    """What a task came to, and what it cost."""

    parts: tuple[Part, ...]
    rejected: tuple[RejectedText, ...]
    """The texts that are dead letters by now and were none before."""
    new: int
    """How many vectors came from the model."""
    usage: Usage
    left: tuple[str, ...]
    """Objects of leftovers that it put into the store on its way."""
    answered_as: str | None
    """How the endpoint names the model; None where nothing was asked, or it does not say."""


@dataclass(frozen=True)
class Surroundings:
    """What a step that does the work itself adds to the task, and no message carries."""

    stop: threading.Event | None = None
    """Ends the work when it is set, with what is in flight delivered."""
    tell: Tell = unheard
    on_dead: Callable[[RejectedText], None] = lambda rejection: None
    """Told of each new rejection at once, whatever becomes of the work."""
    heal: Heal = cannot_heal


ALONE: Final = Surroundings()


def version_of(identity: dict[str, Any]) -> str:
    """The stage's version with a model of this identity."""
    return f"{VERSION} {json.dumps(identity, sort_keys=True)}"


def leftovers_of(store: Store, source: str, binding: Binding, version: str) -> leftovers.Place:
    """Where runs of this version of the stage leave vectors that no part holds."""
    model = hashlib.sha256(version.encode()).hexdigest()[:16]
    return leftovers.Place(store, asset_of(binding.slot), source, model, binding.dimensions)


def embed_shards(store: Store, task: EmbedTask, around: Surroundings = ALONE) -> Bought:
    """Make the layers of vectors of these shards; only texts without a durable vector are sent to the model.

    Raises:
        PermanentError, TransientError: as the engine does; vectors that arrived before stay, and are not bought again.
    """
    source, asset, binding = task.source, task.asset, task.binding
    place = leftovers_of(store, source, binding, task.version)
    read = reading(store, source, around.heal)
    answering = Answering(ModelVersion(store, asset, place.model), binding)
    suffix = f"{binding.slot}-{place.model}.sqlite"
    with open_journal(task.journals / f"{source}-{suffix}") as journal:
        journal.keep_only(layer_sizes(store, asset, source))
        index(journal, read, itertools.chain(task.kept, *(grows.under for grows in task.shards)), may_be_damaged=False)
        index(journal, read, task.before, may_be_damaged=True)
        if task.renamed_from is not None:
            old_journal = task.journals / f"{task.renamed_from}-{suffix}"
            take_over(journal, store, asset, task.renamed_from, task.identity, old_journal)
            former = place._replace(source=task.renamed_from)
            take_in(journal, former, leftovers.listed(former))
        take_in(journal, place, task.left)
        assembly = Assembly(
            store=store,
            source=source,
            asset=asset,
            dimensions=binding.dimensions,
            shards=task.shards,
            journal=journal,
            version=task.version,
            dead=frozenset(task.dead),
            on_dead=around.on_dead,
            read=read,
            note_model=answering.note,
            tell=around.tell,
        )
        leaving = Leaving(place, journal)

        def deliver(arrived: Embedded | Dead) -> None:
            assembly.deliver(arrived)
            leaving.leave_in_time()

        with _left_behind(leaving):
            usage = embed(
                binding,
                assembly.texts(),
                deliver,
                budget=task.budget,
                stop=around.stop,
                answered_as=answering.before(),
                tell=assembly.tell_with_rows,
                takes=journal.takes(),
                on_takes=journal.note_takes,
            )
    return Bought(
        tuple(assembly.parts),
        tuple(assembly.rejected.values()),
        assembly.new,
        usage,
        tuple(leaving.paths),
        answering.name,
    )


@contextmanager
def _left_behind(leaving: Leaving) -> Iterator[None]:
    """Where what is inside fails, leave what it bought in the store: the next run may have another home."""
    try:
        yield
    except Exception:
        leaving.leave()
        raise
