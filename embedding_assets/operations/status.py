"""What a region serves of each source, against what the primary has: what `status` tells, and what has to be run."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import BaseModel

from embedding_assets.errors import PipelineError
from embedding_assets.operations import outcomes
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.findings import links_behind
from embedding_assets.operations.regions import CURE, RegionState, Served, ask, lost_of
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import CHUNKS, RAW_DOCS, REPLICA, SOURCE_ASSETS, VECTORS
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store


class SourceStatus(BaseModel):
    """One source in one region. The fields of `status --json`; they are stable."""

    source: str
    region: str
    snapshot: int = 0
    """Number of the primary's chunks snapshot; 0 before the first."""
    documents: int = 0
    chunks: int = 0
    rejected: int = 0
    root: str | None = None
    """What the region serves: the root of the replica that its table was loaded from."""
    rows: int = 0
    live_model: str | None = None
    index: str = "none"
    """`valid`, `none` or `invalid`."""
    current: bool = False
    """Whether the region serves the primary's newest snapshots from a whole store, indexed as the settings say, and the
    source itself could be looked at and brought up to date when that was last tried."""
    orphan: bool = False
    """Whether the region has something of it, and the settings do not."""
    degraded: str | None = None
    """What makes its searches worse than they should be, with the cure; what is served is right."""
    lag_seconds: int | None = None
    """Since the first commit of the primary that the region does not serve, or since the source was last read without
    trouble, whichever is longer; 0 if it is current, None if nothing is there."""
    looked_at: datetime | None = None
    """When the source was last read without trouble, as far as is known here."""
    unsaid: str | None = None
    """What the region's database has, and the settings say nothing of: it stays so."""
    problem: str | None = None
    """Why the source's newest documents are not in the primary's snapshots, or what a store has lost of them."""
    error: str | None = None
    """Why the region could not be asked."""


def status(deployment: Deployment, sources: Sequence[str], region_names: Sequence[str]) -> list[SourceStatus]:
    """Every source in every region. A region that can't be reached has its error told; the others are told of."""
    return of_regions(deployment, sources, [ask(deployment, region, sources) for region in region_names])


def of_regions(deployment: Deployment, sources: Sequence[str], regions: Sequence[RegionState]) -> list[SourceStatus]:
    """The same of regions that have been asked."""
    primaries = {source: _told_of_losses(_primary(deployment, source)) for source in sources}
    return [_of(primaries[source], region) for source in sources for region in regions]


def is_current(deployment: Deployment, region: str, source: str) -> bool:
    """Whether a run of the region and source would find nothing to do."""
    state = ask(deployment, region, [source])
    return state.error is None and _serves_newest(_primary(deployment, source), state)


def is_behind(row: SourceStatus, max_lag: int) -> bool:
    """Whether the region is behind by more seconds than that; where nothing is there, it is."""
    return not row.current and (row.lag_seconds is None or row.lag_seconds > max_lag or max_lag == 0)


def serving(deployment: Deployment, region: str, sources: Sequence[str]) -> dict[str, bool]:
    """Whether the region serves the newest of each source, asked once for all. Raises where it can't be asked."""
    state = ask(deployment, region, sources)
    if state.error is not None:
        raise state.error
    return {source: _serves_newest(_primary(deployment, source), state) for source in sources}


def in_step(deployment: Deployment, source: str, regions: Sequence[RegionState]) -> Mapping[str, Snapshot] | None:
    """The heads of the source's own assets, if its last run left no trouble, no store has lost a file of them, and all
    of these regions serve them; else None."""
    primary = _told_of_losses(_primary(deployment, source))
    if primary.problem is not None or len(primary.heads) < len(SOURCE_ASSETS):
        return None
    served = all(region.error is None and _serves_newest(primary, region) for region in regions)
    return primary.heads if served else None


class _Primary(NamedTuple):
    """A source's heads in the primary's store, and how its stages ended last."""

    source: str
    store: Store
    heads: Mapping[str, Snapshot]
    looked_at: datetime | None
    problem: str | None


def _primary(deployment: Deployment, source: str) -> _Primary:
    store = deployment.primary
    try:
        newest = {asset: log.head(store, asset, source) for asset in SOURCE_ASSETS}
    except PipelineError as error:
        return _Primary(source, store, {}, None, str(error))
    heads = {asset: head for asset, head in newest.items() if head is not None}
    looks = {stage: outcomes.last(deployment.home, source, stage) for stage in (outcomes.SWEEP, *SOURCE_ASSETS)}
    reading = looks[RAW_DOCS]
    looked_at = reading.succeeded_at if reading else None
    if looked_at is None and RAW_DOCS in heads:
        # By another machine, or a home that is lost: at least then it was read.
        looked_at = datetime.fromisoformat(heads[RAW_DOCS].created_at)
    return _Primary(source, store, heads, looked_at, _problem(heads, looks, looked_at))


