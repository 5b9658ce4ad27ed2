"""The replica: a region's store brought in step with the primary's."""

from collections.abc import Iterator

import dagster as dg

from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.assets import metadata
from embedding_assets.orchestration.assets.boundary import Stopwatch, at_work, commit, handed_on, snapshot_asset
from embedding_assets.orchestration.checks import inline
from embedding_assets.orchestration.partitions import region_and_source
from embedding_assets.orchestration.resources.progress import Telemetry
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import CHUNKS, REPLICA, VECTORS
from embedding_assets.snapshots.replication import prepare_replica
from embedding_assets.snapshots.snapshot import Snapshot


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """`s3_replica`, one partition a region and source."""

    @snapshot_asset(
        REPLICA,
        partitions,
        {"s3", "parquet"},
        [
            inline.spec(
                REPLICA, "parity", "The region's replica is the primary's snapshots, byte for byte.", partitions
            ),
            inline.spec(REPLICA, "models_cover_same_chunks", "Every model version covers the same chunks.", partitions),
        ],
        ins={asset: dg.AssetIn() for asset in (CHUNKS, *VECTORS)},
    )
    def s3_replica(
        context: dg.AssetExecutionContext,
        chunks: Snapshot,
        deployment: dg.ResourceParam[Deployment],
        telemetry: dg.ResourceParam[Telemetry],
        **vectors: Snapshot,
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        """The parts of chunks and the models' vectors, in the region's own store; only what it lacks is copied."""
        region, source = region_and_source(context.partition_key)
        watch, primary, store = Stopwatch(), deployment.primary, deployment.store(region)
        tell = telemetry.of(context)
        with at_work(context, deployment, tell):
            upstream = [log.newest(primary, snapshot) for snapshot in (chunks, *map(vectors.__getitem__, VECTORS))]
            draft, parts, copied = prepare_replica(primary, store, source, upstream, deployment.runner(region, tell))
            checks = [
                inline.replica_parity(draft, upstream),
                inline.models_cover_same_chunks(draft, deployment.settings.models),
            ]
            snapshot = yield from commit(store, draft, checks, tell, derived_in=primary)
        seconds = watch.seconds
        figures = metadata.figures(
            context.log,
            snapshot,
            {"parts_copied": parts, "bytes_copied": copied},
            lambda: metadata.rate("megabytes_per_second", copied / 1e6, seconds),
            seconds=seconds,
        )
        yield handed_on(snapshot, figures, checks)

    return s3_replica
