"""Everything read again: what differs from what is recorded, and what can be mended of it."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.findings import Finding, Kind, Where, could_not_be, links_behind
from embedding_assets.operations.healing import put_back
from embedding_assets.operations.replica_shards import read_shard, shard_refs
from embedding_assets.pgvector.connection import pipeline_errors
from embedding_assets.pgvector.indexes.index import build_indexes, invalid_indexes
from embedding_assets.pgvector.loading import delta
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.snapshots import log
from embedding_assets.snapshots.layers import LayerDamaged
from embedding_assets.snapshots.names import CHUNKS, INDEX, REPLICA, SOURCE_ASSETS, TABLE, VECTORS
from embedding_assets.snapshots.replication import harmed, prepare_replica
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.work.pool import in_process

_PARTS: Final = (Kind.PART_MISSING, Kind.PART_DAMAGED)

_ROUNDS: Final = 3
"""Of looking and mending: a table can be compared once the parts that it was loaded from are whole."""


def verify(deployment: Deployment, sources: Sequence[str], region_names: Sequence[str]) -> list[Finding]:
    """Hash every part again, and compare every link from a source's snapshot to the rows that readers see."""
    found: list[Finding] = []
    for source in sources:
        of_primary = list(_verify_primary(deployment, source))
        found += of_primary
        for region in region_names:
            # The primary's own replica lies in its store: what is harmed there has been named.
            named = {(one.where.region, one.where.path) for one in of_primary}
            found += [
                one
                for one in _verify_region(deployment, region, source)
                if one.where.path is None or (region, one.where.path) not in named
            ]
    return found


def repair(deployment: Deployment, findings: Sequence[Finding]) -> list[str]:
    """Mend what was found, where it can be mended without the source's own run: a sentence for each thing done.

    Parts of a replica come from the primary again, a replica that is behind is replicated, shards whose rows differ are
    replaced by the replica's, and indexes are built anew while readers go on. What it can't mend it leaves alone.
    """
    done: list[str] = []

    def place(finding: Finding) -> tuple[str, str]:
        return finding.where.region, finding.where.source

    for (region, source), some in groupby(sorted(findings, key=place), key=place):
        try:
            done += [f"{region}|{source}: {line}" for line in _repair(deployment, region, source, list(some))]
        except PipelineError as error:
            done.append(f"{region}|{source}: not repaired: {error}")
    return done


def verify_and_repair(
    deployment: Deployment, sources: Sequence[str], region_names: Sequence[str]
) -> tuple[list[str], list[Finding]]:
    """Look, mend what was found, and look again: (what was done, what is left)."""
    done: list[str] = []
    found = verify(deployment, sources, region_names)
    for _ in range(_ROUNDS):
        did = repair(deployment, found)
        if not did:
            break
        done += did
        found = verify(deployment, sources, region_names)
    return list(dict.fromkeys(done)), found


def materialize_cure(source: str, region: str | None = None) -> str:
    """The line that brings a source, or one region of it, up to date."""
    return f"embedding-assets materialize --source {source}" + (f" --region {region}" if region else "")


def _repair_cure(source: str, region: str) -> str:
    return f"embedding-assets verify --repair --source {source} --region {region}"


def _verify_primary(deployment: Deployment, source: str) -> Iterator[Finding]:
    primary, region = deployment.primary, deployment.settings.primary_region
    heads: dict[str, Snapshot] = {}
    for asset in SOURCE_ASSETS:
        where = Where(source, region, asset)
        try:
            snapshot = log.head(primary, asset, source)
            if snapshot is None:
                yield Finding(Kind.NEVER_MADE, where, f"{asset} was never materialized", materialize_cure(source))
            else:
                heads[asset] = snapshot
                yield from _harmed(primary, snapshot, region)
        except PipelineError as error:
            yield could_not_be(f"{asset} could not be read", where, error)
    yield from (
        Finding(Kind.BEHIND, Where(source, region, asset), what, materialize_cure(source))
        for asset, what in links_behind(heads)
    )


def _verify_region(deployment: Deployment, region: str, source: str) -> Iterator[Finding]:
    where, cure = Where(source, region, REPLICA), materialize_cure(source, region)
    try:
        store = deployment.store(region)
        replica = log.head(store, REPLICA, source)
        if replica is None:
            yield Finding(Kind.NEVER_MADE, where, "nothing was replicated yet", cure)
            return
        damage = list(_harmed(store, replica, region))
        yield from damage
        newest = {
            asset: head.root
            for asset in (CHUNKS, *VECTORS)
            if (head := log.head(deployment.primary, asset, source)) is not None
        }
        if replica.upstream != newest:
            yield Finding(Kind.BEHIND, where, "the replica is not of the primary's newest snapshots", cure)
    except PipelineError as error:
        yield could_not_be("the replica could not be compared", where, error)
        return
    if not damage:
        yield from _verify_table(deployment, region, replica, store)


