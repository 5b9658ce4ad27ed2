"""The chunks stage: every raw_docs part becomes the chunks part of the same shard."""

from embedding_assets.chunking.chunks import STAGE_VERSION, chunk_documents
from embedding_assets.snapshots import derivation, log
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.names import CHUNKS
from embedding_assets.snapshots.parts import read_part, write_part
from embedding_assets.snapshots.snapshot import Part, Snapshot
from embedding_assets.snapshots.stores import Store


def snapshot_chunks(
    store: Store,
    raw_docs: Snapshot,
    *,
    max_tokens: int,
    overlap: int,
    run_shards: derivation.RunShards,
    accept: derivation.Accept = lambda snapshot, made: None,
) -> Snapshot:
    """Commit the chunks of these documents, if `accept` does not raise; only shards whose documents changed are
    read."""
    source = raw_docs.source
    version = f"{STAGE_VERSION} max_tokens={max_tokens} overlap={overlap}"
    previous = log.head(store, CHUNKS, source)
    inputs = {part.key: part for part in raw_docs.parts}
    wanted = [
        derivation.Wanted(part.shard, part_key(CHUNKS, version, [part.key]), (part.key,)) for part in raw_docs.parts
    ]
    plan = derivation.plan(store, CHUNKS, source, wanted, previous)

    def make(want: derivation.Wanted) -> Part:
        documents = read_part(store, source, inputs[want.inputs[0]])
        chunks = chunk_documents(source, documents, max_tokens=max_tokens, overlap=overlap)
        return write_part(
            store, chunks, asset=CHUNKS, source=source, shard=want.shard, key=want.key, inputs=want.inputs
        )

    parts = [*plan.kept, *run_shards(make, plan.missing)]
    return derivation.commit(
        store,
        previous,
        asset=CHUNKS,
        source=source,
        version=version,
        shard_bits=raw_docs.shard_bits,
        parts=parts,
        counts={"chunks": sum(part.rows for part in parts)},
        upstream={raw_docs.asset: raw_docs.root},
        accept=accept,
    )
