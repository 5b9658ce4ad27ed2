"""What cannot be read now is unknown: it stays as it was, and everything else follows the source.

A place in memory, whose items can be shut, cut and hidden, is read into real snapshots and compared with a dict.
"""

import errno
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_assets.snapshots import log
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import open_store
from embedding_assets.sources.documents import unreadable
from embedding_assets.sources.formats import Format
from embedding_assets.sources.formats.jsonl import Jsonl
from embedding_assets.sources.formats.text import Text
from embedding_assets.sources.places import Item, Unknown
from embedding_assets.sources.reader import Reader
from embedding_assets.sources.stage import MassDelete, prepare_source, remember
from embedding_assets_tests.support.runners import one_by_one

SOURCE = "handbook"
ERROR = OSError(errno.ESTALE, "Stale file handle")


@dataclass
class Shelf:
    """A place in memory."""

    items: dict[str, bytes] = field(default_factory=dict)
    shut: set[str] = field(default_factory=set)
    """Names that are listed and cannot be opened."""
    hidden: set[str] = field(default_factory=set)
    """Folders, ended by `/`, that cannot be listed; items that cannot be looked at."""
    cut: dict[str, int] = field(default_factory=dict)
    """Bytes that can be read of an item before an error comes."""

    def list_items(self, source: str) -> Iterator[Item | Unknown | RejectedDocument]:
        covers = [name for name in self.hidden if name.endswith("/") or name in self.items]
        names = {name for name in self.items if not any(name.startswith(f) for f in covers if f.endswith("/"))}
        for name in sorted({*names, *covers}):
            if name in self.hidden:
                yield Unknown(name, unreadable(ERROR, source=source, item=name))
            else:
                yield Item(
                    name,
                    f"{self.items[name].hex()} {self.cut.get(name)}",
                    True,
                    len(self.items[name]),
                    self._opener(name),
                )

    def _opener(self, name: str) -> Callable[[], BinaryIO]:
        def open_() -> BinaryIO:
            if name in self.shut:
                raise ERROR
            if name in self.cut:
                return _Cut(self.items[name][: self.cut[name]])
            return io.BytesIO(self.items[name])

        return open_


class _Cut(io.BytesIO):
    """Bytes with an error where their end would be."""

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if not found:
            raise ERROR
        return found


@dataclass
class Source:
    """A shelf, with the store and the catalog of its snapshots."""

    root: Path
    format: Format
    shelf: Shelf = field(default_factory=Shelf)

    def look(self, *, max_deleted: float = 1, reread: bool = False) -> Snapshot:
        store, catalog = open_store((self.root / "store").as_uri()), self.root / "catalog.sqlite"
        draft, _ = prepare_source(
            store,
            SOURCE,
            Reader(SOURCE, self.shelf, self.format),
            catalog,
            one_by_one,
            max_deleted=max_deleted,
            allow_deletes=False,
            again=None if reread else (),
        )
        snapshot = log.append(store, draft)
        remember(catalog, snapshot)
        return snapshot

    def texts(self) -> dict[str, str]:
        store = open_store((self.root / "store").as_uri())
        head = log.head(store, "raw_docs", SOURCE)
        tables = [read_part(store, SOURCE, part).to_pydict() for part in head.parts] if head else []
        return {name: text for t in tables for name, text in zip(t["document_id"], t["text"], strict=True)}

    def lose_catalog(self) -> None:
        for path in self.root.glob("catalog.sqlite*"):
            path.unlink()


def lines(**documents: str) -> bytes:
    return b"".join(json.dumps({"id": key, "body": text}).encode() + b"\n" for key, text in documents.items())


@pytest.fixture
def files(tmp_path: Path) -> Source:
    return Source(tmp_path, Text())


@pytest.fixture
def jsonl(tmp_path: Path) -> Source:
    return Source(tmp_path, Jsonl("id", "body", ()))


def told(snapshot: Snapshot) -> list[tuple[str, str]]:
    return [(entry.item, entry.error_class) for entry in documents(snapshot)]


def documents(snapshot: Snapshot) -> list[RejectedDocument]:
    return [entry for entry in snapshot.rejected if isinstance(entry, RejectedDocument)]


@pytest.mark.parametrize("lost", [False, True], ids=["", "catalog lost"])
@pytest.mark.parametrize("how", ["shut", "hidden"])
def test_a_file_that_cannot_be_read_stays_as_it_was_and_is_named(files: Source, how: str, lost: bool) -> None:
    files.shelf.items = {"a.md": b"a", "b.md": b"b", "c.md": b"c"}
    files.look()
    files.shelf.items |= {"b.md": b"changed", "c.md": b"changed"}
    del files.shelf.items["a.md"]
    getattr(files.shelf, how).add("b.md")
    if lost:
        files.lose_catalog()

    snapshot = files.look()

    assert files.texts() == {"b.md": "b", "c.md": "changed"}
    assert told(snapshot) == [("b.md", "unreadable")]
    getattr(files.shelf, how).clear()
    assert files.look().rejected == ()
    assert files.texts() == {"b.md": "changed", "c.md": "changed"}


