import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.catalog import Catalog, Known, Row, open_catalog
from embedding_assets.sources.documents import Document, reject, validate
from embedding_assets.sources.formats import Kept

MARK = "a mark"


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with open_catalog(tmp_path / "catalogs" / "handbook.sqlite") as catalog:
        catalog.reset("reader-1", "", tuple)
        yield catalog


def document(name: str, text: str) -> Document:
    found = validate(source="handbook", item="any", position=1, document_id=name, text=text, metadata={})
    assert isinstance(found, Document)
    return found


def refused(item: str, why: str = "empty") -> RejectedDocument:
    return reject("unreadable" if why == "unreadable" else "empty-text", why, source="handbook", item=item)


def holding(things: list[Document | RejectedDocument], kept: Kept) -> list[Document | RejectedDocument]:
    return things


def look(catalog: Catalog, *found: tuple[str, list[Document | RejectedDocument]], mark: str | None = MARK) -> None:
    """A look at items with these things in them."""
    catalog.begin_listing()
    for name, things in found:
        catalog.list_item(name)
        catalog.replace(name, mark, partial(holding, things))
    catalog.end_listing()


def texts(catalog: Catalog) -> dict[str, str | None]:
    return {row.document_id: row.text for row in catalog.rows(0, 0)}


def test_an_item_is_unchanged_while_its_mark_is(catalog: Catalog) -> None:
    look(catalog, ("a", [document("a", "text")]))

    assert catalog.unchanged("a", MARK)
    assert not catalog.unchanged("a", "another mark")
    assert not catalog.unchanged("b", MARK)


def test_an_item_whose_mark_said_nothing_yet_is_read_again(catalog: Catalog) -> None:
    look(catalog, ("a", [document("a", "text")]), mark=None)

    assert not catalog.unchanged("a", MARK)


def test_an_item_that_could_not_be_read_is_read_again(catalog: Catalog) -> None:
    """A permission or a mount heals without the file looking any different."""
    look(catalog, ("a", [document("a", "text"), refused("a", "unreadable")]))

    assert not catalog.unchanged("a", MARK)


def test_an_item_without_anything_in_it_is_remembered_and_forgotten_too(catalog: Catalog) -> None:
    look(catalog, ("empty", []))
    assert catalog.unchanged("empty", MARK)

    look(catalog)

    assert not catalog.unchanged("empty", MARK)


def test_what_an_item_held_goes_with_it(catalog: Catalog) -> None:
    look(catalog, ("a", [document("a", "text"), refused("a")]), ("b", [document("b", "text")]))

    look(catalog, ("b", [document("b", "text")]))

    assert catalog.totals() == (1, 4)
    assert list(catalog.rejected()) == []


def test_a_look_that_breaks_off_within_an_item_leaves_what_was_known_of_it(catalog: Catalog) -> None:
    look(catalog, ("a", [document("a", "old")]))

    def half() -> Iterator[Document]:
        yield document("a", "new")
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        catalog.replace("a", "another mark", lambda kept: half())

    assert texts(catalog) == {"a": "old"}
    assert catalog.unchanged("a", MARK)


def test_what_the_listing_refused_is_noted_once_however_often_it_is_listed(catalog: Catalog) -> None:
    """Even under the name of an item that it lists: a twin but for its Unicode normal form."""
    for _ in range(3):
        catalog.begin_listing()
        catalog.list_item("é.md")
        catalog.replace("é.md", MARK, lambda kept: [document("é.md", "text")])
        catalog.refuse(refused("é.md", "a twin"))
        catalog.end_listing()

        assert len(list(catalog.rejected())) == 1


def test_the_first_document_of_an_id_stands_and_the_others_are_named(catalog: Catalog) -> None:
    look(
        catalog,
        ("1", [document("x", "first"), document("x", "second")]),
        ("2", [document("x", "third"), document("y", "fourth")]),
    )

    assert texts(catalog) == {"x": "first", "y": "fourth"}
    assert catalog.totals() == (2, len("firstfourth"))
    assert list(catalog.doubled()) == [("1", 1, "x", "1"), ("2", 1, "x", "1")]


def test_texts_are_dropped_once_a_snapshot_has_them_but_for_those_in_waiting(catalog: Catalog) -> None:
    look(catalog, ("1", [document("x", "first")]), ("2", [document("x", "second")]))
    catalog.committed("root")
    assert texts(catalog) == {"x": None}

    look(catalog, ("2", [document("x", "second")]))

    assert texts(catalog) == {"x": "second"}


def test_a_catalog_about_another_snapshot_knows_that_ones_documents_and_nothing_else(catalog: Catalog) -> None:
    look(catalog, ("a", [document("a", "text"), refused("a")]))
    catalog.committed("root")
    one = Known("b", "b", b"a hash", 4)

    catalog.reset("reader-1", "another root", lambda: [one])

    assert catalog.totals() == (1, 4)
    assert catalog.rows(0, 0) == [Row("b", b"a hash", None, None)]
    assert list(catalog.rejected()) == []
    assert not catalog.unchanged("a", MARK)


def test_a_catalog_of_another_reader_knows_what_items_held_and_has_them_read_again(catalog: Catalog) -> None:
    look(catalog, ("a", [document("a", "text"), refused("a")]))
    catalog.committed("root")
    catalog.reset("reader-1", "root", tuple)
    assert catalog.unchanged("a", MARK)

    catalog.reset("reader-2", "root", tuple)

    assert catalog.totals() == (1, 4)
    assert not catalog.unchanged("a", MARK)


def test_a_text_that_the_last_snapshot_has_is_not_kept_twice(catalog: Catalog) -> None:
    look(catalog, ("a", [document("x", "text"), document("y", "old")]))
    catalog.committed("root")

    look(catalog, ("a", [document("x", "text"), document("y", "new")]))

    assert texts(catalog) == {"x": None, "y": "new"}


def test_documents_come_by_shard_in_the_order_of_their_ids_bytes(catalog: Catalog) -> None:
    names = ["b", "a", "é", "z", "\U0001f600", "\uffff", "B"]
    look(catalog, ("1", [document(name, "text") for name in names]))

    assert [row.document_id for row in catalog.rows(0, 0)] == sorted(names, key=str.encode)
    by_shard = [(shard, name) for shard, name, _ in catalog.hashes(2)]
    assert by_shard == sorted(by_shard, key=lambda found: (found[0], found[1].encode()))
    for shard in range(4):
        assert [row.document_id for row in catalog.rows(shard, 2)] == [name for s, name in by_shard if s == shard]


def test_a_row_has_what_the_part_needs(catalog: Catalog) -> None:
    one = document("a", "text")
    look(catalog, ("1", [one]))

    assert catalog.rows(0, 0) == [Row("a", one.content_hash, "text", "{}")]


def test_a_catalog_of_another_version_of_its_schema_is_emptied(tmp_path: Path) -> None:
    """It is a cache: what it held is read again from the source."""
    path = tmp_path / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.execute("create table items (name text primary key, size integer, modified_ns integer)")
        old.execute("create table about (name text primary key, value text not null)")
        old.executemany("insert into about values (?, ?)", [("reader", "reader-1"), ("root", "")])
        old.execute("insert into items values ('a', 1, 2)")
        old.commit()

    for kept in (False, True):
        with open_catalog(path) as catalog:
            catalog.reset("reader-1", "", tuple)
            assert catalog.unchanged("a", MARK) is kept
            look(catalog, ("a", [document("a", "text")]))