def _told_of_losses(primary: _Primary) -> _Primary:
    """With what the primary's store has lost of the heads as its problem, where it has no other."""
    if primary.problem is not None:
        return primary
    try:
        return primary._replace(problem=lost_of(primary.store, primary.heads.values()))
    except PipelineError as error:
        return primary._replace(problem=str(error))


def _problem(
    heads: Mapping[str, Snapshot], looks: Mapping[str, outcomes.Ended | None], looked_at: datetime | None
) -> str | None:
    """Why the source's newest documents may not be in its heads; the first stage's trouble is the others' as well."""
    for stage, ended in looks.items():
        if ended is None or ended.error is None or ended.failed_at is None:
            continue
        # Committed since, perhaps by another machine.
        since = looked_at if stage == outcomes.SWEEP else _committed(heads.get(stage))
        if since is None or since < ended.failed_at:
            return f"{stage}: {ended.error}"
    return next((f"{what}. Cure: {CURE}" for _, what in links_behind(heads)), None)


def _committed(head: Snapshot | None) -> datetime | None:
    return datetime.fromisoformat(head.created_at) if head else None


def _serves_newest(primary: _Primary, region: RegionState) -> bool:
    """Whether the region has and serves what the primary's heads say, each link of it."""
    replica, served = region.replicas.get(primary.source), region.served.get(primary.source)
    newest = {asset: primary.heads[asset].root for asset in (CHUNKS, *VECTORS) if asset in primary.heads}
    return (
        replica is not None
        and replica.head is not None
        and replica.lost is None
        and replica.head.upstream == newest
        and served is not None
        and served.what.target_root == replica.head.root
        and _index(served) == "valid"
        and served.as_set
    )


def _index(served: Served | None) -> str:
    if served is None:
        return "none"
    indexes = served.what.indexes
    return "valid" if indexes and all(each.valid for each in indexes) else "invalid"


def _of(primary: _Primary, region: RegionState) -> SourceStatus:
    served, replica = region.served.get(primary.source), region.replicas.get(primary.source)
    documents, chunks = primary.heads.get(RAW_DOCS), primary.heads.get(CHUNKS)
    current = region.error is None and primary.problem is None and _serves_newest(primary, region)
    return SourceStatus(
        source=primary.source,
        region=region.name,
        snapshot=chunks.number if chunks else 0,
        documents=documents.counts["documents"] if documents else 0,
        chunks=chunks.counts["chunks"] if chunks else 0,
        rejected=len(documents.rejected) if documents else 0,
        root=served.what.target_root if served else None,
        rows=served.what.rows if served else 0,
        live_model=region.live,
        index=_index(served),
        current=current,
        degraded=served.degraded if served else None,
        unsaid=region.unsaid,
        lag_seconds=0 if current else _lag(primary, region),
        looked_at=primary.looked_at,
        problem=primary.problem or (replica.lost if replica else None),
        error=str(region.error) if region.error else replica.error if replica else None,
    )


def _lag(primary: _Primary, region: RegionState) -> int | None:
    begun: list[datetime] = []
    # A log that cannot be read is told of elsewhere.
    with suppress(PipelineError):
        if not _serves_newest(primary, region) and (unserved := _unserved_since(primary, region)) is not None:
            begun.append(unserved)
    if primary.problem is not None and primary.looked_at is not None:
        begun.append(primary.looked_at)
    return int((datetime.now(UTC) - min(begun)).total_seconds()) if begun else None


def _unserved_since(primary: _Primary, region: RegionState) -> datetime | None:
    """When the primary first committed what the region does not serve. Where the commits are not the reason, the time
    of the newest: since when it is so is not known."""
    served_since = _replicated_at(primary.source, region)
    behind: list[datetime] = []
    newest: list[datetime] = []
    for asset in (CHUNKS, *VECTORS):
        if asset not in primary.heads:
            continue
        newest.append(datetime.fromisoformat(primary.heads[asset].created_at))
        for number in reversed(log.numbers(primary.store, asset, primary.source)):
            committed = _committed(log.entry(primary.store, asset, primary.source, number))
            if committed is None or (served_since is not None and committed <= served_since):
                break
            behind.append(committed)
    return min(behind, default=max(newest, default=None))


def _replicated_at(source: str, region: RegionState) -> datetime | None:
    """When the region's store got what its table serves; None where that is not known."""
    served = region.served.get(source)
    if region.store is None or served is None:
        return None
    for number in reversed(log.numbers(region.store, REPLICA, source)):
        entry = log.entry(region.store, REPLICA, source, number)
        if entry is not None and entry.root == served.what.target_root:
            return _committed(entry)
    return served.what.published_at
