"""What every kind of source promises, whatever its place and its format: each place with each format it can carry."""

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pytest

from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import RAW_DOCS
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.rejections import ERROR_CLASSES, RejectedDocument
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.sources.formats import Format
from embedding_assets.sources.places import Item, PassedOver, Place, Unknown
from embedding_assets.sources.places.folder import Folder
from embedding_assets.sources.places.pattern import Pattern
from embedding_assets.sources.reader import Reader
from embedding_assets.sources.stage import Looked, prepare_source, remember
from embedding_assets_tests.support.hostile_items import JSONL, TEXT
from embedding_assets_tests.support.places import Settled
from embedding_assets_tests.support.runners import one_by_one

Pack = Callable[[str], str]
"""One document's text as an item of a format has it."""

PLACES: dict[str, Callable[[Path, str], Place]] = {
    "a folder": lambda root, suffix: Folder(root, (f"**/*{suffix}",)),
    "a pattern": lambda root, suffix: Pattern(root / "**" / f"*{suffix}"),
}


def one_line(text: str) -> str:
    return json.dumps({"id": text, "text": text}, ensure_ascii=False) + "\n"


FORMATS: dict[str, tuple[Format, Pack]] = {
    ".txt": (TEXT, str),
    ".md": (TEXT, str),
    ".rst": (TEXT, str),
    ".html": (TEXT, lambda text: f"<p>{text}</p>"),
    ".jsonl": (JSONL, one_line),
    ".jsonl.gz": (JSONL, one_line),
}

SOURCE = "handbook"


@dataclass(frozen=True)
class Broken:
    """A place of which one item cannot be read, as of a disk that fails."""

    place: Place
    name: str

    def list_items(self, source: str) -> Iterator[Item | Unknown | PassedOver | RejectedDocument]:
        for item in self.place.list_items(source):
            is_broken = isinstance(item, Item) and item.name == self.name
            yield replace(item, mark="another", open=self.fail) if isinstance(item, Item) and is_broken else item

    def fail(self) -> BinaryIO:
        raise OSError(5, "Input/output error")


