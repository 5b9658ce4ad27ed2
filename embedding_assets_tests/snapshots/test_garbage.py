import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial, partialmethod
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots import garbage, log
from embedding_assets.snapshots.garbage import Collected, aside, aside_of, collect
from embedding_assets.snapshots.log import entry_path
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.replication import harmed
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets_tests.snapshots.conftest import contents
from embedding_assets_tests.support.shards import SOURCE, commit, draft_of, write

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def layer(number: int, asset: str) -> Layer:
    return Layer(asset=asset, shard=number, key=f"{number:064x}", rows=1, bytes=3, sha256="0" * 64)


class Committed(NamedTuple):
    """A log's entry: the hours since its commit, and the parts it names."""

    hours: int
    parts: set[int]


# The entries of a log from the newest to the oldest, each some hours older than the one before.
logs = st.lists(st.tuples(st.integers(0, 40), st.sets(st.integers(0, 9), max_size=4)), min_size=1, max_size=6).map(
    lambda steps: [Committed(sum(hours for hours, _ in steps[: i + 1]), parts) for i, (_, parts) in enumerate(steps)]
)


@pytest.mark.slow
@given(
    of_assets=st.fixed_dictionaries({"chunks": logs, "s3_replica": logs}),
    orphans=st.dictionaries(st.integers(0, 9), st.integers(0, 100)),
    keep=st.integers(1, 4),
    grace_hours=st.integers(1, 60),
)
def test_what_goes_is_exactly_what_is_old_and_named_by_no_retained_snapshot(
    of_assets: dict[str, list[Committed]], orphans: dict[int, int], keep: int, grace_hours: int
) -> None:
    """Retained: the newest `keep` of a log, and whatever was a head within the grace."""
    grace = grace_hours + 0.5  # whole hours are never exactly at the edge of it
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder).as_uri())

        def put(path: str, data: bytes, hours: int) -> None:
            store.put_if_absent(path, data)
            modified = (NOW - timedelta(hours=hours)).timestamp()
            os.utime(Path(folder) / path, (modified, modified))

        superseded: set[str] = set()
        retained: set[str] = set()
        age = {layer(number, "chunks").path(SOURCE): hours for number, hours in orphans.items()}
        for asset, entries in of_assets.items():
            for place, (hours, numbers) in enumerate(entries):
                number = len(entries) - place
                path = entry_path(asset, SOURCE, number)
                layers = [layer(one, "chunks") for one in numbers]
                parts = [Part.alone(one) for one in layers]
                put(path, draft_of(parts, asset=asset).numbered(number, "").model_dump_json().encode(), hours)
                paths = {one.path(SOURCE) for one in layers}
                age |= {one: max(hours, age.get(one, 0)) for one in paths}  # a part is as old as the first to name it
                if place < keep or entries[place - 1].hours < grace:
                    retained |= paths
                else:
                    superseded.add(path)
        for path, hours in age.items():
            put(path, b"...", hours)
        before = set(contents(store))

        collected = collect(store, keep=keep, grace=timedelta(hours=grace), now=NOW)

        stale = {path for path, hours in age.items() if hours > grace} - retained
        assert before - set(contents(store)) == superseded | stale
        assert collected == Collected(len(superseded), len(stale), put_back=0, deleted=0, bytes=0)

        later = collect(store, keep=keep, grace=timedelta(hours=grace), now=NOW + timedelta(hours=2 * grace))

        assert not stale & {path.split("/", 2)[2] for path in contents(store) if path.startswith("aside/")}
        assert later.deleted == len(stale)
        assert later.bytes == 3 * len(stale)


def head_of(store: Store, asset: str) -> Snapshot:
    head = log.head(store, asset, SOURCE)
    assert head is not None
    return head


def test_every_retained_snapshot_still_reads_after_a_collection(store: Store) -> None:
    head = None
    for content in "abcde":
        head = commit(store, [write(store, {"name": content}), write(store, {"same": ""}, shard=1)], head)
    write(store, {"orphan": ""}, shard=2)

    collected = collect(store, keep=2, grace=DAY, now=NOW + 2 * DAY)

    assert (collected.log_entries, collected.set_aside) == (3, 4)
    assert log.numbers(store, "raw_docs", SOURCE) == [4, 5]
    for number in (4, 5):
        snapshot = log.entry(store, "raw_docs", SOURCE, number)
        assert snapshot is not None
        assert harmed(store, snapshot) == []


def test_parts_of_a_run_under_way_stay(store: Store) -> None:
    """They are written before any snapshot names them."""
    commit(store, [write(store, {"a": "1"})])
    under_way = write(store, {"a": "2"})

    assert collect(store, keep=1, grace=DAY) == Collected(0, 0, 0, 0, 0)

    assert commit(store, [under_way], head_of(store, "raw_docs")).number == 2


def test_a_head_superseded_a_moment_ago_stays_however_old_it_is(folder_store: Store, tmp_path: Path) -> None:
    """Whoever began with it still reads its parts."""
    old = commit(folder_store, [write(folder_store, {"a": "1"})])
    last_month = (NOW - 30 * DAY).timestamp()
    for found in folder_store.entries(""):
        os.utime(tmp_path / "store" / found.path, (last_month, last_month))
    commit(folder_store, [write(folder_store, {"a": "2"})], old)

    assert collect(folder_store, keep=1, grace=DAY) == Collected(0, 0, 0, 0, 0)
    assert read_part(folder_store, SOURCE, old.parts[0]).num_rows == 1

    assert collect(folder_store, keep=1, grace=DAY, now=NOW + 2 * DAY).log_entries == 1


