"""What a region's store and database say, each asked once for all sources: one connection, however many they are."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from embedding_assets.errors import PermanentError, PipelineError
from embedding_assets.operations.deployment import Deployment, another_live_model
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.indexes.hnsw import graphs_for, next_larger, parameters_of
from embedding_assets.pgvector.indexes.measurement import shortfall, stored_measurement
from embedding_assets.pgvector.publishing.forget import Held, held
from embedding_assets.pgvector.reading.status import ServedSource, region_status
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.pgvector.schema.language import is_wanted
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.pgvector.schema.models import live_slot
from embedding_assets.pgvector.schema.roles import is_row_security_on
from embedding_assets.settings.models import Settings
from embedding_assets.snapshots import log
from embedding_assets.snapshots.listing import unlisted
from embedding_assets.snapshots.names import REPLICA
from embedding_assets.snapshots.slots import Slot
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store

CURE: Final = "embedding-assets materialize"

_UNSAID: Final = (
    "row-level security is on in the database, and the settings do not say so: it stays on. Cure: write "
    "`row_level_security:` with the sources that each role may read, or `row_level_security: off`"
)


class Served(NamedTuple):
    """A source in a region's database: what is served, whether its indexes are as the settings say, and how well the
    live one finds."""

    what: ServedSource
    as_set: bool
    degraded: str | None


class Replica(NamedTuple):
    """A source in a region's store."""

    head: Snapshot | None = None
    lost: str | None = None
    """What the store does not list, with its size, of the parts that the head names."""
    error: str | None = None
    """Why its log can't be read; the other sources' may well be."""


class RegionState(NamedTuple):
    """What a region's store and database say; an error where one can't be asked."""

    name: str
    settings: Settings
    store: Store | None = None
    replicas: Mapping[str, Replica] = {}
    live: Slot | None = None
    unsaid: str | None = None
    served: Mapping[str, Served] = {}
    held: Sequence[Held] = ()
    """What the database holds of each source, also of those that were not asked for."""
    error: PipelineError | None = None


def ask(deployment: Deployment, region: str, sources: Sequence[str]) -> RegionState:
    """Ask the region's store and database of these sources. Where one can't be asked the other is all the same."""
    asked = RegionState(region, deployment.settings)
    try:
        store = deployment.store(region)
        asked = asked._replace(store=store)
        asked = asked._replace(replicas=dict(_replicas(store, sources)))
    except PipelineError as error:
        asked = asked._replace(error=error)
    try:
        with deployment.connect(region) as conn, pipeline_errors("asking for the region's state"):
            return _of_database(deployment, conn, asked, sources) if is_migrated(conn) else asked
    except PipelineError as error:
        return asked._replace(error=asked.error or error)


def searched_slot(conn: Connection, region: str) -> Slot:
    """The slot that searches of the region read. Raises PermanentError where it serves nothing yet."""
    slot = live_slot(conn) if is_migrated(conn) else None
    if slot is None:
        raise PermanentError(f"region {region} serves nothing yet. Cure: {CURE}")
    return slot


def lost_of(store: Store, heads: Iterable[Snapshot]) -> str | None:
    """A sentence on what a store does not list of its heads. What has its size and other bytes is for `verify`."""
    lost = [part.path(head.source) for head in heads for part in unlisted(store, head)]
    if not lost:
        return None
    more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
    return f"store {store.url}: {lost[0]}{more} lost, or of another size than recorded. Cure: {CURE}"


def _replicas(store: Store, sources: Sequence[str]) -> Iterator[tuple[str, Replica]]:
    for source in sources:
        try:
            head = log.head(store, REPLICA, source)
            yield source, Replica(head, lost=lost_of(store, [head] if head else []))
        except PermanentError as error:
            yield source, Replica(error=str(error))


def _of_database(deployment: Deployment, conn: Connection, asked: RegionState, sources: Sequence[str]) -> RegionState:
    live = live_slot(conn)
    served = {
        each.source: _look(deployment, conn, each, live) for each in region_status(conn) if each.source in sources
    }
    notes = [another_live_model(deployment.settings.live_model, live)]
    if deployment.settings.row_level_security is None and is_row_security_on(conn):
        notes.append(_UNSAID)
    unsaid = ". ".join(note for note in notes if note) or None
    return asked._replace(live=live, served=served, unsaid=unsaid, held=held(conn))


def _look(deployment: Deployment, conn: Connection, served: ServedSource, live: Slot | None) -> Served:
    generation, hnsw = published_generation(conn, served.source), deployment.hnsw
    if generation is None:  # dropped a moment ago
        return Served(served, as_set=False, degraded=None)
    built, hybrid = {slot: parameters_of(conn, generation, slot) for slot in hnsw}, deployment.settings.hybrid
    as_set = all(built[slot] in graphs_for(hnsw[slot]) for slot in hnsw) and is_wanted(
        conn, served.language, hybrid.language if hybrid else None
    )
    measured = stored_measurement(conn, generation, live) if live is not None else None
    degraded = None
    if live is not None and measured is not None and (parameters := built.get(live)) is not None:
        larger, target = next_larger(parameters, hnsw[live]), deployment.settings.target_recall
        degraded = shortfall(live, measured.recall, measured.ef_search, target, larger)
    return Served(served, as_set, degraded)
