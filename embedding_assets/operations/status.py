"""What a region serves of each source, against what the primary has: what `status` tells, and what has to be run."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import BaseModel

from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector.connection import Connection, connect, pipeline_errors
from embedding_assets.pgvector.indexes.index import parameters_of
from embedding_assets.pgvector.indexes.recall import shortfall, stored_measurement
from embedding_assets.pgvector.loading.generations import published_generation
from embedding_assets.pgvector.reading.status import ServedSource, region_status
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import CHUNKS, RAW_DOCS, VECTORS
from embedding_assets.snapshots.replication import target
from embedding_assets.snapshots.slots import Slot


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
    regions = {region: _ask(deployment, region, sources) for region in region_names}
    return [_of(deployment, source, name, region) for source in sources for name, region in regions.items()]


def is_current(deployment: Deployment, region: str, source: str) -> bool:
    """Whether a run of the region and source would find nothing to do."""
    (row,) = status(deployment, [source], [region])
    return row.current


class _Served(NamedTuple):
    """A source in a region's database: what is served, whether its indexes are as the settings say, and how well the
    live one finds."""

    what: ServedSource
    as_set: bool
    degraded: str | None


class _Region(NamedTuple):
    """What a region's database says, asked once for all sources; an error instead where it can't be asked."""

    live: Slot | None = None
    served: Mapping[str, _Served] = {}
    error: str | None = None


def _ask(deployment: Deployment, region: str, sources: Sequence[str]) -> _Region:
    try:
        with connect(deployment.dsn(region)) as conn, pipeline_errors("asking for the region's state"):
            if not is_migrated(conn):
                return _Region()
            live = next((slot for slot, model in bound_models(conn).items() if model.live), None)
            served = {
                found.source: _look(deployment, conn, found, live)
                for found in region_status(conn)
                if found.source in sources
            }
            return _Region(live, served)
    except PipelineError as error:
        return _Region(error=str(error))


def _look(deployment: Deployment, conn: Connection, served: ServedSource, live: Slot | None) -> _Served:
    generation, hnsw = published_generation(conn, served.source), deployment.hnsw
    if generation is None:  # dropped a moment ago
        return _Served(served, as_set=False, degraded=None)
    as_set = all(parameters_of(conn, generation, slot) == hnsw[slot] for slot in hnsw)
    measured = stored_measurement(conn, generation, live) if live is not None else None
    degraded = None
    if live is not None and measured is not None:
        degraded = shortfall(live, measured.recall, measured.ef_search, deployment.settings.target_recall)
    return _Served(served, as_set, degraded)


def _of(deployment: Deployment, source: str, name: str, region: _Region) -> SourceStatus:
    primary = deployment.primary
    chunks, documents = log.head(primary, CHUNKS, source), log.head(primary, RAW_DOCS, source)
    newest = [log.head(primary, asset, source) for asset in VECTORS]
    found = region.served.get(source)
    served = found.what if found else None
    index = "none"
    if served is not None:
        index = "valid" if served.indexes and all(each.valid for each in served.indexes) else "invalid"
    current = (
        found is not None
        and found.what.target_root == target(primary, source)
        and index == "valid"
        and found.as_set
        and region.live == deployment.settings.live_model
    )
    commits = [datetime.fromisoformat(head.created_at) for head in (chunks, *newest) if head is not None]
    lag = None
    if commits:
        lag = 0 if current else int((datetime.now(UTC) - max(commits)).total_seconds())
    return SourceStatus(
        source=source,
        region=name,
        snapshot=chunks.number if chunks else 0,
        documents=documents.counts["documents"] if documents else 0,
        chunks=chunks.counts["chunks"] if chunks else 0,
        rejected=len(documents.rejected) if documents else 0,
        root=served.target_root if served else None,
        rows=served.rows if served else 0,
        live_model=region.live,
        index=index,
        current=current,
        degraded=found.degraded if found else None,
        lag_seconds=lag,
        error=region.error,
    )
