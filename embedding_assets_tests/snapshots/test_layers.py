import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.keys import PartKey
from embedding_assets.snapshots.layers import LayerDamaged, content_digest, find_layer, read_layer, write_layer
from embedding_assets.snapshots.stores import Store
from embedding_assets_tests.snapshots.conftest import contents, damage
from embedding_assets_tests.support.shards import SOURCE, rows_of, write

KEY = PartKey("ab" * 32)


def test_a_part_reads_back_as_it_was_written(store: Store) -> None:
    rows = rows_of({"a": "1", "é": "\U0001f600"})

    layer = write_layer(store, rows, asset="chunks", source=SOURCE, shard=3, key=KEY, inputs=["cd" * 32])

    assert read_layer(store, SOURCE, layer).table.equals(rows)
    assert read_layer(store, SOURCE, layer, ["content"]).table.equals(rows.select(["content"]))


def test_a_part_is_described_by_its_rows_size_and_hash(store: Store) -> None:
    layer = write_layer(
        store, rows_of({"a": "1"}), asset="chunks", source=SOURCE, shard=3, key=KEY, inputs=["cd" * 32], dead=["b", "a"]
    )

    assert list(contents(store)) == [f"parts/chunks/{SOURCE}/{KEY}.parquet"]
    data = store.get(layer.path(SOURCE))
    assert data is not None
    assert (layer.asset, layer.shard, layer.key, layer.rows) == ("chunks", 3, KEY, 1)
    assert (layer.bytes, layer.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (layer.inputs, layer.dead) == (("cd" * 32,), ("a", "b"))


def test_the_stored_part_is_the_truth_for_whoever_derives_it_again(store: Store) -> None:
    first = write_layer(store, rows_of({"a": "1.0"}), asset="embeddings_v1", source=SOURCE, shard=0, key=KEY)

    second = write_layer(store, rows_of({"a": "1.0000001"}), asset="embeddings_v1", source=SOURCE, shard=0, key=KEY)

    assert second == first
    assert read_layer(store, SOURCE, second).table.equals(rows_of({"a": "1.0"}))


def test_a_part_that_a_dead_run_left_is_found_by_its_name(store: Store) -> None:
    written = write_layer(
        store, rows_of({"a": "1"}), asset="chunks", source=SOURCE, shard=3, key=KEY, inputs=["cd" * 32]
    )

    found = find_layer(store, asset="chunks", source=SOURCE, shard=3, key=KEY, inputs=["cd" * 32])

    assert found == written
    assert find_layer(store, asset="chunks", source=SOURCE, shard=3, key=PartKey("00" * 32)) is None


def remove(store: Store, path: str) -> None:
    store.delete([path])


@pytest.mark.parametrize(("harm", "said"), [(damage, "has other bytes than recorded"), (remove, "is missing")])
def test_a_damaged_or_missing_part_is_refused_by_name(
    store: Store, harm: Callable[[Store, str], None], said: str
) -> None:
    layer = write(store, {"a": "1" * 100}).layers[0]
    path = layer.path(SOURCE)
    harm(store, path)

    with pytest.raises(LayerDamaged) as refused:
        read_layer(store, SOURCE, layer)

    assert isinstance(refused.value, PermanentError)
    for named in (store.url, path, f"source {SOURCE}", said, "Cure:"):
        assert named in str(refused.value)


@pytest.mark.parametrize("left", [b"", b"PAR1 and then the disk was full"])
def test_half_a_file_under_a_parts_name_is_no_part_and_is_written_over(store: Store, left: bytes) -> None:
    path = f"parts/chunks/{SOURCE}/{KEY}.parquet"
    store.put_if_absent(path, left)

    assert find_layer(store, asset="chunks", source=SOURCE, shard=0, key=KEY) is None
    layer = write_layer(store, rows_of({"a": "1"}), asset="chunks", source=SOURCE, shard=0, key=KEY)

    assert read_layer(store, SOURCE, layer).table.equals(rows_of({"a": "1"}))


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_whatever_bit_flips_in_a_part_that_nobody_recorded_its_rows_are_right_or_it_is_no_part(
    folder_store: Store, tmp_path: Path, compression: Literal["zstd", "none"]
) -> None:
    rows = pa.table({"name": ["a", "é", None], "hash": pa.array([b"1" * 8, b"2" * 8, b"3" * 8], pa.binary(8))})
    layer = write_layer(folder_store, rows, asset="chunks", source=SOURCE, shard=0, key=KEY, compression=compression)
    file = tmp_path / "store" / layer.path(SOURCE)
    data = file.read_bytes()
    refused = 0
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])

        found = find_layer(folder_store, asset="chunks", source=SOURCE, shard=0, key=KEY)

        refused += found is None
        assert found is None or read_layer(folder_store, SOURCE, found).table.equals(rows)
    assert refused > len(data) / 2


