"""What a region serves of each source, against what the primary has: what `status` tells, and what has to be run."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel

from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector.connection import connect, pipeline_errors
from embedding_assets.pgvector.indexes.index import parameters_of
from embedding_assets.pgvector.indexes.recall import shortfall, stored_measurement
from embedding_assets.pgvector.loading.generations import published_generation
from embedding_assets.pgvector.reading.status import region_status
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import CHUNKS, RAW_DOCS, VECTORS
from embedding_assets.snapshots.replication import target


class SourceStatus(BaseModel):
    """One source in one region. The fields of `status --json`; they are stable."""

    source: str
    region: str
    snapshot: int
    """Number of the primary's chunks snapshot; 0 before the first."""
    documents: int
    chunks: int
    rejected: int
    root: str | None
    """What the region serves: the root of the replica that its table was loaded from."""
    rows: int
    live_model: str | None
    index: str
    """`valid`, `none` or `invalid`."""
    current: bool
    """Whether the region serves the primary's newest snapshots, indexed as the settings say."""
    degraded: str | None
    """What makes its searches worse than they should be, with the cure; what is served is right."""
    lag_seconds: int | None
    """Since the primary committed what the region does not serve yet; 0 if it is current, None if nothing is there."""
    error: str | None
    """Why the region could not be asked."""


def status(deployment: Deployment, sources: Sequence[str], region_names: Sequence[str]) -> list[SourceStatus]:
    """Every source in every region. A region that can't be reached has its error told; the others are told of."""
    return [_of(deployment, source, region) for source in sources for region in region_names]


def is_current(deployment: Deployment, region: str, source: str) -> bool:
    """Whether a run of the region and source would find nothing to do."""
    return _of(deployment, source, region).current


def _of(deployment: Deployment, source: str, region: str) -> SourceStatus:
    primary = deployment.primary
    chunks, documents = log.head(primary, CHUNKS, source), log.head(primary, RAW_DOCS, source)
    newest = [log.head(primary, asset, source) for asset in VECTORS]
    served, live, error, degraded, as_set = None, None, None, None, False
    try:
        with connect(deployment.dsn(region)) as conn, pipeline_errors("asking for the region's state"):
            if is_migrated(conn):
                served = next((found for found in region_status(conn) if found.source == source), None)
                live = next((slot for slot, model in bound_models(conn).items() if model.live), None)
            if served is not None and (generation := published_generation(conn, source)) is not None:
                hnsw = deployment.hnsw
                as_set = all(parameters_of(conn, generation, slot) == hnsw[slot] for slot in hnsw)
                if live is not None and (measured := stored_measurement(conn, generation, live)) is not None:
                    target_recall = deployment.settings.target_recall
                    degraded = shortfall(live, measured.recall, measured.ef_search, target_recall)
    except PipelineError as problem:
        error = str(problem)
    wanted, expected = target(primary, source), deployment.settings.live_model
    index = "none"
    if served is not None:
        index = "valid" if served.indexes and all(found.valid for found in served.indexes) else "invalid"
    current = served is not None and served.target_root == wanted and index == "valid" and as_set and live == expected
    commits = [datetime.fromisoformat(found.created_at) for found in (chunks, *newest) if found is not None]
    lag = None
    if commits:
        lag = 0 if current else int((datetime.now(UTC) - max(commits)).total_seconds())
    return SourceStatus(
        source=source,
        region=region,
        snapshot=chunks.number if chunks else 0,
        documents=documents.counts["documents"] if documents else 0,
        chunks=chunks.counts["chunks"] if chunks else 0,
        rejected=len(documents.rejected) if documents else 0,
        root=served.target_root if served else None,
        rows=served.rows if served else 0,
        live_model=live,
        index=index,
        current=current,
        degraded=degraded,
        lag_seconds=lag,
        error=error,
    )