@pytest.mark.parametrize("lost", [False, True], ids=["", "catalog lost"])
def test_everything_below_a_folder_that_cannot_be_listed_stays(files: Source, lost: bool) -> None:
    files.shelf.items = {"a/1.md": b"1", "a/b/2.md": b"2", "a.md": b"a", "a0.md": b"0"}
    files.look()
    files.shelf.hidden.add("a/")
    for name in ("a/b/2.md", "a.md", "a0.md"):
        del files.shelf.items[name]
    if lost:
        files.lose_catalog()

    snapshot = files.look()

    assert files.texts() == {"a/1.md": "1", "a/b/2.md": "2"}
    assert told(snapshot) == [("a/", "unreadable")]
    files.shelf.hidden.clear()
    files.look()
    assert files.texts() == {"a/1.md": "1"}


def test_an_item_cut_short_gives_what_could_be_read_and_keeps_the_rest(jsonl: Source) -> None:
    jsonl.shelf.items = {"1.jsonl.gz": gzip.compress(lines(a="a", b="b", c="c") + b"broken\n")}
    jsonl.look()
    whole = gzip.compress(lines(new="new", b="changed", d="d" * 50), mtime=0)
    # The end of the stream alone is missing: its checksum and length.
    jsonl.shelf.items = {"1.jsonl.gz": whole[:-8]}

    snapshot = jsonl.look()

    assert jsonl.texts() == {"new": "new", "b": "changed", "d": "d" * 50, "a": "a", "c": "c"}
    assert [(entry.error_class, entry.position) for entry in documents(snapshot)] == [
        ("broken-json", 4),
        ("unreadable", 4),
    ]
    jsonl.shelf.items = {"1.jsonl.gz": whole}
    assert jsonl.look().rejected == ()
    assert jsonl.texts() == {"new": "new", "b": "changed", "d": "d" * 50}


def test_a_packed_item_that_is_given_up_for_what_it_unpacks_to_keeps_the_rest(
    jsonl: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_assets.sources.formats.lines._UNPACKED_ANYWAY", 1 << 20)
    jsonl.shelf.items = {"1.jsonl.gz": gzip.compress(lines(a="a", b="b"))}
    jsonl.look()
    jsonl.shelf.items = {"1.jsonl.gz": gzip.compress(lines(a="new")) + gzip.compress(b"\n" * (2 << 20) + lines(b="b"))}

    [rejected] = documents(jsonl.look())

    assert rejected.error_class == "unpacks-too-far"
    assert jsonl.texts() == {"a": "new", "b": "b"}


def test_while_nothing_tells_which_item_a_document_was_in_it_stays_until_all_can_be_read(jsonl: Source) -> None:
    jsonl.shelf.items = {"1.jsonl": lines(a="a", b="b"), "2.jsonl": lines(c="c")}
    jsonl.look()
    jsonl.lose_catalog()
    jsonl.shelf.items = {"1.jsonl": lines(a="a"), "2.jsonl": lines(c="c")}
    jsonl.shelf.shut.add("2.jsonl")
    jsonl.look()
    assert jsonl.texts() == {"a": "a", "b": "b", "c": "c"}

    jsonl.shelf.shut.clear()
    jsonl.look()

    assert jsonl.texts() == {"a": "a", "c": "c"}


@pytest.mark.parametrize("lost", [False, True], ids=["", "catalog lost"])
def test_the_guard_counts_the_documents_that_are_gone_and_names_some(files: Source, lost: bool) -> None:
    files.shelf.items = {f"{number}\u202e.md": b"old" for number in range(100)}
    files.look()
    files.shelf.items = {f"new {number}.md": b"new" for number in range(100)}
    if lost:
        files.lose_catalog()

    for _ in range(2):  # a look that was stopped is forgotten by none
        with pytest.raises(MassDelete) as stopped:
            files.look(max_deleted=0.2)

    for said in ("100 of 100 documents are gone (100%", '"0\\u202e.md"', "--allow-deletes", "Cure:"):
        assert said in str(stopped.value)
    assert len(files.texts()) == 100
    files.look(max_deleted=1)
    assert set(files.texts().values()) == {"new"}


def test_what_is_swapped_without_any_mark_moving_is_found_by_reading_everything_again(files: Source) -> None:
    files.shelf.items = {"a.md": b"old", "b.md": b"other"}
    files.look()
    shelf = files.shelf

    class Unmoved(Shelf):
        def list_items(self, source: str) -> Iterator[Item | Unknown | RejectedDocument]:
            marks = {item.name: item.mark for item in shelf.list_items(source) if isinstance(item, Item)}
            for item in super().list_items(source):
                assert isinstance(item, Item)
                yield Item(item.name, marks[item.name], item.settled, item.size, item.open)

    files.shelf = Unmoved({"a.md": b"new", "b.md": b"other"})
    files.look()
    assert files.texts() == {"a.md": "old", "b.md": "other"}

    files.look(reread=True)

    assert files.texts() == {"a.md": "new", "b.md": "other"}


# Any history

NAMES = ("a.md", "b/c.md", "b/d/e.md", "b0.md", "f.md")
FOLDERS = ("b/", "b/d/")
actions = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.sampled_from("xyz")),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just("")),
    st.tuples(st.just("shut"), st.sampled_from(NAMES), st.just("")),
    st.tuples(st.just("hide"), st.sampled_from(NAMES + FOLDERS), st.just("")),
    st.tuples(st.just("heal"), st.sampled_from(NAMES + FOLDERS), st.just("")),
    st.tuples(st.just("lose the catalog"), st.just(""), st.just("")),
    st.tuples(st.just("look"), st.sampled_from(["", "guarded", "reread"]), st.just("")),
)


