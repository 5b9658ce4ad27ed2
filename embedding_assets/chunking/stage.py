"""The chunks stage: of every raw_docs part, the layers that are new become one layer of chunks of the same shard."""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.chunking.chunks import STAGE_VERSION, chunk_documents
from embedding_assets.chunking.options import Chunking
from embedding_assets.snapshots import log
from embedding_assets.snapshots.derivation import Growth, Shelf, Wanted, growth
from embedding_assets.snapshots.draft import Draft, prepare
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import NOTHING_GONE, Rows, read_layer, write_layer
from embedding_assets.snapshots.names import CHUNKS
from embedding_assets.snapshots.parts import merged, read_layers
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.snapshots.tasks import Run, Task

_CUT_BYTES_A_SECOND: Final = 750_000
"""Of documents as they are stored, compressed to a third: 8.6 MB took 11.8 s (bpe-openai keeps the lock)."""


class ChunkTask(Task):
    """One shard to be chunked."""

    grows: Growth
    left: Layer | None
    """The layer that an earlier run left."""
    chunking: Chunking

    @property
    def lock_seconds(self) -> float:
        return sum(layer.bytes for layer in self.grows.made_of) / _CUT_BYTES_A_SECOND


def prepare_chunks(store: Store, raw_docs: Snapshot, chunking: Chunking, run: Run) -> Draft:
    """Make the chunks of these documents; of a shard that changed the documents that did are cut."""
    source = raw_docs.source
    version = version_of(chunking)
    previous = log.head(store, CHUNKS, source)
    shelf = Shelf(store, CHUNKS, source, previous)

    def is_sound(layer: Layer) -> bool:
        return shelf.has(layer) and layer.key == part_key(CHUNKS, version, layer.inputs)

    parts: list[Part] = []
    tasks: list[ChunkTask] = []
    for documents in raw_docs.parts:
        want = Wanted(documents.shard, part_key(CHUNKS, version, [documents.key]), (documents.key,))
        part = shelf.part(want)
        if part is not None:
            parts.append(part)
            continue
        grows = growth(documents, shelf.before.get(documents.shard), is_sound)
        delta = Wanted(documents.shard, part_key(CHUNKS, version, grows.inputs), grows.inputs)
        left = shelf.layer(delta) if grows.under and grows.made_of else None
        tasks.append(ChunkTask(source=source, grows=grows, left=left, chunking=chunking))
    parts += run(make_chunks, store, tasks)
    return prepare(
        asset=CHUNKS,
        source=source,
        version=version,
        shard_bits=raw_docs.shard_bits,
        parts=parts,
        counts={"chunks": sum(part.rows for part in parts)},
        upstream=[raw_docs],
        after=previous,
    )


def make_chunks(store: Store, task: ChunkTask) -> Part:
    """Chunk what is new of a shard's documents, as a layer of its part."""
    source, grows, layer = task.source, task.grows, task.left
    key = part_key(CHUNKS, version_of(task.chunking), [grows.of.key])
    if not grows.under:
        base = _make(store, task, None)
        return grows.part(key, base, base.rows)
    below = read_layers(store, source, grows.under, ["document_id"])
    if layer is None and grows.made_of:
        layer = _make(store, task, below)
    rows = below if layer is None else merged([below, read_layer(store, source, layer, ["document_id"])])
    return grows.part(key, layer, len(rows.names))


def _make(store: Store, task: ChunkTask, below: Rows | None) -> Layer:
    """Cut the documents that are new; `below` has the `document_id` of the chunks that their layer will lie on."""
    grows, limits = task.grows, task.chunking
    documents = read_layers(store, task.source, grows.made_of)
    chunks = chunk_documents(task.source, documents.table, max_tokens=limits.max_tokens, overlap=limits.overlap)
    gone = NOTHING_GONE
    if below is not None:
        touched = pa.concat_arrays([*documents.names.chunks, documents.gone])
        before = below.names.filter(pc.is_in(below.table["document_id"], value_set=touched))
        gone = before.filter(pc.invert(pc.is_in(before, value_set=chunks["chunk_id"]))).combine_chunks()
    return write_layer(
        store,
        chunks,
        asset=CHUNKS,
        source=task.source,
        shard=grows.of.shard,
        key=part_key(CHUNKS, version_of(limits), grows.inputs),
        inputs=grows.inputs,
        gone=gone,
    )


def version_of(chunking: Chunking) -> str:
    """Changes when cutting would give other chunks for the same documents."""
    return f"{STAGE_VERSION} max_tokens={chunking.max_tokens} overlap={chunking.overlap}"
