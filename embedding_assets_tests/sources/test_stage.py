"""The raw_docs stage: what a look costs, and when it refuses to go on.

Runs of every kind over a whole pipeline are in `test_pipeline_properties`; here is what those cannot show.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.rejections import ERROR_CLASSES
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.sources.formats.jsonl import Jsonl
from embedding_assets.sources.formats.text import Text
from embedding_assets.sources.places.folder import Folder
from embedding_assets.sources.places.pattern import Pattern
from embedding_assets.sources.reader import Reader
from embedding_assets.sources.stage import Looked, MassDelete, prepare_source, remember
from embedding_assets.telemetry.events import (
    Event,
    ItemRead,
    ShardMade,
    SnapshotCommitted,
    Tell,
    committed,
    unheard,
)
from embedding_assets_tests.support.places import Settled
from embedding_assets_tests.support.runners import one_by_one

SOURCE = "handbook"


@dataclass
class Source:
    """A folder of files, with the store and the catalog of its snapshots."""

    root: Path
    store: Store
    clock: Iterator[int] = field(default_factory=lambda: iter(range(1_600_000_000, 1_700_000_000)))

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    def write(self, name: str, text: str) -> None:
        """Write a file that changed long ago, each at another time."""
        self.docs.mkdir(exist_ok=True)
        (self.docs / name).write_text(text)
        modified = next(self.clock)
        os.utime(self.docs / name, (modified, modified))

    def write_lines(self, name: str, **documents: str) -> None:
        self.write(name, "".join(json.dumps({"id": key, "body": text}) + "\n" for key, text in documents.items()))

    def reader(self, kind: str) -> Reader:
        if kind == "files":
            return Reader(SOURCE, Settled(Folder(self.docs, ("**/*.md",))), Text())
        return Reader(SOURCE, Settled(Pattern(self.docs / "*.jsonl*")), Jsonl("id", "body", ()))

    def snapshot(
        self, kind: str = "files", max_deleted: float = 1, allow_deletes: bool = False, tell: Tell = unheard
    ) -> tuple[Snapshot, Looked]:
        catalog = self.root / "catalog.sqlite"
        draft, looked = prepare_source(
            self.store,
            SOURCE,
            self.reader(kind),
            catalog,
            one_by_one,
            max_deleted=max_deleted,
            allow_deletes=allow_deletes,
            tell=tell,
        )
        snapshot = log.append(self.store, draft)
        remember(catalog, snapshot)
        return snapshot, looked

    def texts(self) -> dict[str, str]:
        """The head's documents."""
        head = log.head(self.store, "raw_docs", SOURCE)
        assert head is not None
        tables = [read_part(self.store, SOURCE, part).to_pydict() for part in head.parts]
        return {name: text for t in tables for name, text in zip(t["document_id"], t["text"], strict=True)}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path, open_store((tmp_path / "store").as_uri()))


def test_only_files_that_look_changed_are_read(source: Source) -> None:
    for name in "abc":
        source.write(f"{name}.md", name)
    assert source.snapshot()[1] == Looked(items=3, read=3, parts_written=1)

    assert source.snapshot()[1] == Looked(items=3, read=0, parts_written=0)
    source.write("b.md", "changed")
    assert source.snapshot()[1] == Looked(items=3, read=1, parts_written=1)

    assert source.texts() == {"a.md": "a", "b.md": "changed", "c.md": "c"}


def test_each_item_that_is_read_and_each_shard_that_is_made_is_told_of(source: Source) -> None:
    for name in "abc":
        source.write(f"{name}.md", name)
    first, second = list[Event](), list[Event]()

    snapshot, _ = source.snapshot(tell=first.append)
    source.snapshot(tell=second.append)  # nothing has changed

    (part,) = snapshot.parts
    assert first == [*map(ItemRead, (1, 2, 3)), ShardMade("raw_docs", part.shard, 3, part.bytes, made=1, wanted=1)]
    assert second == []


def test_files_that_no_pattern_names_are_counted_and_the_first_are_named(source: Source) -> None:
    source.write("a.md", "a")
    for number in range(7):
        source.write(f"{number}.pdf", "x")
    source.write("\x1b[2J.pdf", "x")
    _, looked = source.snapshot()
    assert looked.passed_over == 8
    assert looked.passed_over_first == (r"\x1b[2J.pdf", "0.pdf", "1.pdf", "2.pdf", "3.pdf")


def test_a_file_that_was_only_touched_is_read_and_nothing_is_written(source: Source) -> None:
    source.write("a.md", "a")
    first, _ = source.snapshot()
    source.write("a.md", "a")

    assert source.snapshot() == (first, Looked(items=1, read=1, parts_written=0))


def test_a_tree_that_was_moved_is_read_once_and_changes_nothing(source: Source) -> None:
    for name in "ab":
        source.write(f"{name}.md", name)
    first, _ = source.snapshot()
    source.docs.rename(source.root / "moved")
    source.docs.symlink_to("moved")

    assert source.snapshot() == (first, Looked(items=2, read=2, parts_written=0))
    assert source.snapshot() == (first, Looked(items=2, read=0, parts_written=0))


def test_a_document_whose_first_of_its_id_goes_stands_without_being_read_again(source: Source) -> None:
    source.write_lines("1.jsonl", x="first")
    source.write_lines("2.jsonl", x="second", y="other")
    snapshot, _ = source.snapshot("jsonl")
    assert source.texts() == {"x": "first", "y": "other"}
    assert [(rejection.where, rejection.document_id) for rejection in snapshot.rejected] == [("2.jsonl:1", "x")]
    (source.docs / "1.jsonl").unlink()

    _, looked = source.snapshot("jsonl")

    assert looked.read == 0
    assert source.texts() == {"x": "second", "y": "other"}


