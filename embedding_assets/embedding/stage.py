"""The embeddings stage: every chunks part gets a part of vectors, row for row; only texts without a durable vector
are sent to the model."""

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_assets.embedding.engine import Dead, Embedded, Progress, Text, Usage, embed
from embedding_assets.embedding.journal import Journal, open_journal
from embedding_assets.embedding.models import Binding
from embedding_assets.errors import PermanentError
from embedding_assets.snapshots import derivation, log
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.parts import PartDamaged, read_part, write_part
from embedding_assets.snapshots.schemas import HASH, vectors
from embedding_assets.snapshots.snapshot import Part, Snapshot
from embedding_assets.snapshots.stores import Store

STAGE: Final = "embeddings"
VERSION: Final = "embeddings-1"


class BindingChanged(PermanentError):
    """The settings bind a live slot to another model: that would buy every vector anew, under readers' feet."""


class Bought(NamedTuple):
    """What a run of the stage cost: `usage` is None where nothing had to be sent."""

    new: int
    reused: int
    usage: Usage | None


def asset_of(slot: str) -> str:
    """The asset that holds the vectors of a model version."""
    return f"embeddings_{slot}"


def snapshot_embeddings(
    store: Store,
    chunks: Snapshot,
    binding: Binding,
    journals: Path,
    *,
    live: bool,
    on_progress: Callable[[Progress, int, int], None] = lambda progress, settled, total: None,
) -> tuple[Snapshot, Bought]:
    """Commit the vectors of these chunks by one model; the snapshot, and what it cost.

    Args:
        journals: folder of the journals of vectors that no part holds yet.
        live: whether readers search this model version now.
        on_progress: told the engine's figures, and how many of how many rows of the shards to be made have a vector.

    Raises:
        BindingChanged: the slot is live and was filled by another model.
        PermanentError, TransientError: as the engine does; vectors that arrived before stay, and are not bought again.
    """
    source = chunks.source
    asset = asset_of(binding.slot)
    identity = binding.identity()
    previous = log.head(store, asset, source)
    if previous is not None and previous.model != identity:
        if live:
            raise BindingChanged(
                f"{asset} of source {source} holds vectors of {previous.model}, the settings now say {identity}. "
                f"Slot {binding.slot} is live: changing it would buy everything anew while readers use it. Cure: put "
                "the old model back, bind the new one to the other slot, and switch live_model when that one is filled."
            )
        previous_vectors = None
    else:
        previous_vectors = previous
    version = f"{VERSION} {json.dumps(identity, sort_keys=True)}"
    was_dead = {part.inputs[0]: part.dead for part in previous_vectors.parts} if previous_vectors else {}
    rejected = {entry["text_hash"]: entry for entry in previous_vectors.rejected} if previous_vectors else {}

    def want(part: Part, dead: frozenset[bytes]) -> derivation.Wanted:
        hashes = tuple(sorted(text_hash.hex() for text_hash in dead))
        return derivation.Wanted(part.shard, part_key(STAGE, version, [part.key], hashes), (part.key,), hashes)

    wanted = [want(part, frozenset(map(bytes.fromhex, was_dead.get(part.key, ())))) for part in chunks.parts]
    plan = derivation.plan(store, asset, source, wanted, previous_vectors)
    made: list[Part] = []
    new, usage = 0, None
    if plan.missing:
        name = hashlib.sha256(version.encode()).hexdigest()[:16]
        with open_journal(journals / f"{source}-{binding.slot}-{name}.sqlite") as journal:
            _index(journal, store, source, plan.kept, may_be_gone=False)
            _index(journal, store, source, previous_vectors.parts if previous_vectors else (), may_be_gone=True)
            dead_before = frozenset(map(bytes.fromhex, rejected))
            assembly = _Assembly(store, source, asset, binding.dimensions, journal, want, dead_before)
            inputs = {part.key: part for part in chunks.parts}
            missing = [inputs[wanted.inputs[0]] for wanted in plan.missing]
            total = sum(part.rows for part in missing)
            usage = embed(
                binding,
                assembly.texts(missing),
                assembly.deliver,
                on_progress=lambda progress: on_progress(progress, assembly.settled, total),
            )
            made, new = assembly.made, assembly.new
            rejected |= assembly.rejected
    parts = [*plan.kept, *made]
    dead = sorted({text_hash for part in parts for text_hash in part.dead})
    rows = sum(part.rows for part in parts)
    snapshot = derivation.commit(
        store,
        previous,
        asset=asset,
        source=source,
        version=version,
        shard_bits=chunks.shard_bits,
        parts=parts,
        counts={f"vectors_{binding.slot}": rows, f"dead_{binding.slot}": len(dead)},
        upstream={chunks.asset: chunks.root},
        rejected=[rejected[text_hash] for text_hash in dead],
        model=identity,
    )
    return snapshot, Bought(new, rows - new, usage)


def _index(journal: Journal, store: Store, source: str, parts: Iterable[Part], may_be_gone: bool) -> None:
    """Let the journal know what durable parts hold; each part's hashes are read once in a journal's life."""
    for part in parts:
        if journal.indexed(part.key):
            continue
        try:
            table = read_part(store, source, part, ["text_hash", "embedding"])
        except PartDamaged:
            if may_be_gone:
                continue
            raise
        held = table.column("embedding").is_valid().to_pylist()
        hashes = table.column("text_hash").to_pylist()
        journal.index(part, (text_hash if there else None for text_hash, there in zip(hashes, held, strict=True)))


