"""What the command line does, without its flags: make current, search, verify."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import dagster as dg
from rich.console import Console

from embedding_assets import driver, terminal
from embedding_assets.automation.jobs import SOURCE_ASSETS
from embedding_assets.deployment import Deployment
from embedding_assets.driver import Outcome
from embedding_assets.embedding.query import embed_query
from embedding_assets.errors import PermanentError, PipelineError
from embedding_assets.pgvector import fingerprint
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.schema import bound_models, is_migrated
from embedding_assets.pgvector.search import compare
from embedding_assets.pgvector.search import search as search_region
from embedding_assets.settings import SLOTS
from embedding_assets.shards import read_shard, shard_refs
from embedding_assets.snapshots import log
from embedding_assets.snapshots.replication import ASSET as REPLICA
from embedding_assets.snapshots.replication import missing_or_damaged, target
from embedding_assets.status import is_current


def materialize(
    deployment: Deployment,
    console: Console,
    *,
    sources: Sequence[str],
    regions: Sequence[str],
    allow_deletes: bool = False,
) -> list[Outcome]:
    """Bring everything that is stale up to date, and show each run as it ends."""
    driver.dagster_home(deployment.home)
    outcomes: list[Outcome] = []
    with dg.DagsterInstance.get() as instance, terminal.progress_bars(console) as bars:
        for outcome in driver.materialize(
            deployment,
            instance,
            sources=sources,
            regions=regions,
            is_current=lambda region, source: is_current(deployment, region, source),
            allow_deletes=allow_deletes,
            progress=bars,
        ):
            console.print(terminal.outcome_line(outcome))
            outcomes.append(outcome)
    for trouble in terminal.troubles(outcomes):
        console.print(trouble)
    return outcomes


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """A run as `materialize --json` prints it; pictures and tables are for the UI."""
    told = {
        asset: {name: value for name, value in found.items() if _is_told(value)}
        for asset, found in outcome.metadata.items()
    }
    return asdict(replace(outcome, metadata=told))


def _is_told(value: object) -> bool:
    return isinstance(value, str | int | float) and "base64," not in str(value)


def search(
    deployment: Deployment,
    region: str,
    text: str,
    *,
    k: int,
    source: str | None = None,
    filter: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The nearest chunks by the region's live model, nearest first."""
    with connect(deployment.dsn(region)) as conn:
        models = bound_models(conn) if is_migrated(conn) else {}
        live = next((slot for slot in SLOTS if slot in models and models[slot].live), None)
        if live is None:
            raise PermanentError(f"region {region} serves nothing yet. Cure: embedding-assets materialize")
        vector = embed_query(deployment.binding(live), text)
        return [hit._asdict() for hit in search_region(conn, vector, k, source, filter)]


def verify(deployment: Deployment, sources: Sequence[str], region_names: Sequence[str]) -> list[str]:
    """Hash every part again, compare the logs and the tables: a sentence for each difference."""
    primary = deployment.primary
    found: list[str] = []
    for source in sources:
        for asset in SOURCE_ASSETS:
            try:
                snapshot = log.head(primary, asset, source)
                if snapshot is None:
                    found.append(f"{asset} of source {source} was never materialized")
                else:
                    found += missing_or_damaged(primary, snapshot)
            except PipelineError as error:
                found.append(str(error))
        for region in region_names:
            found += [f"{region}|{source}: {line}" for line in _verify_region(deployment, region, source)]
    return found


def _verify_region(deployment: Deployment, region: str, source: str) -> list[str]:
    try:
        store = deployment.store(region)
        replica = log.head(store, REPLICA, source)
        if replica is None:
            return ["nothing was replicated yet"]
        found = missing_or_damaged(store, replica)
        wanted = target(deployment.primary, source)
        if replica.root != wanted:
            found.append(f"the replica is {replica.root[:12]}…, the primary's snapshots make {str(wanted)[:12]}…")
        if found:
            return found
    except PipelineError as error:
        return [f"the replica could not be compared: {error}"]
    try:
        read = read_shard(store, replica)
        with connect(deployment.dsn(region)) as conn:
            differences = compare(conn, source, shard_refs(replica), lambda ref: fingerprint.of_rows(read(ref)))
            return [str(difference) for difference in differences]
    except PipelineError as error:
        return [f"the table could not be compared: {error}"]
