import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.failpoints import VARIABLE, Failpoint
from embedding_assets.snapshots.layers import LayerDamaged
from embedding_assets.snapshots.names import REPLICA
from embedding_assets.snapshots.replication import (
    Behind,
    Harm,
    current,
    harmed,
    prepare_replica,
    target,
)
from embedding_assets.snapshots.snapshot import Part, Snapshot
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.snapshots.tasks import Run
from embedding_assets_tests.snapshots.conftest import OpenStore, contents, damage
from embedding_assets_tests.support.runners import R, T, one_by_one
from embedding_assets_tests.support.shards import SOURCE, commit, write

ASSETS = ("chunks", "embeddings_v1", "embeddings_v2")

REPLICATOR = """
import sys
from embedding_assets.snapshots import log
from embedding_assets.snapshots.replication import prepare_replica
from embedding_assets.snapshots.stores import open_store

primary, region = open_store(sys.argv[1]), open_store(sys.argv[2])
upstream = [log.head(primary, asset, sys.argv[3]) for asset in ("chunks", "embeddings_v1", "embeddings_v2")]
draft, *_ = prepare_replica(
    primary, region, sys.argv[3], upstream, lambda work, store, tasks: [work(store, task) for task in tasks]
)
log.append(region, draft, derived_in=primary)
"""


class Regions(NamedTuple):
    """The primary's store and another region's."""

    primary: Store
    region: Store

    def derive(self, shards: Sequence[dict[str, str]]) -> list[Snapshot]:
        """Commit chunks with these shards, and both models' embeddings of them, to the primary."""
        inputs = [write(self.primary, rows, asset="chunks", shard=shard) for shard, rows in enumerate(shards)]
        chunks = commit(self.primary, inputs, log.head(self.primary, "chunks", SOURCE), asset="chunks")
        return [chunks, *(self.embed(asset, chunks, shards) for asset in ASSETS[1:])]

    def embed(self, asset: str, chunks: Snapshot, shards: Sequence[dict[str, str]]) -> Snapshot:
        parts = [
            write(self.primary, dict.fromkeys(rows, asset), asset=asset, shard=part.shard, inputs=(part.key,))
            for part, rows in zip(chunks.parts, shards, strict=True)
        ]
        return commit(
            self.primary, parts, log.head(self.primary, asset, SOURCE), asset=asset, upstream={"chunks": chunks.root}
        )

    def replicate(self, upstream: Sequence[Snapshot], run: Run | None = None) -> tuple[Snapshot, int, int]:
        draft, parts, size = prepare_replica(self.primary, self.region, SOURCE, upstream, run or one_by_one)
        return log.append(self.region, draft, derived_in=self.primary), parts, size


@pytest.fixture
def regions(opened: OpenStore) -> Regions:
    return Regions(opened("primary"), opened("región 2"))


def parts_of(store: Store) -> dict[str, bytes | None]:
    return {path: data for path, data in contents(store).items() if path.startswith("parts/")}


def test_a_replica_names_the_parts_of_chunks_and_embeddings_and_has_their_bytes(regions: Regions) -> None:
    upstream = regions.derive([{"a": "1"}, {"b": "2"}])

    replica, copied, size = regions.replicate(upstream)

    assert replica == log.head(regions.region, REPLICA, SOURCE) == current(regions.region, SOURCE)
    assert [part for asset in ASSETS for part in replica.parts_of(asset)] == [p for s in upstream for p in s.parts]
    assert replica.upstream == {snapshot.asset: snapshot.root for snapshot in upstream}
    assert replica.root == target(regions.primary, SOURCE)
    assert parts_of(regions.region) == parts_of(regions.primary)
    assert (copied, size) == (6, sum(part.bytes for part in replica.parts))
    assert harmed(regions.region, replica) == []


def test_only_what_the_region_lacks_is_copied(regions: Regions) -> None:
    first, *_ = regions.replicate(regions.derive([{"a": "1"}, {"b": "2"}]))
    upstream = regions.derive([{"a": "1"}, {"b": "changed"}])

    second, copied, size = regions.replicate(upstream)

    new = [part for part in second.parts if part not in first.parts]
    assert (copied, size) == (3, sum(part.bytes for part in new))
    assert second.number == 2


