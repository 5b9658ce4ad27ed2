import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.draft import Draft
from embedding_assets.snapshots.log import CommitConflict, entry_path
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets_tests.snapshots.conftest import contents
from embedding_assets_tests.support.shards import SOURCE, draft_of

PATH = entry_path("raw_docs", SOURCE, 1)
REJECTION = RejectedDocument(
    source=SOURCE, item="a", error_class="empty-text", reason="the text is empty", cure="fill it"
)


def layer_of(content: int, sha256: str = "0" * 64) -> Layer:
    return Layer(asset="raw_docs", shard=0, key=f"{content:064x}", rows=1, bytes=1, sha256=sha256)


def part_of(content: int) -> Part:
    return Part.alone(layer_of(content))


def layered(content: int, on: int) -> Part:
    """The part of this content, as a delta on another one's base."""
    base, delta = layer_of(on), layer_of(1000 + content)
    return Part(**part_of(content).model_dump(exclude={"below", "layers"}), below=(base.key,), layers=(base, delta))


def draft(content: int, after: Snapshot | None = None, **changes: Any) -> Draft:
    """A draft whose root is that of this content."""
    return replace(draft_of([part_of(content)], after=after), **changes)


def test_a_log_begins_empty(store: Store) -> None:
    assert log.head(store, "raw_docs", SOURCE) is None
    assert log.numbers(store, "raw_docs", SOURCE) == []


def test_the_newest_entry_is_the_head_and_the_others_stay(store: Store) -> None:
    head = None
    for content in range(12):
        head = log.append(store, draft(content, head))

    assert log.numbers(store, "raw_docs", SOURCE) == list(range(1, 13))
    assert log.head(store, "raw_docs", SOURCE) == head
    assert head is not None
    assert (head.number, head.root) == (12, draft(11).root)
    fifth = log.entry(store, "raw_docs", SOURCE, 5)
    assert fifth is not None
    assert fifth.same_content(draft(4))


def test_an_entry_knows_its_number_and_the_time_of_its_commit(store: Store) -> None:
    committed = log.append(store, draft(1))

    assert committed.number == 1
    assert committed.created_at.endswith("+00:00")
    assert log.entry(store, "raw_docs", SOURCE, 1) == committed


def test_committing_the_same_content_again_writes_nothing(store: Store) -> None:
    committed = log.append(store, draft(1))
    before = contents(store)

    assert log.append(store, draft(1, committed)) == committed

    assert contents(store) == before


@pytest.mark.parametrize(
    "changes",
    [{"rejected": (REJECTION,)}, {"parts": (Part.alone(layer_of(1, "1" * 64)),)}, {"parts": (layered(1, on=7),)}],
    ids=["rejected", "bytes", "layers"],
)
def test_what_readers_see_besides_the_root_is_content_too(store: Store, changes: dict[str, Any]) -> None:
    committed = log.append(store, draft(1))

    again = log.append(store, draft(1, committed, **changes))

    assert again.number == 2
    assert log.head(store, "raw_docs", SOURCE) == again


def test_what_was_derived_from_a_superseded_upstream_is_not_committed(store: Store) -> None:
    """Another run has committed newer documents, and perhaps their chunks, since this one read them."""
    documents = log.append(store, draft(1))
    stale = draft(5, None, asset="chunks", upstream={"raw_docs": documents.root})
    newer = log.append(store, draft(2, documents))

    with pytest.raises(CommitConflict, match="another run has committed a newer one since"):
        log.append(store, stale)

    assert log.head(store, "chunks", SOURCE) is None
    assert log.append(store, replace(stale, upstream={"raw_docs": newer.root})).number == 1


def race(store: Store, contents: list[int]) -> list[Snapshot | CommitConflict]:
    """All of them commit at once on top of nothing."""
    barrier = Barrier(len(contents))

    def commit(content: int) -> Snapshot | CommitConflict:
        barrier.wait()
        try:
            return log.append(store, draft(content))
        except CommitConflict as conflict:
            return conflict

    with ThreadPoolExecutor(len(contents)) as pool:
        return list(pool.map(commit, contents))


def test_whoever_comes_second_with_the_same_content_in_other_layers_gets_the_entry_of_the_first(store: Store) -> None:
    """It began before the first had committed, and laid the content on what was there then."""
    before = log.append(store, draft(7))
    first = log.append(store, draft(1, before))

    second = log.append(store, draft(1, before, parts=(layered(1, on=7),)))

    assert second == first
    assert log.numbers(store, "raw_docs", SOURCE) == [1, 2]


def test_racing_writers_of_the_same_content_get_one_entry(store: Store) -> None:
    ended = race(store, [7] * 8)

    assert ended == [log.head(store, "raw_docs", SOURCE)] * 8
    assert list(contents(store)) == [PATH]


