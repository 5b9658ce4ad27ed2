"""The second asset: documents cut into chunks."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import dagster as dg

from embedding_assets.chunking.stage import prepare_chunks
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.healing import heal_head
from embedding_assets.orchestration.assets import metadata
from embedding_assets.orchestration.assets.boundary import Stopwatch, at_work, commit, handed_on, snapshot_asset
from embedding_assets.orchestration.checks import inline
from embedding_assets.orchestration.resources.progress import Telemetry
from embedding_assets.snapshots import log
from embedding_assets.snapshots.changes import count_changes
from embedding_assets.snapshots.layers import read_layer
from embedding_assets.snapshots.names import CHUNKS
from embedding_assets.snapshots.snapshot import Layer, Snapshot
from embedding_assets.snapshots.stores import Store

_SAMPLE: Final = 8


def build(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """`chunks`, one partition a source."""

    @snapshot_asset(
        CHUNKS,
        partitions,
        {"python", "parquet"},
        [
            inline.spec(
                CHUNKS, "offsets_reproduce_text", "Every chunk is the span of its document that it names.", partitions
            )
        ],
    )
    def chunks(
        context: dg.AssetExecutionContext,
        raw_docs: Snapshot,
        deployment: dg.ResourceParam[Deployment],
        telemetry: dg.ResourceParam[Telemetry],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        """Token-exact chunks of the documents; shards whose documents are unchanged are not read."""
        source, watch, store = context.partition_key, Stopwatch(), deployment.primary
        tell = telemetry.of(context)
        with at_work(context, deployment, tell):
            heal_head(deployment, CHUNKS, source)
            documents = log.newest(store, raw_docs)
            previous = log.head(store, CHUNKS, source)
            chunking = deployment.settings.sources[source].chunking
            draft = prepare_chunks(
                store, documents, chunking, deployment.runner(deployment.settings.primary_region, tell)
            )
            checks = [inline.offsets_reproduce_text(store, documents, draft)]
            snapshot = yield from commit(store, draft, checks, tell)
            figures = _metadata(context.log, store, previous, snapshot, draft.made, watch.seconds)
        yield handed_on(snapshot, figures, checks)

    return chunks


def _metadata(
    log: logging.Logger,
    store: Store,
    previous: Snapshot | None,
    snapshot: Snapshot,
    made: Sequence[Layer],
    seconds: float,
) -> dict[str, Any]:
    """What is told of a snapshot of chunks, with a sample of what the run made."""
    count = partial(count_changes, store, CHUNKS, "chunk_id", "text_hash", previous, snapshot)
    rows_made = sum(layer.rows for layer in made)
    figures = metadata.figures(
        log,
        snapshot,
        metadata.optional(log, "What was changed", lambda: metadata.changes(count)) | {"chunks_made": rows_made},
        lambda: metadata.rate("chunks_per_second", rows_made, seconds),
        seconds=seconds,
    )
    if made:
        figures |= metadata.optional(log, "A sample of the chunks", lambda: _sample(store, snapshot.source, made[0]))
    return figures


def _sample(store: Store, source: str, layer: Layer) -> dict[str, Any]:
    rows = read_layer(store, source, layer, ["document_id", "ordinal", "tokens", "text"]).table
    # From all over the shard, rather than the first document's.
    sample = rows.take(list(range(0, len(rows), max(1, len(rows) // _SAMPLE))))
    return {"sample": metadata.table(sample.slice(0, _SAMPLE).to_pylist())}
