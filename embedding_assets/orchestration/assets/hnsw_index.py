"""The index: built and measured on the loaded table, which is then published."""

import logging
from collections.abc import Mapping
from typing import Any

import dagster as dg

from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.regions import searched_slot
from embedding_assets.operations.replica_shards import shard_refs
from embedding_assets.orchestration.assets import metadata
from embedding_assets.orchestration.assets.boundary import Stopwatch, at_work, stage_asset
from embedding_assets.orchestration.checks import inline
from embedding_assets.orchestration.partitions import region_and_source
from embedding_assets.orchestration.resources.alerts import alert
from embedding_assets.orchestration.resources.progress import Telemetry
from embedding_assets.pgvector.indexes.hnsw import Built
from embedding_assets.pgvector.indexes.index import IndexReport, build_indexes, invalid_indexes
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.snapshots import replication
from embedding_assets.snapshots.names import INDEX, TABLE
from embedding_assets.snapshots.slots import Slot


def build(partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """`hnsw_index`, one partition a region and source."""

    @stage_asset(
        INDEX,
        partitions,
        {"postgres"},
        [
            inline.spec(INDEX, "index_valid", "Every index of what readers see exists and is valid.", partitions),
            inline.spec(
                INDEX,
                "recall_at_10",
                "The index finds what an exact search finds, at the stored ef_search.",
                partitions,
                blocking=False,
            ),
        ],
        deps=[TABLE],
    )
    def hnsw_index(
        context: dg.AssetExecutionContext,
        deployment: dg.ResourceParam[Deployment],
        telemetry: dg.ResourceParam[Telemetry],
    ) -> dg.MaterializeResult:
        """Primary key and an HNSW index for each model on the loaded table; recall measured; then published in one
        short transaction."""
        region, source = region_and_source(context.partition_key)
        watch, target, tell = Stopwatch(), deployment.settings.target_recall, telemetry.of(context)
        with at_work(context, deployment, tell), deployment.prepared(region, tell) as conn:
            replica = replication.current(deployment.store(region), source)
            refs = shard_refs(replica)
            means = deployment.build_means(region)
            reports = build_indexes(conn, source, replica.root, deployment.hnsw, target, tell, means)
            serving = publish(conn, source, replica.root, refs, tell)
            invalid = invalid_indexes(conn, serving)
            live = searched_slot(conn, region)
        _alert_if_degraded(context, reports[live], target)
        figures: dict[str, Any] = {
            "dagster/row_count": sum(ref.rows for ref in refs),
            "seconds": round(watch.seconds, 3),
        }
        for slot, report in reports.items():
            figures |= _metadata(context.log, slot, report)
        figures |= {"serving_generation": serving.id, "root": replica.root}
        return dg.MaterializeResult(
            data_version=dg.DataVersion(replica.root),
            metadata=figures | _curves(context.log, reports, target),
            check_results=[inline.index_valid(invalid), inline.recall_at_10(reports, live, target)],
        )

    return hnsw_index


def _alert_if_degraded(context: dg.AssetExecutionContext, report: IndexReport, target: float) -> None:
    """Say it once, by the run that measured it."""
    degraded = report.degraded(target)
    if degraded and report.measured_now:
        alert(context.log, f"{context.partition_key} is served, and degraded: {degraded}")


def _metadata(log: logging.Logger, slot: Slot, report: IndexReport) -> dict[str, Any]:
    """What is told of a slot's index."""
    return {
        f"{slot}_recall_at_10": report.recall if report.recall is not None else "nothing to measure",
        f"{slot}_ef_search": report.ef_search,
        f"{slot}_vectors": report.vectors,
        f"{slot}_m": report.hnsw.m,
        f"{slot}_ef_construction": report.hnsw.ef_construction,
        f"{slot}_index_bytes": report.size_bytes,
        **_built(log, slot, report.built),
    }


def _built(log: logging.Logger, slot: Slot, built: Built | None) -> dict[str, Any]:
    """How the index was built, where this run did it."""
    if built is None:
        return {}
    return {
        f"{slot}_build_seconds": round(built.seconds, 3),
        **metadata.optional(
            log, "A figure", lambda: metadata.rate(f"{slot}_vectors_per_second", built.vectors, built.seconds)
        ),
        f"{slot}_memory_estimated_bytes": built.estimate,
        f"{slot}_memory_granted_bytes": built.granted,
        f"{slot}_workers": built.workers,
    }


def _curves(log: logging.Logger, reports: Mapping[Slot, IndexReport], target: float) -> dict[str, Any]:
    """Recall by ef_search as it was measured, as a picture and as a table; nothing where nothing was."""
    curves = {slot: [(p.ef_search, p.recall, p.p50_ms) for p in report.curve] for slot, report in reports.items()}
    if not any(curves.values()):
        return {}
    points = [{"model": slot} | point._asdict() for slot, report in reports.items() for point in report.curve]
    return {
        **metadata.optional(log, "The recall curve", lambda: {"recall_curve": metadata.recall_curve(curves, target)}),
        **metadata.optional(log, "The recall table", lambda: {"recall_table": metadata.table(points)}),
    }
