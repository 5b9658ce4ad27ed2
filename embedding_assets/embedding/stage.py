"""The embeddings stage: what is new of every chunks part gets a layer of vectors, row for row; only texts without a
durable vector are sent to the model."""

import hashlib
import itertools
import json
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_assets.embedding import leftovers
from embedding_assets.embedding.engine.engine import (
    UNLIMITED,
    Budget,
    Dead,
    Embedded,
    Text,
    Usage,
    embed,
)
from embedding_assets.embedding.journal import Journal, open_journal
from embedding_assets.embedding.leftovers import Leaving
from embedding_assets.embedding.model_names import same_model
from embedding_assets.embedding.model_versions import ModelVersion
from embedding_assets.embedding.options import Binding
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.binary import vector_hashes
from embedding_assets.snapshots.derivation import Growth, Shelf, Wanted, growth
from embedding_assets.snapshots.draft import Draft, prepare
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import NOTHING_GONE, LayerDamaged, Rows, read_layer, write_layer
from embedding_assets.snapshots.parts import merged, read_layers
from embedding_assets.snapshots.rejections import ERROR_CLASSES, RejectedText
from embedding_assets.snapshots.schemas import vectors
from embedding_assets.snapshots.slots import Slot, asset_of
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.telemetry.events import (
    EmbeddingProgress,
    EngineProgress,
    Event,
    ShardMade,
    Tell,
    TextRejected,
    unheard,
)

_log = logging.getLogger(__name__)

STAGE: Final = "embeddings"
VERSION: Final = "embeddings-1"


class BindingChanged(PermanentError):
    """The settings bind a live slot to another model: that would buy every vector anew, under readers' feet."""


class Bought(NamedTuple):
    """What a run of the stage cost."""

    new: int
    reused: int
    usage: Usage
    needless: tuple[str, ...] = ()
    """Objects of leftovers in the store: nobody needs them once the draft is committed."""
    answered_as: str | None = None
    """How the endpoint names the model; None where nothing was asked, or it does not say."""


Heal = Callable[[LayerDamaged], bool]
"""Puts a part's bytes back from wherever they are whole; whether that could be done."""

ReadLayer = Callable[[Layer, list[str]], Rows]


