"""A region's replica: the layers that its store lacks are copied and verified, then its own log is appended."""

import hashlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.draft import Draft, prepare
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.keys import Root
from embedding_assets.snapshots.layers import LayerDamaged, read_bytes
from embedding_assets.snapshots.listing import unlisted
from embedding_assets.snapshots.names import CHUNKS, REPLICA, VECTORS
from embedding_assets.snapshots.snapshot import Layer, Snapshot, root_of_parts, sorted_parts
from embedding_assets.snapshots.stores import Store, opened
from embedding_assets.snapshots.tasks import Run, Task

VERSION = "replica-1"


class Behind(TransientError):
    """The embeddings were not derived from the current chunks; the source's own run has to finish first."""


class CopyTask(Task):
    """One layer to be copied into the region's store."""

    primary: str
    """URL of the store that has it."""
    layer: Layer

    @property
    def stores(self) -> frozenset[str]:
        return frozenset({self.primary})


def prepare_replica(
    primary: Store, region: Store, source: str, upstream: Sequence[Snapshot], run: Run
) -> tuple[Draft, int, int]:
    """Copy what a region's store lacks of these snapshots of the primary: (the draft, layers, bytes copied).

    `upstream` is chunks and the embeddings derived from them. Every byte is verified against the hash that the
    primary's snapshot recorded, also what the region had already under that name.

    Raises:
        Behind: the embeddings are of other chunks than these.
        LayerDamaged: a layer of either store is not what was recorded.
    """
    chunks, *embeddings = upstream
    for snapshot in embeddings:
        if snapshot.upstream.get(chunks.asset) != chunks.root:
            raise Behind(
                f"source {source}: {snapshot.asset} was derived from other chunks than the current ones. "
                f"Cure: materialize {snapshot.asset} of this source, then this partition again."
            )
    previous = log.head(region, REPLICA, source)
    parts = [part for snapshot in upstream for part in snapshot.parts]
    # Its log may say so, and the store have lost them: what it lists is believed, not what was once committed.
    held = set(previous.layers) - set(unlisted(region, previous)) if previous else set()
    layers = [layer for part in sorted_parts(parts) for layer in part.layers]
    tasks = [CopyTask(source=source, primary=primary.url, layer=layer) for layer in layers if layer not in held]
    copied = run(copy_layer, region, tasks)
    draft = prepare(
        asset=REPLICA,
        source=source,
        version=VERSION,
        shard_bits=chunks.shard_bits,
        parts=parts,
        counts={name: value for snapshot in upstream for name, value in snapshot.counts.items()},
        upstream=upstream,
        after=previous,
    )
    return draft, sum(1 for size in copied if size), sum(copied)


def copy_layer(region: Store, task: CopyTask) -> int:
    """Copy one layer; the bytes written, 0 where the region has it already."""
    primary, path = opened(task.primary), task.layer.path(task.source)
    if primary.url == region.url:
        read_bytes(region, task.source, task.layer)
        return 0
    data = read_bytes(primary, task.source, task.layer)
    failpoint(Failpoint.BEFORE_COPY)
    if region.put_if_absent(path, data):
        failpoint(Failpoint.AFTER_COPY)
        return len(data)
    try:
        region.keep_young(path, read_bytes(region, task.source, task.layer))
    except LayerDamaged:
        # Nothing is lost with it: the primary has the bytes, and they are in hand.
        region.replace(path, data)
        return len(data)
    return 0


def current(region: Store, source: str) -> Snapshot:
    """The region's replica of a source. Raises PermanentError where nothing was replicated yet."""
    replica = log.head(region, REPLICA, source)
    if replica is None:
        raise PermanentError(
            f"store {region.url} has no replica of source {source}. Cure: materialize s3_replica first."
        )
    return replica


def target(primary: Store, source: str) -> Root | None:
    """The root that a replica of the source has once it is current; None while the embeddings are behind the chunks."""
    chunks = log.head(primary, CHUNKS, source)
    embeddings = [log.head(primary, asset, source) for asset in VECTORS]
    if chunks is None or any(head is None or head.upstream.get("chunks") != chunks.root for head in embeddings):
        return None
    parts = [part for head in (chunks, *embeddings) if head is not None for part in head.parts]
    return root_of_parts(sorted_parts(parts))


class Harm(NamedTuple):
    """Something of a snapshot that its store does not have as recorded."""

    what: str
    path: str | None
    """Of the layer; None where the entry itself is wrong."""
    missing: bool


def harmed(store: Store, snapshot: Snapshot) -> list[Harm]:
    """Everything of the snapshot that is not in the store as recorded. Reads every byte."""
    harms: list[Harm] = []
    if not snapshot.root_holds:
        harms.append(Harm(f"the root of {snapshot.asset} in {store.url} is not that of its parts", None, False))
    for layer in snapshot.layers:
        path = layer.path(snapshot.source)
        data = store.get(path)
        if data is None:
            harms.append(Harm(f"{path} is missing from {store.url}", path, True))
        elif hashlib.sha256(data).hexdigest() != layer.sha256:
            harms.append(Harm(f"{path} in {store.url} has other bytes than recorded", path, False))
        elif pq.ParquetFile(io.BytesIO(data)).metadata.num_rows != layer.rows:
            harms.append(Harm(f"{path} in {store.url} has other rows than recorded", path, False))
    return harms