def _verify_table(deployment: Deployment, region: str, replica: Snapshot, store: Store) -> Iterator[Finding]:
    source = replica.source
    where, cure = Where(source, region, TABLE), materialize_cure(source, region)
    try:
        with deployment.connect(region) as conn, pipeline_errors("reading the table"):
            serving = published_generation(conn, source) if is_migrated(conn) else None
            if serving is None:
                yield Finding(Kind.NEVER_MADE, where, "no table was published yet", cure)
            elif serving.target_root != replica.root:
                yield Finding(Kind.BEHIND, where, "the table was not loaded from this replica", cure)
            else:
                cure = _repair_cure(source, region)
                for difference in compare(conn, source, shard_refs(replica), read_shard(store, replica)):
                    if difference.shard is None:
                        at = Where(source, region, INDEX)
                        yield Finding(Kind.INDEX_INVALID, at, difference.what, cure)
                    else:
                        at = Where(source, region, TABLE, shard=difference.shard)
                        yield Finding(Kind.ROWS_DIFFER, at, difference.what, cure)
    except PipelineError as error:
        yield could_not_be("the table could not be compared", where, error)


def _harmed(store: Store, snapshot: Snapshot, region: str) -> Iterator[Finding]:
    for harm in harmed(store, snapshot):
        if harm.path is None:
            where = Where(snapshot.source, region, snapshot.asset)
            yield Finding(Kind.ENTRY_DAMAGED, where, harm.what, materialize_cure(snapshot.source))
        else:
            kind = Kind.PART_MISSING if harm.missing else Kind.PART_DAMAGED
            where = Where(snapshot.source, region, snapshot.asset, path=harm.path)
            # What no store has any more is made again, by the run of its stage.
            made_here = harm.missing and snapshot.asset != REPLICA
            cure = materialize_cure(snapshot.source) if made_here else _repair_cure(snapshot.source, region)
            yield Finding(kind, where, harm.what, cure)


def _repair(deployment: Deployment, region: str, source: str, findings: Sequence[Finding]) -> Iterator[str]:
    """Parts first: what is behind them is read from them."""
    for part in (one for one in findings if one.kind in _PARTS):
        if did := _mend_part(deployment, part.where, part.kind == Kind.PART_MISSING):
            yield did
    if any(one.where.asset == REPLICA and one.kind in (Kind.NEVER_MADE, Kind.BEHIND) for one in findings):
        yield from _replicate(deployment, region, source)
    shards = {one.where.shard for one in findings if one.kind == Kind.ROWS_DIFFER and one.where.shard is not None}
    rebuild = any(one.kind == Kind.INDEX_INVALID for one in findings)
    if shards or rebuild:
        yield from _repair_table(deployment, region, source, shards, rebuild)


def _mend_part(deployment: Deployment, where: Where, missing: bool) -> str:
    """Put a part back from where its bytes are whole; a sentence on what was done."""
    store = deployment.store(where.region)
    snapshot = log.head(store, where.asset, where.source)
    for layer in snapshot.layers if snapshot else ():
        if layer.path(where.source) == where.path:
            healed = put_back(deployment, LayerDamaged(store, where.source, layer, "is lost or damaged"))
            return healed.done if healed.is_whole or not missing else ""
    return ""


def _replicate(deployment: Deployment, region: str, source: str) -> Iterator[str]:
    upstream = [log.head(deployment.primary, asset, source) for asset in (CHUNKS, *VECTORS)]
    newest = [snapshot for snapshot in upstream if snapshot is not None]
    if len(newest) == len(upstream):
        with deployment.sole_writer(REPLICA, region, source):
            primary, store = deployment.primary, deployment.store(region)
            draft, layers, copied = prepare_replica(primary, store, source, newest, in_process)
            log.append(store, draft, derived_in=primary)
        yield f"replicated again, {layers} files and {copied:,} bytes copied"


def _repair_table(deployment: Deployment, region: str, source: str, shards: set[int], rebuild: bool) -> Iterator[str]:
    store = deployment.store(region)
    with deployment.sole_writer(TABLE, region, source), deployment.prepared(region) as conn:
        replica = log.head(store, REPLICA, source)
        serving = published_generation(conn, source)
        if replica is None or serving is None or serving.target_root != replica.root:
            return  # it has moved since it was looked at
        if shards:
            refs, read = shard_refs(replica), read_shard(store, replica)
            repaired = delta.repair(conn, source, replica.root, refs, read, shards)
            yield (
                f"{len(shards)} shards replaced by the replica's rows: {repaired.rows_written:,} written, "
                f"{repaired.rows_deleted:,} deleted"
            )
        if rebuild and (lost := invalid_indexes(conn, serving)):
            target, means = deployment.settings.target_recall, deployment.build_means(region)
            build_indexes(conn, source, replica.root, deployment.hnsw, target, means=means)
            yield f"index {', '.join(lost)} built again"