def test_a_part_without_a_digest_of_its_rows_is_made_again(store: Store) -> None:
    """Nothing proves what it holds."""
    sink = io.BytesIO()
    pq.write_table(rows_of({"a": "forged"}), sink)
    store.put_if_absent(f"parts/chunks/{SOURCE}/{KEY}.parquet", sink.getvalue())

    layer = write_layer(store, rows_of({"a": "1"}), asset="chunks", source=SOURCE, shard=0, key=KEY)

    assert read_layer(store, SOURCE, layer).table.equals(rows_of({"a": "1"}))


columns = st.one_of(
    st.lists(st.none() | st.text(max_size=4), max_size=6).map(lambda values: pa.array(values, pa.string())),
    st.lists(st.none() | st.binary(min_size=3, max_size=3), max_size=6).map(lambda v: pa.array(v, pa.binary(3))),
    st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=6).map(lambda v: pa.array(v, pa.int32())),
)


@given(columns, columns)
def test_two_columns_have_one_digest_only_if_they_are_equal(one: pa.Array, other: pa.Array) -> None:
    same = content_digest(pa.table({"a": one})) == content_digest(pa.table({"a": other}))

    assert same == one.equals(other)


@given(columns, st.data())
def test_the_digest_does_not_depend_on_how_a_table_is_laid_out(column: pa.Array, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(column)))
    laid_out = pa.chunked_array([column[:cut], column[cut:]])
    written = io.BytesIO()
    pq.write_table(pa.table({"a": column}), written)

    digests = {content_digest(table) for table in (pa.table({"a": column}), pa.table({"a": laid_out}))}
    digests.add(content_digest(pq.read_table(io.BytesIO(written.getvalue()))))

    assert len(digests) == 1


def test_an_object_larger_than_its_part_is_not_read(folder_store: Store, tmp_path: Path) -> None:
    layer = write(folder_store, {"a": "1"}).layers[0]
    with (tmp_path / "store" / layer.path(SOURCE)).open("ab") as file:
        file.truncate(1 << 40)  # sparse

    with pytest.raises(LayerDamaged, match="is larger than recorded"):
        read_layer(folder_store, SOURCE, layer)


def test_finding_an_old_part_keeps_it_from_garbage_collection(folder_store: Store, tmp_path: Path) -> None:
    layer = write(folder_store, {"a": "1"}).layers[0]
    path = layer.path(SOURCE)
    last_week = time.time() - 7 * 86_400
    os.utime(tmp_path / "store" / path, (last_week, last_week))

    found = find_layer(folder_store, asset="raw_docs", source=SOURCE, shard=0, key=PartKey(layer.key))

    assert found == layer
    assert next(folder_store.entries("parts")).modified.timestamp() > time.time() - 60


def test_vectors_are_stored_flat_and_uncompressed(folder_store: Store) -> None:
    """A layer of vectors costs its bytes, and is written and read at the speed of memory."""
    vectors = pa.array([os.urandom(1024) for _ in range(1000)], pa.binary(1024))

    layer = write_layer(
        folder_store,
        pa.table({"embedding": vectors}),
        asset="embeddings_v1",
        source=SOURCE,
        shard=0,
        key=KEY,
        compression="none",
    )

    assert layer.bytes < 1.01 * 1000 * 1024
