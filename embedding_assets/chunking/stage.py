"""The chunks stage: every raw_docs part becomes the chunks part of the same shard."""

from typing import NamedTuple

from embedding_assets.chunking.chunks import STAGE_VERSION, chunk_documents
from embedding_assets.chunking.options import Chunking
from embedding_assets.snapshots import derivation, log
from embedding_assets.snapshots.draft import Draft, prepare
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.names import CHUNKS
from embedding_assets.snapshots.parts import read_part, write_part
from embedding_assets.snapshots.snapshot import Part, Snapshot
from embedding_assets.snapshots.stores import Store


class ChunkTask(NamedTuple):
    """One shard to be chunked."""

    source: str
    want: derivation.Wanted
    documents: Part
    chunking: Chunking


def prepare_chunks(store: Store, raw_docs: Snapshot, chunking: Chunking, run_shards: derivation.RunShards) -> Draft:
    """Make the chunks of these documents; only shards whose documents changed are read."""
    source = raw_docs.source
    version = f"{STAGE_VERSION} max_tokens={chunking.max_tokens} overlap={chunking.overlap}"
    previous = log.head(store, CHUNKS, source)
    inputs = {part.key: part for part in raw_docs.parts}
    wanted = [
        derivation.Wanted(part.shard, part_key(CHUNKS, version, [part.key]), (part.key,)) for part in raw_docs.parts
    ]
    plan = derivation.plan(store, CHUNKS, source, wanted, previous)
    tasks = [ChunkTask(source, want, inputs[want.inputs[0]], chunking) for want in plan.missing]
    parts = [*plan.kept, *run_shards(make_chunks, store, tasks)]
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
    """Chunk one shard's documents into its part."""
    documents = read_part(store, task.source, task.documents)
    limits = task.chunking
    chunks = chunk_documents(task.source, documents, max_tokens=limits.max_tokens, overlap=limits.overlap)
    return write_part(
        store,
        chunks,
        asset=CHUNKS,
        source=task.source,
        shard=task.want.shard,
        key=task.want.key,
        inputs=task.want.inputs,
    )