def prepare_embeddings(
    store: Store,
    chunks: Snapshot,
    binding: Binding,
    journals: Path,
    *,
    live: bool,
    renamed_from: str | None = None,
    known_dead: Iterable[RejectedText] = (),
    replay: Collection[str] = (),
    budget: Budget = UNLIMITED,
    stop: threading.Event | None = None,
    tell: Tell = unheard,
    on_dead: Callable[[RejectedText], None] = lambda rejection: None,
    heal: Heal = lambda damaged: False,
) -> tuple[Draft, Bought]:
    """Make the vectors of these chunks by one model; the draft, and what it cost.

    Args:
        journals: folder of the journals of vectors that no part holds yet.
        live: whether readers search this model version now.
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
        if live and previous.model is not None:
            raise BindingChanged(
                f"{asset} of source {source} holds vectors of {previous.model}, the settings now say {identity}. "
                f"Slot {binding.slot} is live: changing it would buy everything anew while readers use it. Cure: put "
                "the old model back, bind the new one to the other slot, and switch live_model when that one is filled."
            )
        previous_vectors = None
    else:
        previous_vectors = previous
    version = f"{VERSION} {json.dumps(identity, sort_keys=True)}"
    shelf = Shelf(store, asset, source, previous_vectors)
    was_dead = {part.inputs[0]: part.dead for part in shelf.before.values()}
    known = [*(previous_vectors.rejected if previous_vectors else ()), *known_dead]
    rejected = {one.text_hash: one for one in known if isinstance(one, RejectedText) and one.text_hash not in replay}

    # Those of hidden rows are nobody's: they keep no layer from being kept.
    revived = {text_hash for dead in was_dead.values() for text_hash in dead if text_hash not in rejected}

    def is_sound(layer: Layer) -> bool:
        name = part_key(STAGE, version, layer.inputs, layer.dead)
        return shelf.has(layer) and layer.key == name and revived.isdisjoint(layer.dead)

    read = partial(_read_healed, store, source, heal)
    kept: list[Part] = []
    missing: list[Growth] = []
    for part in chunks.parts:
        dead = tuple(text_hash for text_hash in was_dead.get(part.key, ()) if text_hash in rejected)
        found = shelf.part(Wanted(part.shard, part_key(STAGE, version, [part.key], dead), (part.key,), dead))
        if found is not None:
            kept.append(found)
            continue
        grows = growth(part, shelf.before.get(part.shard), is_sound)
        found_layer = shelf.layer(_named(version, grows, ())) if grows.under and grows.made_of else None
        if found_layer is not None or not grows.made_of:
            kept.append(_grown(version, grows, found_layer, read))
        else:
            missing.append(grows)
    made: list[Part] = []
    new, usage = 0, Usage()
    model = hashlib.sha256(version.encode()).hexdigest()[:16]
    place = leftovers.Place(store, asset, source, model, binding.dimensions)
    left = leftovers.listed(place)
    answering = _Answering(ModelVersion(store, asset, model), binding)
    if missing:
        suffix = f"{binding.slot}-{model}.sqlite"
        with open_journal(journals / f"{source}-{suffix}") as journal:
            before = previous_vectors.layers if previous_vectors else ()
            journal.keep_only(_whole(store, asset, source, before))
            stay = [*(part.layers for part in kept), *(grows.under for grows in missing)]
            _index(journal, read, itertools.chain.from_iterable(stay), may_be_damaged=False)
            _index(journal, read, before, may_be_damaged=True)
            if renamed_from is not None and previous_vectors is None:
                _take_over(journal, store, asset, renamed_from, identity, journals / f"{renamed_from}-{suffix}")
                former = place._replace(source=renamed_from)
                _take_in(journal, former, leftovers.listed(former))
            _take_in(journal, place, left)
            assembly = _Assembly(
                store=store,
                source=source,
                asset=asset,
                dimensions=binding.dimensions,
                missing=missing,
                journal=journal,
                version=version,
                rejected=rejected,
                on_dead=on_dead,
                read=read,
                note_model=answering.note,
                tell=tell,
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
                    budget=budget,
                    stop=stop,
                    answered_as=answering.before(),
                    tell=assembly.tell_with_rows,
                    takes=journal.takes(),
                    on_takes=journal.note_takes,
                )
            made, new = assembly.made, assembly.new
            left += leaving.paths
    parts = [*kept, *made]
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
    return draft, Bought(new, rows - new, usage, tuple(left), answering.name)


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


class _Answering:
    """How the endpoint names the model: the name that is recorded, or will be at the first answer with one."""

    def __init__(self, version: ModelVersion, binding: Binding) -> None:
        self._version = version
        self._binding = binding
        self._before: str | None = None
        self.name: str | None = None

    def before(self) -> str | None:
        """What earlier runs were answered by; None where the settings say what counts."""
        self._before = None if self._binding.answers_as else self._version.answered_as()
        return self._before

    def note(self, name: str) -> None:
        """Record the name, if it is the model version's first.

        Raises:
            PermanentError: another run has recorded the name of another model meanwhile.
        """
        if self.name is not None:
            return
        asked = self._binding.name
        try:
            self.name = self._before or self._version.record(name)
        except TransientError as error:  # it holds for this run; what is bought is in the journal
            self.name = name
            _log.warning("how %s is answered is recorded at the next run: %s", asked, error)
        if self._before or self._binding.answers_as:
            return
        if not same_model(self.name, name):
            raise PermanentError(
                f"{asked} is answered by {name} here, and by {self.name} to another run. Cure: have the endpoint serve "
                f"one model; if both names are of one, set answers_as: [{self.name}, {name}]"
            )
        if not same_model(asked, name):
            _log.warning("%s answers as %s: a later answer by another name is refused", asked, name)


@contextmanager
def _left_behind(leaving: Leaving) -> Iterator[None]:
    """Where what is inside fails, leave what it bought in the store: the next run may have another home."""
    try:
        yield
    except Exception:
        leaving.leave()
        raise


def _take_in(journal: Journal, place: leftovers.Place, paths: Sequence[str]) -> None:
    """Have in the journal what earlier runs left in the store, of this home or another."""
    for found in leftovers.unknown(place, journal, paths):
        _add(journal, found)


def _named(version: str, grows: Growth, dead: tuple[str, ...]) -> Wanted:
    """The layer of vectors that a part of chunks wants, without those of these texts."""
    return Wanted(grows.of.shard, part_key(STAGE, version, grows.inputs, dead), grows.inputs, dead)


def _grown(version: str, grows: Growth, layer: Layer | None, read: ReadLayer) -> Part:
    """The part of vectors of a part of chunks, with this layer on what was kept."""
    layers = (*grows.under, layer) if layer else grows.under
    dead = layers[-1].dead
    if any(below.dead for below in layers[:-1]):
        # A text that is dead in a hidden row is nobody's any more.
        rows = merged([read(below, ["text_hash", "embedding"]) for below in layers]).table
        without = rows.filter(rows.column("embedding").is_null()).column("text_hash").to_pylist()
        dead = tuple(sorted({text_hash.hex() for text_hash in without}))
    return grows.part(part_key(STAGE, version, [grows.of.key], dead), layer, grows.of.rows, dead)


def _rows_of(grows: Growth) -> int:
    """How many vectors are wanted, at most."""
    return sum(layer.rows for layer in grows.made_of) if grows.under else grows.of.rows


def _read_healed(store: Store, source: str, heal: Heal, layer: Layer, columns: list[str]) -> Rows:
    try:
        return read_layer(store, source, layer, columns)
    except LayerDamaged as error:
        if not heal(error):
            raise
        return read_layer(store, source, layer, columns)


def _whole(store: Store, asset: str, source: str, before: Iterable[Layer]) -> set[str]:
    """The keys of the layers that the store has, without those that are not as long as recorded."""
    held = {found.path: found.bytes for found in store.entries(f"parts/{asset}/{source}")}
    lost = {layer.key for layer in before if held.get(layer.path(source)) != layer.bytes}
    return {PurePath(path).stem for path in held} - lost


def _take_over(
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


def _add(journal: Journal, found: Iterable[tuple[bytes, bytes]]) -> None:
    vectors_of = dict(found)
    known = journal.held(list(vectors_of))
    unknown = [text_hash for text_hash in vectors_of if text_hash not in known]
    if unknown:
        matrix = np.stack([np.frombuffer(vectors_of[text_hash], np.float32) for text_hash in unknown])
        journal.add(unknown, matrix)


def _index(journal: Journal, read: ReadLayer, layers: Iterable[Layer], may_be_damaged: bool) -> None:
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


@dataclass(frozen=True)
class _Shard:
    """A shard between the look at its new chunks and their layer. Thousands are open at once where each waits for one
    text that changed, so it holds what it waits for and nothing else."""

    grows: Growth
    awaited: dict[bytes, int]
    """The texts under way, with the number of rows that have them."""
    dead: set[bytes]


@dataclass
class _Assembly:
    """By-shard assembly: texts go out in shard order, and a shard's layer is written as soon as its last vector is in.

    Vectors under way are in the journal, not here: memory is that of one shard. The engine calls `texts` and `deliver`
    in turns, on one thread.
    """

    store: Store
    source: str
    asset: str
    dimensions: int
    missing: list[Growth]
    """The chunks whose vectors are to be made."""
    journal: Journal
    version: str
    rejected: dict[str, RejectedText]
    """The rejections so far, by text hash; a text that is among them is not sent again."""
    on_dead: Callable[[RejectedText], None]
    read: ReadLayer
    """Reads a layer of vectors."""
    note_model: Callable[[str], None]
    """Told how the endpoint names the model."""
    tell: Tell
    new: int = 0
    settled: int = 0
    made: list[Part] = field(default_factory=list)
    _waiting: dict[bytes, list[_Shard]] = field(default_factory=dict)

    def texts(self) -> Iterator[Text]:
        """Each text of the new chunks that has no durable vector and is not under way, once."""
        for grows in self.missing:
            table = read_layers(self.store, self.source, grows.made_of, ["text_hash", "text", "tokens"]).table
            hashes: list[bytes] = table.column("text_hash").to_pylist()
            rows = Counter(hashes)
            dead = {text_hash for text_hash in rows if text_hash.hex() in self.rejected}
            known = dead | self.journal.held(list(rows))
            shard = _Shard(grows, {text_hash: n for text_hash, n in rows.items() if text_hash not in known}, dead)
            self.settled += _rows_of(grows) - sum(shard.awaited.values())
            fresh = {text_hash for text_hash in shard.awaited if text_hash not in self._waiting}
            for text_hash in shard.awaited:
                self._waiting.setdefault(text_hash, []).append(shard)
            if not shard.awaited:
                self._close(shard)
            # In the order of the rows: requests are the same for the same input.
            for row, text_hash in enumerate(hashes):
                if text_hash in fresh:
                    fresh.remove(text_hash)
                    yield Text(text_hash, table.column("text")[row].as_py(), table.column("tokens")[row].as_py())

    def deliver(self, arrived: Embedded | Dead) -> None:
        """Make what the engine brings durable, and finish every shard that waited for nothing else."""
        if isinstance(arrived, Embedded):
            self.journal.add(arrived.text_hashes, arrived.vectors)
            if arrived.model is not None:
                self.note_model(arrived.model)
            self.new += len(arrived.text_hashes)
            settled = arrived.text_hashes
        else:
            rejection = self.rejected[arrived.text_hash.hex()] = self._rejection(arrived)
            self.on_dead(rejection)
            self.tell(TextRejected(arrived.error_class, arrived.attempts))
            settled = [arrived.text_hash]
        for text_hash in settled:
            for shard in self._waiting.pop(text_hash):
                self.settled += shard.awaited.pop(text_hash)
                if isinstance(arrived, Dead):
                    shard.dead.add(text_hash)
                if not shard.awaited:
                    self._close(shard)

    def tell_with_rows(self, event: Event) -> None:
        """Tell an event of the engine, its progress together with the rows that have come of it."""
        if isinstance(event, EngineProgress):
            event = EmbeddingProgress(self.settled, sum(map(_rows_of, self.missing)), event)
        self.tell(event)

    def _rejection(self, dead: Dead) -> RejectedText:
        """What is said of a text without a vector; it stands for every chunk with that text, and names the first."""
        columns = ["text_hash", "document_id", "chunk_id"]
        for layer in self._waiting[dead.text_hash][0].grows.made_of:
            table = read_layer(self.store, self.source, layer, columns).table
            hashes = table.column("text_hash").to_pylist()
            if dead.text_hash in hashes:
                break
        row = hashes.index(dead.text_hash)
        return RejectedText(
            source=self.source,
            part=layer.path(self.source),
            document_id=table.column("document_id")[row].as_py(),
            chunk_id=str(uuid.UUID(bytes=table.column("chunk_id")[row].as_py())),
            text_hash=dead.text_hash.hex(),
            error_class=dead.error_class,
            reason=dead.reason,
            cure=ERROR_CLASSES[dead.error_class].cure,
            attempts=dead.attempts,
        )

    def _close(self, shard: _Shard) -> None:
        """Write the shard's layer."""
        grows = shard.grows
        chunks, _, gone = read_layers(self.store, self.source, grows.made_of, ["chunk_id", "text_hash"])
        hashes: list[bytes] = chunks.column("text_hash").to_pylist()
        valid = np.array([text_hash not in shard.dead for text_hash in hashes], bool)
        matrix = self._vectors(hashes, shard.dead)
        nulls = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        embedding, vector_hash = (
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(hashes), [nulls, pa.py_buffer(values)])
            for width, values in ((4 * self.dimensions, matrix), (32, vector_hashes(matrix)))
        )
        want = _named(self.version, grows, tuple(sorted(text_hash.hex() for text_hash in shard.dead)))
        layer = write_layer(
            self.store,
            pa.table(
                [chunks.column("chunk_id"), chunks.column("text_hash"), embedding, vector_hash],
                vectors(self.dimensions),
            ),
            asset=self.asset,
            source=self.source,
            shard=want.shard,
            key=want.key,
            inputs=want.inputs,
            dead=want.dead,
            gone=gone if grows.under else NOTHING_GONE,
            compression="none",
        )
        self.journal.index(layer, (h if there else None for h, there in zip(hashes, valid, strict=True)))
        self.made.append(_grown(self.version, grows, layer, self.read))
        self.tell(ShardMade(self.asset, layer.shard, layer.rows, layer.bytes, len(self.made), len(self.missing)))

    def _vectors(self, hashes: list[bytes], dead: set[bytes]) -> NDArray[np.float32]:
        """(len(hashes), d) float32: the durable vector of each text, zeros where it is dead.

        Raises:
            TransientError: a part that had some of them is gone since the run began; the next run buys them anew.
        """
        rows: dict[bytes, list[int]] = {}
        for row, text_hash in enumerate(hashes):
            rows.setdefault(text_hash, []).append(row)
        matrix = np.zeros((len(hashes), self.dimensions), np.float32)
        found = self.journal.find([text_hash for text_hash in rows if text_hash not in dead])
        for text_hash, vector in found.here.items():
            matrix[rows.pop(text_hash)] = np.frombuffer(vector, np.float32)
        for holder, places in found.elsewhere:
            try:
                stored = self.read(holder, ["embedding"]).table.column("embedding")
            except LayerDamaged as error:
                self.journal.forget(holder.key)
                raise TransientError(f"{error.what} Cure: run again: what only it held is embedded anew.") from error
            for text_hash, place in places:
                matrix[rows.pop(text_hash)] = np.frombuffer(stored[place].as_buffer(), np.float32)
        assert rows.keys() <= dead, "a shard was closed before its last vector was durable"
        return matrix
