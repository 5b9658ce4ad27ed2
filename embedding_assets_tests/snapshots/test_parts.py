import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.keys import PartKey
from embedding_assets.snapshots.parts import PartDamaged, find_part, read_part, write_part
from embedding_assets.snapshots.stores import Store
from embedding_assets_tests.snapshots.conftest import contents, damage
from embedding_assets_tests.support.shards import SOURCE, rows_of, write

KEY = PartKey("ab" * 32)


def test_a_part_reads_back_as_it_was_written(store: Store) -> None:
    rows = rows_of({"a": "1", "é": "\U0001f600"})

    part = write_part(store, rows, asset="chunks", source=SOURCE, shard=3, key=KEY, inputs=["cd" * 32])

    assert read_part(store, SOURCE, part).equals(rows)
    assert read_part(store, SOURCE, part, ["content"]).equals(rows.select(["content"]))


def test_a_part_is_described_by_its_rows_size_and_hash(store: Store) -> None:
    part = write_part(
        store, rows_of({"a": "1"}), asset="chunks", source=SOURCE, shard=3, key=KEY, inputs=["cd" * 32], dead=["b", "a"]
    )

    assert list(contents(store)) == [f"parts/chunks/{SOURCE}/{KEY}.parquet"]
    data = store.get(part.path(SOURCE))
    assert data is not None
    assert (part.asset, part.shard, part.key, part.rows) == ("chunks", 3, KEY, 1)
    assert (part.bytes, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (part.inputs, part.dead) == (("cd" * 32,), ("a", "b"))


def test_the_stored_part_is_the_truth_for_whoever_derives_it_again(store: Store) -> None:
    first = write_part(store, rows_of({"a": "1.0"}), asset="embeddings_v1", source=SOURCE, shard=0, key=KEY)

    second = write_part(store, rows_of({"a": "1.0000001"}), asset="embeddings_v1", source=SOURCE, shard=0, key=KEY)

    assert second == first
    assert read_part(store, SOURCE, second).equals(rows_of({"a": "1.0"}))


def test_a_part_that_a_dead_run_left_is_found_by_its_name(store: Store) -> None:
    written = write_part(
        store, rows_of({"a": "1"}), asset="chunks", source=SOURCE, shard=3, key=KEY, inputs=["cd" * 32]
    )

    found = find_part(store, asset="chunks", source=SOURCE, shard=3, key=KEY, inputs=["cd" * 32])

    assert found == written
    assert find_part(store, asset="chunks", source=SOURCE, shard=3, key=PartKey("00" * 32)) is None


def remove(store: Store, path: str) -> None:
    store.delete([path])


@pytest.mark.parametrize(("harm", "said"), [(damage, "has other bytes than recorded"), (remove, "is missing")])
def test_a_damaged_or_missing_part_is_refused_by_name(
    store: Store, harm: Callable[[Store, str], None], said: str
) -> None:
    part = write(store, {"a": "1" * 100})
    path = part.path(SOURCE)
    harm(store, path)

    with pytest.raises(PartDamaged) as refused:
        read_part(store, SOURCE, part)

    assert isinstance(refused.value, PermanentError)
    for named in (store.url, path, f"source {SOURCE}", said, "Cure:"):
        assert named in str(refused.value)


@pytest.mark.parametrize("left", [b"", b"PAR1 and then the disk was full"])
def test_half_a_file_under_a_parts_name_is_no_part(store: Store, left: bytes) -> None:
    store.put_if_absent(f"parts/chunks/{SOURCE}/{KEY}.parquet", left)

    with pytest.raises(PartDamaged, match=r"is not a Parquet file.*Cure: delete the file"):
        find_part(store, asset="chunks", source=SOURCE, shard=0, key=KEY)


def test_a_part_deleted_while_it_is_written_is_never_described(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part was there when it was put, and garbage collection took it before it was looked at."""
    write(folder_store, {"a": "1"})
    put = Store.put_if_absent

    def put_and_lose(store: Store, path: str, data: bytes) -> bool:
        won = put(store, path, data)
        store.delete([path])
        return won

    monkeypatch.setattr(Store, "put_if_absent", put_and_lose)

    with pytest.raises(TransientError, match=r"deleted while it was written.*Cure: run again"):
        write(folder_store, {"a": "1"})


def test_finding_an_old_part_keeps_it_from_garbage_collection(folder_store: Store, tmp_path: Path) -> None:
    part = write(folder_store, {"a": "1"})
    path = part.path(SOURCE)
    last_week = time.time() - 7 * 86_400
    os.utime(tmp_path / "store" / path, (last_week, last_week))

    found = find_part(folder_store, asset="raw_docs", source=SOURCE, shard=0, key=PartKey(part.key))

    assert found == part
    assert next(folder_store.entries("parts")).modified.timestamp() > time.time() - 60


def test_vectors_are_stored_flat_and_uncompressed(folder_store: Store) -> None:
    """A part of vectors costs its bytes, and is written and read at the speed of memory."""
    vectors = pa.array([os.urandom(1024) for _ in range(1000)], pa.binary(1024))

    part = write_part(
        folder_store,
        pa.table({"embedding": vectors}),
        asset="embeddings_v1",
        source=SOURCE,
        shard=0,
        key=KEY,
        compression="none",
    )

    assert part.bytes < 1.01 * 1000 * 1024