def test_of_racing_writers_of_other_contents_one_wins_and_the_rest_are_told(store: Store) -> None:
    ended = race(store, list(range(8)))

    winners = [one for one in ended if isinstance(one, Snapshot)]
    assert winners == [log.head(store, "raw_docs", SOURCE)]
    assert list(contents(store)) == [PATH]
    for conflict in ended:
        if isinstance(conflict, CommitConflict):
            assert isinstance(conflict, TransientError)
            assert f"raw_docs of source {SOURCE}: another run committed snapshot 1 first" in str(conflict)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(0, 3))), max_size=30),
)
def test_any_interleaving_of_writers_leaves_one_history(steps: list[tuple[int, int | None]]) -> None:
    """Each step is (writer, None: it reads the head; or the content that it commits on top of what it read)."""
    store = Store("memory://", MemoryStore())
    read: dict[int, Snapshot | None] = {}
    history: list[Snapshot] = []
    for writer, content in steps:
        if content is None:
            read[writer] = log.head(store, "raw_docs", SOURCE)
            continue
        base = read.get(writer)
        try:
            committed = log.append(store, draft(content, base))
        except CommitConflict:
            assert history[-1] != base
            assert not history[-1].same_content(draft(content))
            continue
        assert committed.same_content(draft(content))
        if committed not in history:
            # It is new, so nothing came between what its writer had read and itself.
            assert (history[-1] if history else None) == base
            history.append(committed)

    assert log.numbers(store, "raw_docs", SOURCE) == list(range(1, len(history) + 1))
    assert [log.entry(store, "raw_docs", SOURCE, number + 1) for number in range(len(history))] == history
    assert not any(older.same_content(newer) for older, newer in pairwise(history))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"bucketing": "by size"},
        {"root": "../../etc/passwd"},
        {"parts": None},
        {"shard_bits": 33},
        {"parts": [part_of(1).model_dump(mode="json") | {"shard": 1 << 40}]},
        {"parts": [part_of(1).model_dump(mode="json") | {"bytes": -1}]},
    ],
    ids=["format", "unknown field", "root", "parts", "shard bits", "shard", "bytes"],
)
def test_an_entry_of_another_format_is_refused_with_a_cure(store: Store, change: dict[str, object]) -> None:
    store.put_if_absent(PATH, json.dumps(draft(1).numbered(1, "").model_dump(mode="json") | change).encode())

    with pytest.raises(PermanentError) as refused:
        log.head(store, "raw_docs", SOURCE)

    for named in (store.url, PATH, "Cure: if a newer version wrote it, run that one"):
        assert named in str(refused.value)


@pytest.mark.parametrize("field", [{"asset": "chunks"}, {"source": "other"}, {"number": 7}])
def test_an_entry_of_another_log_or_place_is_refused(store: Store, field: dict[str, object]) -> None:
    entry = draft(1).numbered(1, "").model_copy(update=field)
    store.put_if_absent(PATH, entry.model_dump_json().encode())

    with pytest.raises(PermanentError, match=r"says that it is entry .*Cure: .*delete it"):
        log.head(store, "raw_docs", SOURCE)


@pytest.mark.parametrize("left", ["", "{", '{"format": 1, "asset": "raw_docs", "parts": [{"sha'])
def test_an_entry_cut_short_is_stepped_over(store: Store, left: str) -> None:
    """A disk that crashed left it: nobody was told that it is committed. The source goes on from the entry before."""
    first = log.append(store, draft(1))
    store.put_if_absent(entry_path("raw_docs", SOURCE, 2), left.encode())

    assert log.head(store, "raw_docs", SOURCE) == first
    assert log.append(store, draft(1, first)) == first
    second = log.append(store, draft(2, first))

    assert second.number == 3
    assert log.head(store, "raw_docs", SOURCE) == second


def test_the_cure_of_an_entry_that_cannot_be_read_works(store: Store) -> None:
    """Deleting it: the entry before it counts."""
    first = log.append(store, draft(1))
    path = entry_path("raw_docs", SOURCE, 2)
    store.put_if_absent(path, b'{"format": 99}')
    with pytest.raises(PermanentError, match="delete it, and the entry before it counts"):
        log.append(store, draft(2, first))

    store.delete([path])

    assert log.append(store, draft(2, first)).number == 2


def test_an_entry_too_large_to_be_one_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_LARGEST_ENTRY", 1000)
    store.put_if_absent(PATH, b"[" * 1001)

    with pytest.raises(PermanentError, match=r"has 1,001 bytes, and at most 1,000 are expected. Cure: "):
        log.head(store, "raw_docs", SOURCE)


def test_files_that_are_no_entries_are_passed_over(store: Store) -> None:
    store.put_if_absent(f"snapshots/raw_docs/{SOURCE}/notes.json", b"{}")
    store.put_if_absent(f"snapshots/raw_docs/{SOURCE}/0000000009.json.partial", b"{}")

    assert log.append(store, draft(1)).number == 1


def test_a_writer_that_stood_still_while_its_number_was_collected_is_told(store: Store) -> None:
    """It would put its entry below the head, where nobody looks."""
    first = log.append(store, draft(1))
    second = log.append(store, draft(2, first))
    third = log.append(store, draft(3, second))
    store.delete([entry_path("raw_docs", SOURCE, 2)])

    with pytest.raises(CommitConflict):
        log.append(store, draft(4, first))

    assert log.head(store, "raw_docs", SOURCE) == third
