"""The table: a region's replica brought into it, by the rows that differ or aside from what readers see."""

import logging
from typing import Any

import dagster as dg

from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.replica_shards import read_change, read_shard, shard_refs
from embedding_assets.orchestration.assets import metadata
from embedding_assets.orchestration.assets.boundary import Stopwatch, at_work, stage_asset
from embedding_assets.orchestration.checks import inline
from embedding_assets.orchestration.partitions import region_and_source
from embedding_assets.orchestration.resources.progress import Telemetry
from embedding_assets.pgvector.loading.generations import Loaded
from embedding_assets.pgvector.loading.load import load
from embedding_assets.pgvector.publishing.publish import prove
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import TABLE
from embedding_assets.snapshots.snapshot import Snapshot


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """`pgvector_table`, one partition a region and source."""

    @stage_asset(
        TABLE,
        partitions,
        {"postgres"},
        [inline.spec(TABLE, "parity", "The table holds the snapshot's rows, by count and fingerprint.", partitions)],
    )
    def pgvector_table(
        context: dg.AssetExecutionContext,
        s3_replica: Snapshot,
        deployment: dg.ResourceParam[Deployment],
        telemetry: dg.ResourceParam[Telemetry],
    ) -> dg.MaterializeResult:
        """The replica's rows in the table, with the models' vectors side by side. A small change is made in the table
        that readers see, a shard at a time; a large one in a table aside, which hnsw_index publishes."""
        region, source = region_and_source(context.partition_key)
        watch, store, tell = Stopwatch(), deployment.store(region), telemetry.of(context)
        with at_work(context, deployment, tell), deployment.prepared(region, tell) as conn:
            replica = log.newest(store, s3_replica)
            refs = shard_refs(replica)
            loaded = load(
                conn,
                source,
                replica.root,
                refs,
                read_shard(store, replica),
                tell,
                lambda: log.newest(store, replica) == replica,
                read_change(store, replica),
            )
            seconds = watch.seconds
            # A delta has proved its rows before it committed them, and the others were proved when they were written.
            whole = loaded.choice.way == "new generation"
            differences = prove(conn, loaded.generation, refs) if whole else []
        return dg.MaterializeResult(
            data_version=dg.DataVersion(replica.root),
            metadata=_metadata(context.log, loaded, replica.root, seconds),
            check_results=[
                inline.table_parity(loaded.rows, loaded.rows if whole else loaded.rows_written, differences)
            ],
        )

    return pgvector_table


def _metadata(log: logging.Logger, loaded: Loaded, root: str, seconds: float) -> dict[str, Any]:
    """What became of the rows, and which way the load took and why, for operators."""
    choice = loaded.choice
    rate = metadata.optional(log, "A figure", lambda: metadata.rate("rows_per_second", loaded.rows_written, seconds))
    return {
        "dagster/row_count": loaded.rows,
        "rows_loaded": loaded.rows_written,
        "rows_inserted": loaded.rows_written - loaded.rows_updated,
        "rows_updated": loaded.rows_updated,
        "rows_deleted": loaded.rows_deleted,
        "way": choice.way,
        "why": choice.why,
        "share_differing": round(choice.share, 4),
        "share_at_crossover": round(choice.crossover_share, 4),
        "estimated_seconds_by_delta": round(choice.delta_seconds, 1),
        "estimated_seconds_by_new_generation": round(choice.generation_seconds, 1),
        **rate,
        "bytes_sent": loaded.bytes_written,
        "seconds": round(seconds, 3),
        "shards": loaded.shards,
        "shards_written": loaded.shards_written,
        "generation": loaded.generation.id,
        "root": root,
    }