@pytest.mark.parametrize("keep", [1, 0])
def test_the_head_of_a_log_always_stays(store: Store, keep: int) -> None:
    """Numbers would begin at 1 again otherwise."""
    first = commit(store, [write(store, {"a": "1"})])
    second = commit(store, [write(store, {"a": "2"})], first)

    collect(store, keep=keep, grace=DAY, now=NOW + 1000 * DAY)

    assert log.numbers(store, "raw_docs", SOURCE) == [2]
    assert head_of(store, "raw_docs") == second
    assert harmed(store, second) == []


def test_nothing_goes_from_a_store_with_an_entry_that_cannot_be_read(store: Store) -> None:
    """It may name anything."""
    commit(store, [write(store, {"a": "1"})])
    write(store, {"orphan": ""})
    store.put_if_absent(entry_path("chunks", SOURCE, 1), b'{"format": 99}')
    before = contents(store)

    with pytest.raises(PermanentError, match="Cure: if a newer version wrote it"):
        collect(store, keep=1, grace=DAY, now=NOW + 2 * DAY)

    assert contents(store) == before


def test_a_collection_that_died_between_entries_and_parts_is_finished_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(store, [write(store, {"a": "1"})])
    second = commit(store, [write(store, {"a": "2"})], first)
    monkeypatch.setattr(Store, "move", lambda self, path, to: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collect(store, keep=1, grace=DAY, now=NOW + 2 * DAY)
    monkeypatch.undo()

    assert log.numbers(store, "raw_docs", SOURCE) == [2]
    assert collect(store, keep=1, grace=DAY, now=NOW + 2 * DAY).set_aside == 1
    assert harmed(store, second) == []


# A run that goes on meanwhile

OPERATIONS = ("put_if_absent", "get", "keep_young", "entries", "move", "modified", "delete", "replace")


def interleave(outer: Callable[[], None], place: int, inner: Callable[[], None]) -> bool:
    """Do `outer`, and all of `inner` just before the store's operation of this place; whether there is such a place."""
    seen = 0

    def watched(operation: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == place:
            inner()
        return operation(*arguments, **more)

    with pytest.MonkeyPatch.context() as patches:
        for name in OPERATIONS:
            patches.setattr(Store, name, partialmethod(partial(watched, getattr(Store, name))))
        outer()
    return seen >= place


def old_wording(tmp_path: Path) -> tuple[Store, Snapshot]:
    """A store whose document was changed long ago; the part with its first wording is nobody's any more."""
    store = open_store(tmp_path.as_uri())
    first = commit(store, [write(store, {"a": "1"})])
    head = commit(store, [write(store, {"a": "2"})], first)
    store.delete([entry_path("raw_docs", SOURCE, 1)])
    for found in store.entries("parts"):
        os.utime(tmp_path / found.path, (0, 0))
    return store, head


def back_to_the_first_wording(store: Store, head: Snapshot) -> None:
    commit(store, [write(store, {"a": "1"})], head)


def collections(store: Store) -> None:
    collect(store, keep=1, grace=DAY)


@pytest.mark.parametrize("inner", ["run", "collection"])
def test_whatever_a_run_finds_and_commits_while_garbage_is_collected_is_there_after_the_next_collection(
    tmp_path: Path, inner: str
) -> None:
    """At each of the store's operations of the one, the whole of the other."""
    for place in count(1):
        store, head = old_wording(tmp_path / str(place))
        run, collection = partial(back_to_the_first_wording, store, head), partial(collections, store)
        if not interleave(*((collection, place, run) if inner == "run" else (run, place, collection))):
            break

        collect(store, keep=1, grace=DAY, now=datetime.now(UTC) + 3 * DAY)

        assert harmed(store, head_of(store, "raw_docs")) == [], place
        assert head_of(store, "raw_docs").number == 3
    assert place > 5


def test_files_that_are_nobodys_stop_no_collection_and_stay(store: Store) -> None:
    kept = write(store, {"a": "1"})
    commit(store, [kept])
    foreign = [
        "aside/note.txt",
        "aside/20260101T000000Z/note.txt",
        "aside/99999999T999999Z/parts/chunks/handbook/a.parquet",
        "snapshots/note.txt",
        "snapshots/chunks/handbook/more/0000000001.json",
    ]
    for path in foreign:
        store.put_if_absent(path, b"a person's own")

    collect(store, keep=1, grace=DAY, now=NOW + 2 * DAY)

    assert {path for path in contents(store) if path in foreign} == set(foreign)
    assert store.get(kept.layers[0].path(SOURCE)) is not None
    assert aside(store, kept.layers[0].path(SOURCE)) == aside_of(store, SOURCE) == []


def test_a_machine_whose_clock_is_ahead_takes_nothing_for_old(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, {"a": "1"})  # of a run that is about to name it
    monkeypatch.setattr(garbage, "datetime", SimpleNamespace(now=lambda _: NOW + 1000 * DAY))
    before = contents(store)

    assert collect(store, keep=1, grace=DAY) == Collected(0, 0, 0, 0, 0)

    assert contents(store) == before
