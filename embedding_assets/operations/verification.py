"""Everything read again: what differs from what is recorded, and what can be mended of it."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.findings import Finding, Kind, Repair, Where, could_not_be, links_behind
from embedding_assets.operations.healing import put_back
from embedding_assets.operations.replica_shards import read_shard, shard_refs
from embedding_assets.pgvector.connection import pipeline_errors
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.loading import delta
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.schema import words
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.snapshots import log
from embedding_assets.snapshots.layers import LayerDamaged
from embedding_assets.snapshots.names import CHUNKS, INDEX, REPLICA, SOURCE_ASSETS, TABLE, VECTORS
from embedding_assets.snapshots.replication import harmed, prepare_replica
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.telemetry.events import Tell, unheard

_PARTS: Final = (Kind.PART_MISSING, Kind.PART_DAMAGED)

_ROUNDS: Final = 3
"""Of looking and mending: a table can be compared once the parts that it was loaded from are whole."""


def verify(deployment: Deployment, sources: Sequence[str], region_names: Sequence[str]) -> list[Finding]:
    """Hash every part again, and compare every link from a source's snapshot to the rows that readers see."""
    return [finding for source in sources for finding in _verify(deployment, source, region_names)]


def repair(deployment: Deployment, findings: Sequence[Finding], tell: Tell = unheard) -> list[Repair]:
    """Mend what the findings name, and nothing else, where it can be mended without the source's own run.

    Parts of a replica come from the primary again, a replica that is behind is replicated, shards whose rows differ are
    replaced by the replica's, and indexes are built anew while readers go on. Nothing is examined for it: the findings
    say what is the matter. What can't be mended here is in no repair.
    """
    repairs: list[Repair] = []
    for (region, source), at_place in groupby(sorted(findings, key=attrgetter("place")), key=attrgetter("place")):
        of_place = tuple(at_place)
        try:
            repairs += _repair(deployment, region, source, of_place, tell)
        except PipelineError as error:
            repairs.append(Repair(of_place, f"not repaired: {str(error).rstrip('.')}", failed=True))
    return repairs


def verify_and_repair(
    deployment: Deployment, sources: Sequence[str], region_names: Sequence[str], tell: Tell = unheard
) -> tuple[list[Repair], list[Finding]]:
    """Look, mend what was found, and look again where something was mended: (what was done, what is left).

    What lies behind a damaged part could not be compared before. Places where nothing was mended are read once.
    """
    repairs: list[Repair] = []
    left = verify(deployment, sources, region_names)
    for _ in range(_ROUNDS):
        now = [done for done in repair(deployment, left, tell) if done not in repairs]
        mended = dict.fromkeys(done.place for done in now if not done.failed)
        repairs += now
        if not mended:
            break
        left = [finding for finding in left if finding.place not in mended]
        for source in dict.fromkeys(source for _, source in mended):
            again = [region for region in region_names if (region, source) in mended]
            of_primary = (deployment.settings.primary_region, source) in mended
            left += _verify(deployment, source, again, primary=of_primary)
    return repairs, left


def materialize_cure(source: str, region: str | None = None) -> str:
    """The line that brings a source, or one region of it, up to date."""
    return f"embedding-assets materialize --source {source}" + (f" --region {region}" if region else "")


def _repair_cure(source: str, region: str) -> str:
    return f"embedding-assets verify --repair --source {source} --region {region}"


def _verify(deployment: Deployment, source: str, region_names: Sequence[str], *, primary: bool = True) -> list[Finding]:
    findings = list(_verify_primary(deployment, source)) if primary else []
    # The primary's own replica lies in its store: what is harmed there is named once.
    named = {(finding.where.region, finding.where.path) for finding in findings if finding.where.path is not None}
    for region in region_names:
        of_region = _verify_region(deployment, region, source)
        findings += [finding for finding in of_region if (region, finding.where.path) not in named]
    return findings


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


def _repair(
    deployment: Deployment, region: str, source: str, findings: Sequence[Finding], tell: Tell
) -> Iterator[Repair]:
    """Parts first: what is behind them is read from them."""
    for part in _of(findings, *_PARTS):
        if did := _mend_part(deployment, part):
            yield Repair((part,), did)
    if replica := [one for one in _of(findings, Kind.NEVER_MADE, Kind.BEHIND) if one.where.asset == REPLICA]:
        yield from _replicate(deployment, region, source, replica, tell)
    rows, indexes = _of(findings, Kind.ROWS_DIFFER), _of(findings, Kind.INDEX_INVALID)
    if rows or indexes:
        yield from _repair_table(deployment, region, source, rows, indexes, tell)


def _of(findings: Sequence[Finding], *kinds: Kind) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if finding.kind in kinds)


def _mend_part(deployment: Deployment, finding: Finding) -> str:
    """Put a part back from where its bytes are whole; a sentence on what was done, empty where nothing could be."""
    where, store = finding.where, deployment.store(finding.where.region)
    snapshot = log.head(store, where.asset, where.source)
    for layer in snapshot.layers if snapshot else ():
        if layer.path(where.source) == where.path:
            healed = put_back(deployment, LayerDamaged(store, where.source, layer, "is lost or damaged"))
            return healed.done if healed.is_whole or finding.kind != Kind.PART_MISSING else ""
    return ""


def _replicate(
    deployment: Deployment, region: str, source: str, findings: Sequence[Finding], tell: Tell
) -> Iterator[Repair]:
    upstream = [log.head(deployment.primary, asset, source) for asset in (CHUNKS, *VECTORS)]
    newest = [snapshot for snapshot in upstream if snapshot is not None]
    if len(newest) < len(upstream):
        return  # its source's own run comes first
    with deployment.sole_writer(REPLICA, region, source, tell=tell):
        primary, store = deployment.primary, deployment.store(region)
        draft, layers, copied = prepare_replica(primary, store, source, newest, deployment.runner(region, tell))
        log.append(store, draft, derived_in=primary)
    yield Repair(tuple(findings), f"replicated again, {layers} files and {copied:,} bytes copied")


def _repair_table(
    deployment: Deployment,
    region: str,
    source: str,
    rows: tuple[Finding, ...],
    indexes: tuple[Finding, ...],
    tell: Tell,
) -> Iterator[Repair]:
    store = deployment.store(region)
    with deployment.sole_writer(TABLE, region, source, tell=tell), deployment.prepared(region, tell) as conn:
        replica = log.head(store, REPLICA, source)
        serving = published_generation(conn, source)
        if replica is None or serving is None or serving.target_root != replica.root:
            return  # it has moved since it was looked at
        if rows:
            shards = {finding.where.shard for finding in rows if finding.where.shard is not None}
            refs, read = shard_refs(replica), read_shard(store, replica)
            replaced = delta.repair(conn, source, replica.root, refs, read, shards, tell)
            yield Repair(
                rows,
                f"{len(shards)} shards replaced by the replica's rows: {replaced.rows_written:,} written, "
                f"{replaced.rows_deleted:,} deleted",
            )
        if indexes:
            if words.mismatched(conn, serving) is not None:
                words.rebuild(conn, serving)
            target, means = deployment.settings.target_recall, deployment.build_means(region)
            build_indexes(conn, source, replica.root, deployment.hnsw, target, tell, means)
            yield Repair(indexes, "; ".join(finding.what for finding in indexes) + ": built again")
