"""The first asset: a source's documents, read, validated and hashed."""

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import dagster as dg

from embedding_assets.operations import dead_letters
from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.assets import metadata
from embedding_assets.orchestration.assets.boundary import Stopwatch, at_work, commit, handed_on, snapshot_asset
from embedding_assets.orchestration.checks import inline
from embedding_assets.orchestration.resources.progress import Telemetry
from embedding_assets.snapshots import log
from embedding_assets.snapshots.changes import count_changes
from embedding_assets.snapshots.names import RAW_DOCS
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.sources.stage import Looked, prepare_source, remember


class RawDocsConfig(dg.Config):
    """What a person may ask of one run."""

    allow_deletes: bool = False
    """Let a run go on that finds more of the source gone than its `max_deleted`."""
    reread: bool = False
    """Read what looks unchanged, too."""


def build(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """`raw_docs`, one partition a source."""

    @snapshot_asset(
        RAW_DOCS,
        partitions,
        {"python", "parquet"},
        [
            inline.spec(RAW_DOCS, "completeness", "The parts hold every document that the source listed.", partitions),
            inline.spec(
                RAW_DOCS,
                "nothing_rejected",
                "No document is a dead letter; fails above the share that the source's settings allow.",
                partitions,
                blocking=False,
            ),
        ],
    )
    def raw_docs(
        context: dg.AssetExecutionContext,
        config: RawDocsConfig,
        deployment: dg.ResourceParam[Deployment],
        telemetry: dg.ResourceParam[Telemetry],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        """The source's documents as they are now: read, validated, normalised to text and hashed.

        Only files that look changed are read. What can't be used is listed with its cure, and the rest goes on.
        """
        source, watch, store = context.partition_key, Stopwatch(), deployment.primary
        settings, tell = deployment.settings.sources[source], telemetry.of(context)
        with (
            at_work(context, deployment, tell),
            dead_letters.rejections_of(deployment, source, RAW_DOCS, None, context.log.warning) as rejections,
        ):
            previous, catalog = log.head(store, RAW_DOCS, source), deployment.catalog(source)
            draft, looked = prepare_source(
                store,
                source,
                deployment.reader(source),
                catalog,
                deployment.runner(deployment.settings.primary_region, tell),
                max_deleted=settings.max_deleted,
                allow_deletes=config.allow_deletes,
                again=None if config.reread else _replayed(previous, rejections),
                tell=tell,
            )
            checks = [inline.documents_complete(draft)]
            snapshot = yield from commit(store, draft, checks, tell)
            remember(catalog, snapshot)
            rejections.commit(snapshot)
            unaccepted = rejections.unaccepted(snapshot.rejected)
            checks.append(inline.nothing_rejected(unaccepted, snapshot, settings.max_rejected))
            figures = _metadata(context.log, store, previous, snapshot, looked, watch.seconds)
        yield handed_on(snapshot, figures, checks)

    return raw_docs


def _replayed(previous: Snapshot | None, rejections: dead_letters.StageRejections) -> set[str]:
    """The items that are read again since somebody asked for it."""
    rejected = previous.rejected if previous else ()
    return {one.item for one in rejected if isinstance(one, RejectedDocument) and one.identity in rejections.replayed}


def _metadata(
    log: logging.Logger, store: Store, previous: Snapshot | None, snapshot: Snapshot, looked: Looked, seconds: float
) -> dict[str, Any]:
    """What is told of a snapshot of documents, and of the look at the source."""
    count = partial(count_changes, store, RAW_DOCS, "document_id", "content_hash", previous, snapshot)
    figures = metadata.optional(log, "What was changed", lambda: metadata.changes(count)) | {
        "items_listed": looked.items,
        "items_read": looked.read,
        "parts_written": looked.parts_written,
        "passed_over": looked.passed_over,
    }
    if looked.passed_over:
        more = ", …" if looked.passed_over > len(looked.passed_over_first) else ""
        figures["passed_over_first"] = ", ".join(looked.passed_over_first) + more
    return metadata.figures(
        log,
        snapshot,
        figures,
        lambda: metadata.rate("items_per_second", looked.items, seconds),
        seconds=seconds,
    )
