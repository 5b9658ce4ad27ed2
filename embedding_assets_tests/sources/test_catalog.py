from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_assets.sources.catalog import Catalog, Row, open_catalog
from embedding_assets.sources.documents import Document, Rejected, reject, validate

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
LONG_AGO = NOW - 3600 * SECOND


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with open_catalog(tmp_path / "catalogs" / "handbook.sqlite") as catalog:
        catalog.reset("reader-1", "")
        yield catalog


def document(name: str, text: str) -> Document:
    found = validate(source="handbook", item="any", position=1, document_id=name, text=text, metadata={})
    assert isinstance(found, Document)
    return found


def refused(item: str, why: str = "empty") -> Rejected:
    return reject("unreadable" if why == "unreadable" else "empty_text", why, source="handbook", item=item)


def look(catalog: Catalog, *found: tuple[str, list[Document | Rejected]], modified: int = LONG_AGO) -> None:
    """A look at items with these things in them."""
    catalog.begin_listing()
    for name, things in found:
        catalog.list_item(name)
        catalog.replace(name, 10, modified, NOW, things)
    catalog.end_listing()


def texts(catalog: Catalog) -> dict[str, str | None]:
    return {row.document_id: row.text for row in catalog.rows(0, 0)}


def test_an_item_is_unchanged_while_its_size_and_time_are(catalog: Catalog) -> None:
    look(catalog, ("a", [document("a", "text")]))

    assert catalog.unchanged("a", 10, LONG_AGO)
    assert not catalog.unchanged("a", 11, LONG_AGO)
    assert not catalog.unchanged("a", 10, LONG_AGO + 1)
    assert not catalog.unchanged("b", 10, LONG_AGO)


@pytest.mark.parametrize(("age", "unchanged"), [(1 * SECOND, False), (-5 * SECOND, False), (3 * SECOND, True)])
def test_an_item_that_changed_just_before_the_look_is_read_again(catalog: Catalog, age: int, unchanged: bool) -> None:
    """It may have changed once more within the same tick of the file system's clock, or that clock is ahead of ours."""
    look(catalog, ("a", [document("a", "text")]), modified=NOW - age)

    assert catalog.unchanged("a", 10, NOW - age) is unchanged


def test_an_item_that_could_not_be_read_is_read_again(catalog: Catalog) -> None:
    """A permission or a mount heals without the file looking any different."""
    look(catalog, ("a", [document("a", "text"), refused("a", "unreadable")]))

    assert not catalog.unchanged("a", 10, LONG_AGO)


def test_an_item_without_anything_in_it_is_remembered_and_forgotten_too(catalog: Catalog) -> None:
    look(catalog, ("empty", []))
    assert catalog.unchanged("empty", 10, LONG_AGO)

    look(catalog)

    assert not catalog.unchanged("empty", 10, LONG_AGO)


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
        catalog.replace("a", 20, LONG_AGO, NOW, half())

    assert texts(catalog) == {"a": "old"}
    assert catalog.unchanged("a", 10, LONG_AGO)


def test_what_the_listing_refused_is_noted_once_however_often_it_is_listed(catalog: Catalog) -> None:
    """Even under the name of an item that it lists: a twin but for its Unicode normal form."""
    for _ in range(3):
        catalog.begin_listing()
        catalog.list_item("é.md")
        catalog.replace("é.md", 10, LONG_AGO, NOW, [document("é.md", "text")])
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


@pytest.mark.parametrize(("reader", "root"), [("reader-2", "root"), ("reader-1", "another root")])
def test_a_catalog_about_another_reader_or_snapshot_is_thrown_away(catalog: Catalog, reader: str, root: str) -> None:
    look(catalog, ("a", [document("a", "text"), refused("a")]))
    catalog.committed("root")
    catalog.reset("reader-1", "root")
    assert catalog.totals() == (1, 4)

    catalog.reset(reader, root)

    assert catalog.totals() == (0, 0)
    assert list(catalog.rejected()) == []
    assert not catalog.unchanged("a", 10, LONG_AGO)


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