def test_replicating_again_copies_and_writes_nothing(regions: Regions) -> None:
    upstream = regions.derive([{"a": "1"}])
    first, *_ = regions.replicate(upstream)
    before = contents(regions.region)

    assert regions.replicate(upstream) == (first, 0, 0)

    assert contents(regions.region) == before


def test_the_primary_is_its_own_replica_without_a_copy(store: Store) -> None:
    regions = Regions(store, store)
    upstream = regions.derive([{"a": "1"}])
    before = parts_of(store)

    replica, copied, size = regions.replicate(upstream)

    assert (copied, size) == (0, 0)
    assert parts_of(store) == before
    assert replica.root == target(store, SOURCE)


def test_a_source_that_lost_everything_is_replicated_as_empty(regions: Regions) -> None:
    regions.replicate(regions.derive([{"a": "1"}]))

    replica, copied, _ = regions.replicate(regions.derive([]))

    assert (replica.parts, copied) == ((), 0)
    assert replica == current(regions.region, SOURCE)


def test_embeddings_of_other_chunks_are_refused(regions: Regions) -> None:
    _, *embeddings = regions.derive([{"a": "1"}])
    chunks = commit(
        regions.primary,
        [write(regions.primary, {"a": "2"}, asset="chunks")],
        log.head(regions.primary, "chunks", SOURCE),
        asset="chunks",
    )

    with pytest.raises(Behind, match=rf"source {SOURCE}: embeddings_v1 .*Cure: materialize embeddings_v1") as refused:
        regions.replicate([chunks, *embeddings])

    assert isinstance(refused.value, TransientError)
    assert target(regions.primary, SOURCE) is None
    assert contents(regions.region) == {}


def test_one_model_ahead_of_the_other_is_refused(regions: Regions) -> None:
    shards = [{"a": "1"}]
    _, v1, v2 = regions.derive(shards)
    chunks, v1_new = regions.derive([{"a": "2"}])[:2]

    with pytest.raises(Behind, match="embeddings_v2"):
        regions.replicate([chunks, v1_new, v2])
    with pytest.raises(Behind, match="embeddings_v1"):
        regions.replicate([chunks, v1, v2])


def test_a_model_that_moves_to_the_other_slot_is_copied_there(regions: Regions) -> None:
    """Parts of one model have the same keys in both slots, and lie in two places."""
    chunks, v1, v2 = regions.derive([{"a": "1"}])
    regions.replicate([chunks, v1, v2])
    twin = v1.layers[0].model_copy(update={"asset": "embeddings_v2"})
    data = regions.primary.get(v1.layers[0].path(SOURCE))
    assert data is not None
    regions.primary.put_if_absent(twin.path(SOURCE), data)
    v2 = commit(regions.primary, [Part.alone(twin)], v2, asset="embeddings_v2", upstream={"chunks": chunks.root})

    replica, copied, _ = regions.replicate([chunks, v1, v2])

    assert copied == 1
    assert harmed(regions.region, replica) == []


def test_a_damaged_part_is_not_copied(regions: Regions) -> None:
    upstream = regions.derive([{"a": "1" * 100}])
    path = upstream[1].layers[0].path(SOURCE)
    damage(regions.primary, path)

    with pytest.raises(LayerDamaged) as refused:
        regions.replicate(upstream)

    assert f"store {regions.primary.url}: {path}" in str(refused.value)
    assert path not in contents(regions.region)
    assert log.head(regions.region, REPLICA, SOURCE) is None


def test_what_the_region_has_under_a_parts_name_is_verified_too_and_replaced_where_it_is_something_else(
    regions: Regions,
) -> None:
    upstream = regions.derive([{"a": "1"}])
    path = upstream[0].layers[0].path(SOURCE)
    regions.region.put_if_absent(path, b"something else")

    replica, copied, _ = regions.replicate(upstream)

    assert copied == 3
    assert harmed(regions.region, replica) == []