def test_a_text_that_neither_catalog_nor_snapshot_has_any_more_is_read_anew(source: Source) -> None:
    """It stood, lost to an earlier one of its id, and stands again: the last snapshot has the other one's text."""
    source.write_lines("2.jsonl", x="second", y="other")
    source.snapshot("jsonl")
    source.write_lines("1.jsonl", x="first")
    source.snapshot("jsonl")
    assert source.texts() == {"x": "first", "y": "other"}
    (source.docs / "1.jsonl").unlink()

    source.snapshot("jsonl")

    assert source.texts() == {"x": "second", "y": "other"}


@pytest.mark.parametrize("where", [0, 20_000], ids=["its head", "a page within"])
def test_a_damaged_catalog_is_made_anew_by_the_next_run(source: Source, where: int) -> None:
    for number in range(300):
        source.write(f"{number}.md", f"text {number}")
    source.snapshot()
    with open(source.root / "catalog.sqlite", "r+b") as file:
        file.seek(where)
        file.write(b"\xff" * 40_000)

    with pytest.raises(TransientError, match=r"catalog.* is damaged .* Cure: run again"):
        source.snapshot()

    assert source.snapshot()[1] == Looked(items=300, read=300, parts_written=0)


def test_a_catalog_of_another_machines_snapshot_is_not_believed(source: Source) -> None:
    source.write("a.md", "a")
    source.snapshot()
    elsewhere = Source(source.root / "elsewhere", source.store)
    elsewhere.docs.mkdir(parents=True)
    elsewhere.write("a.md", "another text")
    elsewhere.snapshot()

    _, looked = source.snapshot()

    assert looked.read == 1
    assert source.texts() == {"a.md": "a"}


@pytest.fixture
def ten(source: Source) -> Source:
    for number in range(10):
        source.write(f"{number}.md", f"text {number}")
    source.snapshot()
    return source


def test_a_source_that_lists_far_fewer_documents_stops_the_run_before_anything_changes(ten: Source) -> None:
    for number in range(3):
        (ten.docs / f"{number}.md").unlink()
    before = list(ten.store.entries(""))

    with pytest.raises(MassDelete) as stopped:
        ten.snapshot(max_deleted=0.2)

    assert isinstance(stopped.value, PermanentError)
    for told in (f"source {SOURCE}", "3 of 10 documents are gone (30%", "--allow-deletes", "Cure:"):
        assert told in str(stopped.value)
    assert list(ten.store.entries("")) == before


def test_deletes_up_to_the_limit_go_on(ten: Source) -> None:
    for number in range(2):
        (ten.docs / f"{number}.md").unlink()

    ten.snapshot(max_deleted=0.2)

    assert len(ten.texts()) == 8


def test_a_mass_delete_goes_on_once_it_is_allowed(ten: Source) -> None:
    for number in range(9):
        (ten.docs / f"{number}.md").unlink()
    with pytest.raises(MassDelete):
        ten.snapshot(max_deleted=0.2)

    ten.snapshot(max_deleted=0.2, allow_deletes=True)

    assert list(ten.texts()) == ["9.md"]


def test_documents_that_come_back_after_a_stopped_run_are_all_there(ten: Source) -> None:
    """The volume was not mounted, and is now."""
    (ten.docs).rename(ten.root / "unmounted")
    ten.write("9.md", "text 9")
    with pytest.raises(MassDelete):
        ten.snapshot(max_deleted=0.2)
    (ten.docs / "9.md").unlink()
    ten.docs.rmdir()
    (ten.root / "unmounted").rename(ten.docs)

    ten.snapshot(max_deleted=0.2)

    assert len(ten.texts()) == 10


def test_documents_that_cannot_be_read_any_more_count_as_gone(ten: Source) -> None:
    for number in range(3):
        (ten.docs / f"{number}.md").write_bytes(b"\xff\xfe\xfd")

    with pytest.raises(MassDelete):
        ten.snapshot(max_deleted=0.2)


def test_what_is_refused_is_listed_with_its_place_and_cure_and_the_rest_goes_on(source: Source) -> None:
    source.write("a.md", "a")
    source.write("blank.md", " \n")

    snapshot, _ = source.snapshot()

    assert source.texts() == {"a.md": "a"}
    (rejection,) = snapshot.rejected
    assert (rejection.source, rejection.where, rejection.error_class) == (SOURCE, "blank.md", "empty-text")
    assert rejection.cure == ERROR_CLASSES["empty-text"].cure


def test_a_commit_is_told_with_its_rejections_by_class(source: Source) -> None:
    source.write_lines("docs.jsonl", a="a", b="", c="", d="d")
    (source.docs / "docs.jsonl").open("a").write("no json\n")

    snapshot, _ = source.snapshot("jsonl")

    assert committed(snapshot) == SnapshotCommitted(
        "raw_docs",
        number=1,
        parts=1,
        rows=2,
        bytes=snapshot.parts[0].bytes,
        rejected={"empty-text": 2, "broken-json": 1},
    )


def test_twins_but_for_their_unicode_form_are_refused_the_same_way_each_time(source: Source) -> None:
    source.write("e\u0301.md", "decomposed")
    source.write("\u00e9.md", "composed")
    first, _ = source.snapshot()
    assert len(first.rejected) == 1

    assert source.snapshot()[0] == first
