from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from embedding_assets.snapshots.changes import Changes, count_changes, covering
from embedding_assets.snapshots.keys import document_bucket, shard_of
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets_tests.support.shards import SOURCE, snapshot_of, write, write_shards

documents = st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.sampled_from("123"))
some_bits = st.integers(0, 3)


def snapshot(store: Store, contents: dict[str, str], bits: int) -> Snapshot:
    return snapshot_of(write_shards(store, contents, bits), bits=bits)


@given(documents, some_bits, documents, some_bits)
def test_the_counts_are_those_of_the_rows_however_they_are_sharded(
    before: dict[str, str], bits_before: int, after: dict[str, str], bits_after: int
) -> None:
    store = Store("memory://", MemoryStore())

    changes = count_changes(
        store,
        "raw_docs",
        "name",
        "content",
        snapshot(store, before, bits_before),
        snapshot(store, after, bits_after),
    )

    assert changes == Changes(
        new=len(after.keys() - before.keys()),
        changed=sum(before[name] != after[name] for name in before.keys() & after.keys()),
        reused=sum(before[name] == after[name] for name in before.keys() & after.keys()),
        removed=len(before.keys() - after.keys()),
    )


@given(documents, some_bits)
def test_everything_is_new_in_a_first_snapshot(contents: dict[str, str], bits: int) -> None:
    store = Store("memory://", MemoryStore())

    changes = count_changes(store, "raw_docs", "name", "content", None, snapshot(store, contents, bits))

    assert changes == Changes(new=len(contents), changed=0, reused=0, removed=0)


@given(documents, some_bits, some_bits, st.data())
def test_covering_parts_hold_every_document_of_the_shard(
    contents: dict[str, str], parts_bits: int, bits: int, data: st.DataObject
) -> None:
    store = Store("memory://", MemoryStore())
    shard = data.draw(st.integers(0, 2**bits - 1))
    parts = snapshot(store, contents, parts_bits).parts

    found = covering(parts, parts_bits, shard, bits)

    rows = {name for part in found for name in read_part(store, SOURCE, part, ["name"]).column("name").to_pylist()}
    assert rows >= {name for name in contents if shard_of(document_bucket(name), bits) == shard}
    assert len(found) <= max(1, 2 ** (parts_bits - bits))


def test_parts_that_both_snapshots_name_are_not_read(folder_store: Store) -> None:
    kept = write(folder_store, {"a": "1", "b": "2"}, shard=0)
    old, new = (write(folder_store, {"c": content}, shard=1) for content in ("3", "4"))
    folder_store.delete([kept.layers[0].path(SOURCE)])

    changes = count_changes(
        folder_store,
        "raw_docs",
        "name",
        "content",
        snapshot_of([kept, old], bits=1),
        snapshot_of([kept, new], bits=1),
    )

    assert changes == Changes(new=0, changed=1, reused=2, removed=0)