@dataclass
class _Shard:
    """A shard between the look at its chunks and its part."""

    part: Part
    chunk_ids: pa.Array
    document_ids: list[str]
    text_hashes: list[bytes]
    rows: dict[bytes, list[int]]
    vectors: NDArray[np.float32]
    awaited: set[bytes]
    dead: set[bytes]


@dataclass
class _Assembly:
    """By-shard assembly: texts go out in shard order, and a shard's part is written as soon as its last vector is in.

    Holds the vectors of the shards under way, which the engine's window bounds to a few.
    """

    store: Store
    source: str
    asset: str
    dimensions: int
    journal: Journal
    want: Callable[[Part, frozenset[bytes]], derivation.Wanted]
    dead_before: frozenset[bytes]
    new: int = 0
    settled: int = 0
    made: list[Part] = field(default_factory=list)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    _waiting: dict[bytes, list[_Shard]] = field(default_factory=dict)
    # The engine pulls texts in one thread and delivers in another: a text must not slip between "not durable yet" and
    # "nobody waits for it", or it would be bought twice.
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def texts(self, parts: list[Part]) -> Iterator[Text]:
        """Each text of these chunks parts that has no durable vector and is not under way, once."""
        for part in parts:
            table = read_part(self.store, self.source, part)
            with self._turn:
                shard = self._open(part, table)
                fresh = [text_hash for text_hash in shard.awaited if text_hash not in self._waiting]
                for text_hash in shard.awaited:
                    self._waiting.setdefault(text_hash, []).append(shard)
                if not shard.awaited:
                    self._close(shard)
            texts, tokens = table.column("text"), table.column("tokens")
            # In the order of the rows: requests are the same for the same input, whatever the hash seed.
            for row in sorted(shard.rows[text_hash][0] for text_hash in fresh):
                yield Text(shard.text_hashes[row], texts[row].as_py(), tokens[row].as_py())

    def deliver(self, arrived: Embedded | Dead) -> None:
        """Make what the engine brings durable, and finish every shard that waited for nothing else."""
        with self._turn:
            if isinstance(arrived, Embedded):
                self.journal.add(arrived.text_hashes, arrived.vectors)
                self.new += len(arrived.text_hashes)
                settled = arrived.text_hashes
            else:
                settled = [arrived.text_hash]
            for place, text_hash in enumerate(settled):
                for shard in self._waiting.pop(text_hash):
                    if isinstance(arrived, Embedded):
                        self._place(shard, text_hash, arrived.vectors[place])
                    else:
                        self._reject(shard, arrived)
                        self._settle(shard, text_hash)
                    if not shard.awaited:
                        self._close(shard)

    def _open(self, part: Part, table: pa.Table) -> _Shard:
        hashes: list[bytes] = table.column("text_hash").to_pylist()
        rows: dict[bytes, list[int]] = {}
        for row, text_hash in enumerate(hashes):
            rows.setdefault(text_hash, []).append(row)
        shard = _Shard(
            part,
            table.column("chunk_id").combine_chunks(),
            table.column("document_id").to_pylist(),
            hashes,
            rows,
            np.zeros((len(hashes), self.dimensions), np.float32),
            awaited=set(rows) - self.dead_before,
            dead=set(rows) & self.dead_before,
        )
        here, elsewhere = self.journal.find(list(shard.awaited))
        for text_hash, vector in here.items():
            self._place(shard, text_hash, np.frombuffer(vector, np.float32))
        for described, places in elsewhere.items():
            holder = Part.model_validate_json(described)
            try:
                stored = read_part(self.store, self.source, holder, ["embedding"]).column("embedding")
            except PartDamaged:
                # Garbage collection took it since: its texts count as never embedded.
                self.journal.forget(holder.key)
                continue
            for text_hash, place in places:
                self._place(shard, text_hash, np.frombuffer(stored[place].as_buffer(), np.float32))
        return shard

    def _place(self, shard: _Shard, text_hash: bytes, vector: NDArray[np.float32]) -> None:
        shard.vectors[shard.rows[text_hash]] = vector
        self._settle(shard, text_hash)

    def _settle(self, shard: _Shard, text_hash: bytes) -> None:
        shard.awaited.discard(text_hash)
        self.settled += len(shard.rows[text_hash])

    def _reject(self, shard: _Shard, dead: Dead) -> None:
        row = shard.rows[dead.text_hash][0]
        shard.dead.add(dead.text_hash)
        self.rejected[dead.text_hash.hex()] = {
            "source": self.source,
            "document_id": shard.document_ids[row],
            "chunk_id": str(uuid.UUID(bytes=shard.chunk_ids[row].as_py())),
            "text_hash": dead.text_hash.hex(),
            "error_class": dead.error_class,
            "reason": dead.message,
            "attempts": dead.attempts,
        }

    def _close(self, shard: _Shard) -> None:
        """Write the shard's part."""
        valid = np.array([text_hash not in shard.dead for text_hash in shard.text_hashes], bool)
        count = len(shard.text_hashes)
        embedding = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(4 * self.dimensions),
            count,
            [
                None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little")),
                pa.py_buffer(shard.vectors),
            ],
        )
        table = pa.table(
            [shard.chunk_ids, pa.array(shard.text_hashes, HASH), embedding], schema=vectors(self.dimensions)
        )
        want = self.want(shard.part, frozenset(shard.dead))
        part = write_part(
            self.store,
            table,
            asset=self.asset,
            source=self.source,
            shard=want.shard,
            key=want.key,
            inputs=want.inputs,
            dead=want.dead,
            compression="none",
        )
        hashes = shard.text_hashes
        self.journal.index(part, (h if there else None for h, there in zip(hashes, valid, strict=True)))
        self.made.append(part)
