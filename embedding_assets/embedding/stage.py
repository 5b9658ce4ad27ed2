"""The embeddings stage: what is new of every chunks part gets a layer of vectors, row for row; only texts without a
durable vector are sent to the model. What there is to do is planned here, and done in `task`."""

import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from embedding_assets.embedding import leftovers
from embedding_assets.embedding.assembly import STAGE, grown, named
from embedding_assets.embedding.engine.engine import UNLIMITED, Budget, Usage
from embedding_assets.embedding.known import Heal, cannot_heal, reading
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.task import VERSION, EmbedTask, Surroundings, embed_shards, leftovers_of, version_of
from embedding_assets.errors import PermanentError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.derivation import Growth, Shelf, Wanted, growth
from embedding_assets.snapshots.draft import Draft, prepare
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.rejections import RejectedText
from embedding_assets.snapshots.slots import Slot, asset_of
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.telemetry.events import Tell, unheard


class BindingChanged(PermanentError):
    """The settings bind a live slot to another model: that would buy every vector anew, under readers' feet."""


class Cost(NamedTuple):
    """What a run of the stage cost."""

    new: int
    reused: int
    usage: Usage
    needless: tuple[str, ...] = ()
    """Objects of leftovers in the store: nobody needs them once the draft is committed."""
    answered_as: str | None = None
    """How the endpoint names the model; None where nothing was asked, or it does not say."""


def prepare_embeddings(
    store: Store,
    chunks: Snapshot,
    binding: Binding,
    journals: Path,
    *,
    is_live: Callable[[], bool],
    renamed_from: str | None = None,
    known_dead: Iterable[RejectedText] = (),
    replay: Collection[str] = (),
    budget: Budget = UNLIMITED,
    stop: threading.Event | None = None,
    tell: Tell = unheard,
    on_dead: Callable[[RejectedText], None] = lambda rejection: None,
    heal: Heal = cannot_heal,
) -> tuple[Draft, Cost]:
    """Make the vectors of these chunks by one model; the draft, and what it cost.

    Args:
        journals: folder of the journals of vectors that no part holds yet.
        is_live: whether readers search this model version now; asked where the slot was filled by another one.
        renamed_from: the source's name before; a first snapshot takes what vectors that one has of this model.
        known_dead: rejections besides the last snapshot's, found by runs that committed nothing.
        replay: hex hashes of the texts that are sent again although they are dead letters.
        budget: what the run may use.
        stop: ends the run when it is set, with what is in flight delivered.
        tell: the events of the engine and of the stage; with the engine's progress stands how many rows are settled.
        on_dead: told of each new rejection at once, whatever becomes of the run.
        heal: asked for a part whose vectors are wanted, and that is damaged.

    Raises:
        BindingChanged: the slot is live and was filled by another model.
        PermanentError, TransientError: as the engine does; vectors that arrived before stay, and are not bought again.
    """
    source = chunks.source
    asset = asset_of(binding.slot)
    identity = binding.identity()
    previous = log.head(store, asset, source)
    if previous is not None and previous.model is not None and binding.is_recorded_as(previous.model):
        identity = previous.model  # whatever name the settings give it first now: its parts keep theirs
    if previous is not None and previous.model != identity:
        if previous.model is not None and is_live():
            raise BindingChanged(
                f"{asset} of source {source} holds vectors of {previous.model}, the settings now say {identity}. "
                f"Slot {binding.slot} is live: changing it would buy everything anew while readers use it. Cure: put "
                "the old model back, bind the new one to the other slot, run embedding-assets materialize, then "
                "embedding-assets migration promote."
            )
        previous_vectors = None
    else:
        previous_vectors = previous
    version = version_of(identity)
    shelf = Shelf(store, asset, source, previous_vectors)
    was_dead = {part.inputs[0]: part.dead for part in shelf.before.values()}
    known = [*(previous_vectors.rejected if previous_vectors else ()), *known_dead]
    rejected = {one.text_hash: one for one in known if isinstance(one, RejectedText) and one.text_hash not in replay}

    # Those of hidden rows are nobody's: they keep no layer from being kept.
    revived = {text_hash for dead in was_dead.values() for text_hash in dead if text_hash not in rejected}

    def is_sound(layer: Layer) -> bool:
        key = part_key(STAGE, version, layer.inputs, layer.dead)
        return shelf.has(layer) and layer.key == key and revived.isdisjoint(layer.dead)

    read = reading(store, source, heal)
    parts: list[Part] = []
    missing: list[Growth] = []
    for part in chunks.parts:
        dead = tuple(text_hash for text_hash in was_dead.get(part.key, ()) if text_hash in rejected)
        kept = shelf.part(Wanted(part.shard, part_key(STAGE, version, [part.key], dead), (part.key,), dead))
        if kept is not None:
            parts.append(kept)
            continue
        grows = growth(part, shelf.before.get(part.shard), is_sound)
        layer = shelf.layer(named(version, grows, ())) if grows.under and grows.made_of else None
        if layer is not None or not grows.made_of:
            parts.append(grown(version, grows, layer, read))
        else:
            missing.append(grows)
    left = leftovers.listed(leftovers_of(store, source, binding, version))
    new, usage, answered_as = 0, Usage(), None
    if missing:
        task = EmbedTask(
            source=source,
            binding=binding,
            identity=identity,
            shards=tuple(missing),
            dead=tuple(sorted(rejected)),
            kept=tuple(layer for part in parts for layer in part.layers),
            before=previous_vectors.layers if previous_vectors else (),
            renamed_from=renamed_from if previous_vectors is None else None,
            left=tuple(left),
            journals=journals,
            budget=budget,
        )
        # All of them on one engine, here: an API is limited by its quota. For bundled models processes were not tried.
        bought = embed_shards(store, task, Surroundings(stop, tell, on_dead, heal))
        new, usage, answered_as = bought.new, bought.usage, bought.answered_as
        parts += bought.parts
        rejected |= {one.text_hash: one for one in bought.rejected}
        left += bought.left
    all_dead = sorted({text_hash for part in parts for text_hash in part.dead})
    rows = sum(part.rows for part in parts)
    draft = prepare(
        asset=asset,
        source=source,
        version=version,
        shard_bits=chunks.shard_bits,
        parts=parts,
        counts={f"vectors_{binding.slot}": rows, f"dead_{binding.slot}": len(all_dead)},
        upstream=[chunks],
        after=previous,
        rejected=[rejected[text_hash] for text_hash in all_dead],
        model=identity,
    )
    return draft, Cost(new, rows - new, usage, tuple(left), answered_as)


def prepare_empty(store: Store, chunks: Snapshot, slot: Slot) -> Draft:
    """The draft of a slot that is bound to no model: derived from these chunks, without parts."""
    asset = asset_of(slot)
    return prepare(
        asset=asset,
        source=chunks.source,
        version=VERSION,
        shard_bits=chunks.shard_bits,
        parts=[],
        counts={f"vectors_{slot}": 0, f"dead_{slot}": 0},
        upstream=[chunks],
        after=log.head(store, asset, chunks.source),
    )
