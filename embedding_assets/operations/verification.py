"""Everything read again: what differs from what is recorded, and what can be mended of it."""

from collections.abc import Iterator, Sequence
from typing import Final

from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.replica_shards import read_shard, shard_refs
from embedding_assets.pgvector.connection import connect, pipeline_errors
from embedding_assets.pgvector.indexes.index import build_indexes, invalid_indexes
from embedding_assets.pgvector.loading import delta
from embedding_assets.pgvector.loading.generations import published_generation
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import REPLICA, SOURCE_ASSETS, TABLE
from embedding_assets.snapshots.replication import copy_again, missing_or_damaged, target

_PRIMARY_CURE: Final = "Cure: copy the file from another region's store, which has the same bytes under the same path"


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
                    found += [f"{line}. {_PRIMARY_CURE}" for line in missing_or_damaged(primary, snapshot)]
            except PipelineError as error:
                found.append(str(error))
        for region in region_names:
            found += [f"{region}|{source}: {line}" for line in _verify_region(deployment, region, source)]
    return found


def repair(deployment: Deployment, sources: Sequence[str], region_names: Sequence[str]) -> list[str]:
    """Mend what `verify` finds, where it can be mended without the source's own run: a sentence for each thing done.

    Parts of a replica come from the primary again, shards whose rows differ from the replica, and indexes are built
    anew while readers go on. What is left, `verify` names.
    """
    done: list[str] = []
    for source in sources:
        for region in region_names:
            try:
                done += [f"{region}|{source}: {line}" for line in _repair_region(deployment, region, source)]
            except PipelineError as error:
                done.append(f"{region}|{source}: not repaired: {error}")
    return done


def _repair_region(deployment: Deployment, region: str, source: str) -> Iterator[str]:
    store = deployment.store(region)
    replica = log.head(store, REPLICA, source)
    if replica is None:
        return
    for path in copy_again(deployment.primary, store, replica):
        yield f"{path} copied again from the primary"
    refs, read = shard_refs(replica), read_shard(store, replica)
    with deployment.sole_writer(TABLE, region, source), deployment.database(region) as conn:
        differences = compare(conn, source, refs, read)
        serving = published_generation(conn, source)
        if not differences or serving is None or serving.target_root != replica.root:
            return
        if bad := {difference.shard for difference in differences if difference.shard is not None}:
            repaired = delta.repair(conn, source, replica.root, refs, read, bad)
            yield (
                f"{len(bad)} shards replaced by the replica's rows: {repaired.rows_written:,} written, "
                f"{repaired.rows_deleted:,} deleted"
            )
        if lost := invalid_indexes(conn, serving):
            build_indexes(conn, source, replica.root, deployment.hnsw, deployment.settings.target_recall)
            yield f"index {', '.join(lost)} built again"


def _verify_region(deployment: Deployment, region: str, source: str) -> list[str]:
    try:
        store = deployment.store(region)
        replica = log.head(store, REPLICA, source)
        if replica is None:
            return ["nothing was replicated yet"]
        found = missing_or_damaged(store, replica)
        wanted = target(deployment.primary, source)
        if replica.root != wanted:
            found.append(
                f"the replica is {replica.root[:12]}…, the primary's snapshots make {str(wanted)[:12]}…. "
                "Cure: embedding-assets materialize"
            )
        if found:
            return found
    except PipelineError as error:
        return [f"the replica could not be compared: {error}"]
    try:
        read = read_shard(store, replica)
        with connect(deployment.dsn(region)) as conn, pipeline_errors("reading the table"):
            if not is_migrated(conn):
                return [*found, "nothing was loaded yet. Cure: embedding-assets materialize"]
            differences = compare(conn, source, shard_refs(replica), read)
            serving = published_generation(conn, source)
            if serving is not None and serving.target_root != replica.root:
                found.append("the table was not loaded from this replica. Cure: embedding-assets materialize")
            return [*found, *map(str, differences)]
    except PipelineError as error:
        return [f"the table could not be compared: {error}"]