@dataclass
class Source:
    """Items of one place and format, with the store and the catalog of their snapshots."""

    root: Path
    at: Callable[[Path, str], Place]
    suffix: str
    form: Format
    pack: Pack
    store: Store
    clock: Iterator[int] = field(default_factory=lambda: iter(range(1_600_000_000, 1_700_000_000)))

    @property
    def items(self) -> Path:
        return self.root / "items"

    def name(self, stem: str) -> str:
        return stem + self.suffix

    def write(self, documents: Mapping[str, str], encoding: str = "utf-8") -> None:
        """An item for each stem, with one document; each of another time, long ago."""
        for stem, text in documents.items():
            path = self.items / self.name(stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            data = self.pack(text).encode(encoding)
            path.write_bytes(gzip.compress(data) if self.suffix.endswith(".gz") else data)
            modified = next(self.clock)
            os.utime(path, (modified, modified))

    @property
    def place(self) -> Place:
        return Settled(self.at(self.items, self.suffix))

    def look(self, place: Place | None = None, catalog: str = "catalog") -> tuple[Snapshot, Looked]:
        reader = Reader(SOURCE, place or self.place, self.form)
        path = self.root / f"{catalog}.sqlite"
        draft, looked = prepare_source(self.store, SOURCE, reader, path, one_by_one, max_deleted=1, allow_deletes=False)
        snapshot = log.append(self.store, draft)
        remember(path, snapshot)
        return snapshot, looked

    def texts(self) -> set[str]:
        """Those of the head's documents."""
        head = log.head(self.store, RAW_DOCS, SOURCE)
        assert head is not None
        return {text for part in head.parts for text in read_part(self.store, SOURCE, part).column("text").to_pylist()}


@pytest.fixture(params=FORMATS)
def suffix(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=PLACES.values(), ids=list(PLACES))
def source(request: pytest.FixtureRequest, suffix: str, tmp_path: Path) -> Source:
    form, pack = FORMATS[suffix]
    return Source(tmp_path, request.param, suffix, form, pack, open_store((tmp_path / "store").as_uri()))


THREE = {"a": "Refunds take five days.", "b/c": "Returns are free.", "b/d/e": "Nothing is for ever."}


def test_every_item_is_listed_opened_and_read(source: Source) -> None:
    source.write(THREE)

    snapshot, looked = source.look()

    assert (looked.items, looked.read, snapshot.rejected) == (3, 3, ())
    assert source.texts() == set(THREE.values())


def test_what_is_unchanged_is_not_opened_again(source: Source) -> None:
    source.write(THREE)
    first, _ = source.look()

    second, looked = source.look()

    assert (looked.items, looked.read, looked.parts_written) == (3, 0, 0)
    assert second.root == first.root


def test_of_what_changed_came_and_went_each_is_seen_and_nothing_else_is_read(source: Source) -> None:
    source.write(THREE)
    source.look()

    source.write({"a": "Refunds take six days.", "new": "Opening hours: nine to five."})
    (source.items / source.name("b/c")).unlink()
    _, looked = source.look()

    assert (looked.items, looked.read) == (3, 2)
    assert source.texts() == {"Refunds take six days.", "Opening hours: nine to five.", "Nothing is for ever."}


def test_the_same_items_are_the_same_snapshot_whoever_looks_and_whatever_was_before(source: Source) -> None:
    source.write({**THREE, "gone": "It was here for a while."})
    source.look()
    (source.items / source.name("gone")).unlink()
    followed, _ = source.look()

    anew, looked = source.look(catalog="of another machine")

    assert looked.read == 3
    assert anew.root == followed.root


def test_an_item_that_cannot_be_read_is_a_rejection_with_its_cure_and_the_rest_goes_on(source: Source) -> None:
    source.write(THREE)
    source.look()
    source.write({"b/c": "Returns cost ten dollars."})

    broken = Broken(source.place, source.name("a"))
    snapshot, _ = source.look(broken)

    (rejection,) = snapshot.rejected
    assert rejection.error_class == "unreadable"
    assert rejection.cure == ERROR_CLASSES["unreadable"].cure
    assert source.name("a") in json.dumps(rejection.model_dump(mode="json"))
    # What is not known to be gone stays.
    assert source.texts() == {THREE["a"], "Returns cost ten dollars.", THREE["b/d/e"]}

    healed, _ = source.look()
    assert (healed.rejected, source.texts()) == ((), {THREE["a"], "Returns cost ten dollars.", THREE["b/d/e"]})


def test_an_item_without_a_document_in_it_keeps_no_other_from_being_read(source: Source) -> None:
    source.write(THREE)
    path = source.items / source.name("empty")
    path.write_bytes(gzip.compress(b"") if source.suffix.endswith(".gz") else b"")

    snapshot, looked = source.look()

    assert looked.items == 4
    assert source.texts() == set(THREE.values())
    assert {rejection.error_class for rejection in snapshot.rejected} <= {"empty-text"}


HOSTILE = [" ", "-rf *", "a'; drop table items; --", "%2e%2e", "né ß 東京 😀", "a\\b", "$(id)", "[a]{b}?", "x" * 200]


def test_a_name_is_data_whatever_it_would_be_elsewhere(source: Source) -> None:
    documents = {stem: f"Text number {number}." for number, stem in enumerate(HOSTILE)}
    source.write(documents)

    snapshot, looked = source.look()

    assert (looked.items, snapshot.rejected) == (len(HOSTILE), ())
    assert source.texts() == set(documents.values())
    assert source.look()[1].read == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_the_same_in_every_unicode_encoding_that_names_itself(source: Source, encoding: str) -> None:
    source.write({"a": "Größe: 10 €, 東京, \N{FAMILY}."}, encoding)

    snapshot, _ = source.look()

    assert (source.texts(), snapshot.rejected) == ({"Größe: 10 €, 東京, \N{FAMILY}."}, ())


def test_bytes_that_are_no_text_are_a_rejection_and_no_error(source: Source) -> None:
    source.write(THREE)
    (source.items / source.name("noise")).write_bytes(bytes(range(256)) * 4)

    snapshot, looked = source.look()

    assert looked.items == 4
    assert set(THREE.values()) <= source.texts()
    assert snapshot.rejected
    assert all(rejection.reason.isprintable() and rejection.cure for rejection in snapshot.rejected)
