"""What a run of the stage knows before it sends a text: the vectors of the store's layers, of the source's former name,
and of what earlier runs left. All of it goes into its journal."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath

import numpy as np

from embedding_assets.embedding import leftovers
from embedding_assets.embedding.journal import Journal, open_journal
from embedding_assets.snapshots import log
from embedding_assets.snapshots.layers import LayerDamaged, Rows, read_layer
from embedding_assets.snapshots.snapshot import Layer
from embedding_assets.snapshots.stores import Store

_log = logging.getLogger(__name__)

ReadLayer = Callable[[Layer, list[str]], Rows]

Heal = Callable[[LayerDamaged], bool]
"""Puts a part's bytes back from wherever they are whole; whether that could be done."""


def cannot_heal(damaged: LayerDamaged) -> bool:
    """Where nobody knows of another store."""
    return False


def reading(store: Store, source: str, heal: Heal) -> ReadLayer:
    """Reads layers of a source, and has one that is damaged healed."""

    def read(layer: Layer, columns: list[str]) -> Rows:
        try:
            return read_layer(store, source, layer, columns)
        except LayerDamaged as error:
            if not heal(error):
                raise
            return read_layer(store, source, layer, columns)

    return read


def take_in(journal: Journal, place: leftovers.Place, paths: Sequence[str]) -> None:
    """Have in the journal what earlier runs left in the store, of this home or another."""
    for vectors in leftovers.unknown(place, journal, paths):
        _add(journal, vectors)


def layer_sizes(store: Store, asset: str, source: str) -> dict[str, int]:
    """The bytes of each layer that the store has, by its key."""
    return {PurePath(entry.path).stem: entry.bytes for entry in store.entries(f"parts/{asset}/{source}")}


def take_over(
    journal: Journal, store: Store, asset: str, old: str, identity: dict[str, object], old_journal: Path
) -> None:
    """Have the vectors of the source's former name in its journal, a layer at a time: texts are known by their hash."""
    head = log.head(store, asset, old)
    if head is None:
        _log.warning("renamed_from: nothing of a source %r is in the store, so its vectors are bought", old)
    for layer in head.layers if head is not None and head.model == identity else ():
        try:
            table = read_layer(store, old, layer, ["text_hash", "embedding"]).table
        except LayerDamaged:
            continue  # what only it held is embedded anew
        table = table.filter(table.column("embedding").is_valid())
        hashes = table.column("text_hash").to_pylist()
        _add(journal, zip(hashes, table.column("embedding").to_pylist(), strict=True))
        journal.note_stored(layer.path(old), hashes)  # no run need leave them in the store
    if old_journal.exists():
        with open_journal(old_journal) as left:
            _add(journal, left.bought())


def _add(journal: Journal, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    vectors_of = dict(pairs)
    known = journal.held(list(vectors_of))
    unknown = [text_hash for text_hash in vectors_of if text_hash not in known]
    if unknown:
        matrix = np.stack([np.frombuffer(vectors_of[text_hash], np.float32) for text_hash in unknown])
        journal.add(unknown, matrix)


def index(journal: Journal, read: ReadLayer, layers: Iterable[Layer], may_be_damaged: bool) -> None:
    """Let the journal know what durable layers hold; each one's hashes are read once in a journal's life."""
    for layer in layers:
        if journal.indexed(layer):
            continue
        try:
            table = read(layer, ["text_hash", "embedding"]).table
        except LayerDamaged:
            # One that is replaced now need not be whole: its texts count as never embedded.
            if may_be_damaged:
                continue
            raise
        held = table.column("embedding").is_valid().to_pylist()
        hashes = table.column("text_hash").to_pylist()
        journal.index(layer, (text_hash if there else None for text_hash, there in zip(hashes, held, strict=True)))
