"""The upkeep of every region's tables and indexes, in the quiet hours: what was seen, and what was done about it."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.indexes.upkeep import act, examine, findings, published_sources
from embedding_assets.pgvector.locks import SourceBusy
from embedding_assets.pgvector.schema.migrations import ensure_migrated, has_tables
from embedding_assets.telemetry.events import Tell, unheard


class UpkeepEntry(NamedTuple):
    """One line of the report: what was seen of a source in a region, and what was done about it.

    Its fields are those of `upkeep --json`, which are stable. `source` is empty where it concerns the whole region.
    Where nothing was found `did` is "nothing".
    """

    region: str
    source: str
    saw: str
    did: str
    failed: bool


def is_quiet(deployment: Deployment) -> bool:
    """Whether now is in the quiet hours."""
    return deployment.settings.quiet_hours.contains(datetime.now(UTC))


def keep_up(
    deployment: Deployment, regions: Sequence[str], may_go_on: Callable[[], bool], tell: Tell = unheard
) -> Iterator[UpkeepEntry]:
    """Examine every source that the regions serve, and mend what needs it, one thing after another.

    What is under way is brought to its end; nothing else is begun once `may_go_on` says no. A region that can't be
    reached, or a source whose upkeep fails, is told of, and the others go on.
    """
    for region in regions:
        try:
            # A run of the hour before may still be at it: by then it has done the work.
            with deployment.sole_writer("upkeep", region, tell=tell):
                yield from _keep_up_region(deployment, region, may_go_on, tell)
        except PipelineError as error:
            yield UpkeepEntry(region, "", f"could not be reached: {str(error).rstrip('.')}", "nothing", failed=True)


def _keep_up_region(
    deployment: Deployment, region: str, may_go_on: Callable[[], bool], tell: Tell
) -> Iterator[UpkeepEntry]:
    with deployment.connect(region) as conn:
        if not has_tables(conn):
            yield UpkeepEntry(region, "", "serves nothing yet", "nothing", failed=False)
            return
        ensure_migrated(conn)
        for source in published_sources(conn):
            if not may_go_on():
                yield UpkeepEntry(
                    region, "", f"{source} and what follows it: not looked at", "the time is up", failed=False
                )
                return
            try:
                yield from _keep_up_source(deployment, conn, region, source, may_go_on, tell)
            except SourceBusy:
                yield UpkeepEntry(region, source, "it is being loaded", "nothing, its turn comes again", failed=False)
            except PipelineError as error:
                if conn.closed:
                    raise
                yield UpkeepEntry(region, source, str(error), "nothing", failed=True)


def _keep_up_source(
    deployment: Deployment, conn: Connection, region: str, source: str, may_go_on: Callable[[], bool], tell: Tell
) -> Iterator[UpkeepEntry]:
    hnsw, target = deployment.hnsw, deployment.settings.target_recall
    state = examine(conn, source, target, tell)
    if state is None:
        return
    to_mend = findings(state, hnsw, target, seconds=60 * deployment.settings.quiet_hours.minutes)
    if not to_mend:
        yield UpkeepEntry(region, source, str(state), "nothing", failed=False)
    for finding in to_mend:
        if may_go_on():
            done = act(conn, state.generation, finding, hnsw, target, tell, deployment.build_means(region))
        else:
            done = "nothing, the time is up: its turn comes again"
        yield UpkeepEntry(region, source, finding.what, done, failed=False)
