"""The table: a region's replica loaded aside from what readers see."""

import dagster as dg

from embedding_assets.assets import metadata
from embedding_assets.assets.edge import PATIENT, Stopwatch, domain_errors
from embedding_assets.checks import inline
from embedding_assets.deployment import Deployment
from embedding_assets.partitions import region_and_source
from embedding_assets.pgvector.generations import load_generation
from embedding_assets.pgvector.publish import content_differences
from embedding_assets.resources.progress import ProgressDisplay
from embedding_assets.shards import read_shard, shard_refs
from embedding_assets.snapshots.snapshot import Snapshot

ASSET = "pgvector_table"


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """`pgvector_table`, one partition a region and source."""

    @dg.asset(
        name=ASSET,
        partitions_def=partitions,
        group_name="documents_to_search",
        kinds={"postgres"},
        retry_policy=PATIENT,
        check_specs=[
            inline.spec(ASSET, "parity", "The table holds the snapshot's rows, by count and fingerprint.", partitions)
        ],
    )
    def pgvector_table(
        context: dg.AssetExecutionContext,
        s3_replica: Snapshot,
        deployment: dg.ResourceParam[Deployment],
        progress: dg.ResourceParam[ProgressDisplay],
    ) -> dg.MaterializeResult:
        """The replica's rows in a table of their own, with both models' vectors side by side; readers go on with the
        old one until hnsw_index publishes this one."""
        region, source = region_and_source(context.partition_key)
        watch, refs = Stopwatch(), shard_refs(s3_replica)
        with (
            domain_errors(context),
            deployment.sole_writer(ASSET, region, source),
            deployment.database(region) as conn,
        ):
            loaded = load_generation(
                conn,
                source,
                s3_replica.root,
                refs,
                read_shard(deployment.store(region), s3_replica),
                lambda now: progress.show(context, f"{ASSET} of {region}|{source}", now.rows, now.all_rows, "rows"),
            )
            seconds = watch.seconds
            differences = content_differences(conn, loaded.generation, refs) if loaded.rows_written else []
        return dg.MaterializeResult(
            data_version=dg.DataVersion(s3_replica.root),
            metadata={
                "dagster/row_count": loaded.rows,
                "rows_loaded": loaded.rows_written,
                "rows_per_second": metadata.rate(loaded.rows_written, seconds),
                "bytes_sent": loaded.bytes_written,
                "seconds": round(seconds, 3),
                "shards": loaded.shards,
                "generation": loaded.generation.id,
                "root": s3_replica.root,
            },
            check_results=[inline.table_parity(loaded.rows, loaded.rows_written, differences)],
        )

    return pgvector_table