def act(source: Source, what: str, name: str, text: str) -> None:
    shelf = source.shelf
    if what == "write":
        shelf.items[name] = text.encode()
    elif what == "delete":
        shelf.items.pop(name, None)
    elif what == "shut":
        shelf.shut.add(name)
    elif what == "hide":
        shelf.hidden.add(name)
    elif what == "heal":
        shelf.shut.discard(name)
        shelf.hidden.discard(name)


def is_unknown(shelf: Shelf, name: str) -> bool:
    below = any(name.startswith(folder) for folder in shelf.hidden if folder.endswith("/"))
    return below or (name in shelf.items and name in shelf.shut | shelf.hidden)


@settings(max_examples=25, deadline=None)
@given(history=st.lists(actions, max_size=25))
def test_whatever_comes_goes_and_cannot_be_read_nothing_unknown_is_deleted_and_nothing_deleted_stays(
    history: list[tuple[str, str, str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Source(Path(folder), Text())
        committed: dict[str, str] = {}
        seen: dict[str, str] = {}  # by looks that the guard stopped, too
        for what, name, text in [*history, ("look", "", "")]:
            act(source, what, name, text)
            if what == "lose the catalog":
                source.lose_catalog()
                seen = dict(committed)
            if what != "look":
                continue
            shelf = source.shelf
            kept = {one: (committed | seen)[one] for one in committed | seen if is_unknown(shelf, one)}
            seen = kept | {one: data.decode() for one, data in shelf.items.items() if not is_unknown(shelf, one)}
            gone = committed.keys() - seen.keys()
            if name == "guarded" and gone:
                with pytest.raises(MassDelete, match=f"{len(gone)} of {len(committed)} documents"):
                    source.look(max_deleted=0)
            else:
                snapshot = source.look(max_deleted=0 if name == "guarded" else 1, reread=name == "reread")
                committed = dict(seen)
                assert {item for item, _ in told(snapshot)} >= {one for one in shelf.hidden if one.endswith("/")}
            assert source.texts() == committed


cuts = st.one_of(st.none(), st.integers(0, 120))
steps = st.lists(
    st.tuples(st.sampled_from(["1.jsonl", "2.jsonl"]), st.sets(st.sampled_from("abcde")), st.sampled_from("xy"), cuts),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(history=steps)
def test_whatever_an_item_holds_and_wherever_it_is_cut_its_unread_documents_stay(
    history: list[tuple[str, set[str], str, int | None]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Source(Path(folder), Jsonl("id", "body", ()))
        source.shelf.items = {"0.jsonl": lines(only="one")}
        expected: dict[str, dict[str, str]] = {"0.jsonl": {"only": "one"}}
        for item, ids, text, cut in history:
            held = {f"{item}/{one}": text for one in sorted(ids)}
            source.shelf.items[item] = lines(**held)
            source.shelf.cut.pop(item, None)
            if cut is not None:
                source.shelf.cut[item] = cut
                read = source.shelf.items[item][:cut].count(b"\n")
                held = expected.get(item, {}) | dict(list(held.items())[:read])
            expected[item] = held
            snapshot = source.look()
            assert source.texts() == {key: text for each in expected.values() for key, text in each.items()}
            assert (cut is None) or (item, "unreadable") in told(snapshot)
        source.shelf.cut.clear()
        fresh = Source(Path(folder) / "fresh", source.format, source.shelf)
        assert source.look().root == fresh.look().root