@pytest.mark.parametrize(
    "loss", ["one part", "all parts", "half of a part", "the log", "the newest entry", "everything"]
)
def test_what_a_region_lost_is_copied_again_though_its_log_says_that_it_is_there(regions: Regions, loss: str) -> None:
    regions.replicate(regions.derive([{"a": "1"}]))
    upstream = regions.derive([{"a": "2"}, {"b": "3"}])
    before, *_ = regions.replicate(upstream)
    paths = [layer.path(SOURCE) for layer in before.layers]
    entries = [log.entry_path(REPLICA, SOURCE, number) for number in (1, 2)]
    lost = {
        "one part": paths[:1],
        "all parts": paths,
        "half of a part": paths[1:2],
        "the log": entries,
        "the newest entry": entries[1:],
        "everything": paths + entries,
    }[loss]
    data = regions.region.get(paths[1]) or b""
    regions.region.delete(lost)
    if loss == "half of a part":
        regions.region.put_if_absent(paths[1], data[: len(data) // 2])

    after, copied, _ = regions.replicate(upstream)

    assert copied == len(set(lost) & set(paths))
    assert after.root == before.root == target(regions.primary, SOURCE)
    assert harmed(regions.region, after) == []


@pytest.mark.parametrize(
    "point",
    [
        Failpoint.BEFORE_COPY,
        f"{Failpoint.BEFORE_COPY}:2",
        Failpoint.AFTER_COPY,
        f"{Failpoint.AFTER_COPY}:3",
        Failpoint.BEFORE_LOG,
        Failpoint.AFTER_LOG,
    ],
)
def test_a_replication_killed_anywhere_is_finished_by_the_next(regions: Regions, point: str) -> None:
    upstream = regions.derive([{"a": "1"}])
    killed = subprocess.run(
        [sys.executable, "-c", REPLICATOR, regions.primary.url, regions.region.url, SOURCE],
        env=os.environ | {VARIABLE: point},
    )
    assert killed.returncode == -signal.SIGKILL
    left = parts_of(regions.region)
    assert (log.head(regions.region, REPLICA, SOURCE) is None) == (point != Failpoint.AFTER_LOG)

    replica, copied, _ = regions.replicate(upstream)

    assert copied == 3 - len(left)
    assert parts_of(regions.region) == parts_of(regions.primary)
    assert replica == current(regions.region, SOURCE)
    assert (replica.number, replica.root) == (1, target(regions.primary, SOURCE))


def test_a_part_that_the_region_had_already_is_kept_from_garbage_collection(tmp_path: Path) -> None:
    """A replication that died last week left it, and no snapshot names it yet."""
    regions = Regions(*(open_store((tmp_path / name).as_uri()) for name in ("primary", "region")))
    upstream = regions.derive([{"a": "1"}])
    path = upstream[0].layers[0].path(SOURCE)
    regions.region.put_if_absent(path, regions.primary.get(path) or b"")
    last_week = time.time() - 7 * 86_400
    os.utime(tmp_path / "region" / path, (last_week, last_week))

    regions.replicate(upstream)

    assert (tmp_path / "region" / path).stat().st_mtime > time.time() - 60


def test_two_replications_at_once_make_one_replica(regions: Regions) -> None:
    upstream = regions.derive([{"a": "1"}, {"b": "2"}])

    def while_another_does_it(work: Callable[[Store, T], R], store: Store, tasks: Sequence[T]) -> list[R]:
        copied = one_by_one(work, store, tasks)
        regions.replicate(upstream)
        return copied

    replica, _, _ = regions.replicate(upstream, while_another_does_it)

    assert replica == current(regions.region, SOURCE)
    assert log.numbers(regions.region, REPLICA, SOURCE) == [1]


def test_verification_names_each_part_that_is_not_as_recorded(regions: Regions) -> None:
    replica, *_ = regions.replicate(regions.derive([{"a": "1" * 100}]))
    lost, flipped, _ = (layer.path(SOURCE) for layer in replica.layers)
    regions.region.delete([lost])
    damage(regions.region, flipped)

    found = harmed(regions.region, replica)

    assert found == [
        Harm(f"{lost} is missing from {regions.region.url}", lost, missing=True),
        Harm(f"{flipped} in {regions.region.url} has other bytes than recorded", flipped, missing=False),
    ]


def test_verification_names_a_root_that_is_not_that_of_its_parts(folder_store: Store) -> None:
    replica = commit(folder_store, [write(folder_store, {"a": "1"})])
    forged = replica.model_copy(update={"root": "0" * 64})

    assert harmed(folder_store, forged) == [
        Harm(f"the root of raw_docs in {folder_store.url} is not that of its parts", None, missing=False)
    ]


def test_a_region_that_was_never_replicated_is_named_with_the_cure(store: Store) -> None:
    with pytest.raises(
        PermanentError, match=rf"no replica of source {SOURCE}. Cure: materialize s3_replica"
    ) as refused:
        current(store, SOURCE)

    assert store.url in str(refused.value)
