"""By-shard assembly: what the engine brings becomes layers of vectors, row for row those of the chunks."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_assets.embedding.engine.engine import Dead, Embedded, Text
from embedding_assets.embedding.journal import Journal
from embedding_assets.embedding.known import ReadLayer
from embedding_assets.errors import TransientError
from embedding_assets.snapshots.binary import vector_hashes
from embedding_assets.snapshots.derivation import Growth, Wanted
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import NOTHING_GONE, LayerDamaged, read_layer, write_layer
from embedding_assets.snapshots.parts import merged, read_layers
from embedding_assets.snapshots.rejections import ERROR_CLASSES, RejectedText
from embedding_assets.snapshots.schemas import vectors
from embedding_assets.snapshots.snapshot import Layer, Part
from embedding_assets.snapshots.stores import Store
from embedding_assets.telemetry.events import (
    EmbeddingProgress,
    EngineProgress,
    Event,
    ShardMade,
    Tell,
    TextRejected,
)

STAGE: Final = "embeddings"


def named(version: str, grows: Growth, dead: tuple[str, ...]) -> Wanted:
    """The layer of vectors that a part of chunks wants, without those of these texts."""
    return Wanted(grows.of.shard, part_key(STAGE, version, grows.inputs, dead), grows.inputs, dead)


def grown(version: str, grows: Growth, layer: Layer | None, read: ReadLayer) -> Part:
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


@dataclass(frozen=True)
class _Shard:
    """A shard between the look at its new chunks and their layer. Thousands are open at once where each waits for one
    text that changed, so it holds what it waits for and nothing else."""

    grows: Growth
    awaited: dict[bytes, int]
    """The texts under way, with the number of rows that have them."""
    dead: set[bytes]


@dataclass
class Assembly:
    """By-shard assembly: texts go out in shard order, and a shard's layer is written as soon as its last vector is in.

    Vectors under way are in the journal, not here: memory is that of one shard. The engine calls `texts` and `deliver`
    in turns, on one thread.
    """

    store: Store
    source: str
    asset: str
    dimensions: int
    shards: Sequence[Growth]
    """The chunks whose vectors are to be made."""
    journal: Journal
    version: str
    dead: frozenset[str]
    """Hashes of texts that are dead letters already: they are not sent again."""
    on_dead: Callable[[RejectedText], None]
    read: ReadLayer
    """Reads a layer of vectors."""
    note_model: Callable[[str], None]
    """Told how the endpoint names the model."""
    tell: Tell
    rejected: dict[str, RejectedText] = field(default_factory=dict)
    """The new dead letters, by text hash."""
    new: int = 0
    settled: int = 0
    parts: list[Part] = field(default_factory=list)
    _waiting: dict[bytes, list[_Shard]] = field(default_factory=dict)

    def texts(self) -> Iterator[Text]:
        """Each text of the new chunks that has no durable vector and is not under way, once."""
        for grows in self.shards:
            table = read_layers(self.store, self.source, grows.made_of, ["text_hash", "text", "tokens"]).table
            hashes: list[bytes] = table.column("text_hash").to_pylist()
            rows = Counter(hashes)
            dead = {text_hash for text_hash in rows if self._is_dead(text_hash)}
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

    def _is_dead(self, text_hash: bytes) -> bool:
        return text_hash.hex() in self.dead or text_hash.hex() in self.rejected

    def tell_with_rows(self, event: Event) -> None:
        """Tell an event of the engine, its progress together with the rows that have come of it."""
        if isinstance(event, EngineProgress):
            event = EmbeddingProgress(self.settled, sum(map(_rows_of, self.shards)), event)
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
        want = named(self.version, grows, tuple(sorted(text_hash.hex() for text_hash in shard.dead)))
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
        self.parts.append(grown(self.version, grows, layer, self.read))
        self.tell(ShardMade(self.asset, layer.shard, layer.rows, layer.bytes, len(self.parts), len(self.shards)))

    def _vectors(self, hashes: list[bytes], dead: set[bytes]) -> NDArray[np.float32]:
        """(len(hashes), d) float32: the durable vector of each text, zeros where it is dead.

        Raises:
            TransientError: a part that had some of them is gone since the run began; the next run buys them anew.
        """
        rows: dict[bytes, list[int]] = {}
        for row, text_hash in enumerate(hashes):
            rows.setdefault(text_hash, []).append(row)
        matrix = np.zeros((len(hashes), self.dimensions), np.float32)
        places_of = self.journal.find([text_hash for text_hash in rows if text_hash not in dead])
        for text_hash, vector in places_of.here.items():
            matrix[rows.pop(text_hash)] = np.frombuffer(vector, np.float32)
        for holder, places in places_of.elsewhere:
            try:
                stored = self.read(holder, ["embedding"]).table.column("embedding")
            except LayerDamaged as error:
                self.journal.forget(holder.key)
                raise TransientError(f"{error.what} Cure: run again: what only it held is embedded anew.") from error
            for text_hash, place in places:
                matrix[rows.pop(text_hash)] = np.frombuffer(stored[place].as_buffer(), np.float32)
        assert rows.keys() <= dead, "a shard was closed before its last vector was durable"
        return matrix
