"""What every place promises, wherever its items lie."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_assets.errors import PermanentError
from embedding_assets.sources.places import Item, PassedOver, Place
from embedding_assets.sources.places.folder import Folder
from embedding_assets.sources.places.pattern import Pattern

# Each with the items that it lists of the folder below.
PLACES: dict[str, tuple[Callable[[Path], Place], list[str]]] = {
    "a folder": (lambda root: Folder(root, ("**/*.txt",)), ["a.txt", "b/c.txt", "b0.txt"]),
    "a pattern": (lambda root: Pattern(root / "**" / "*.txt"), ["a.txt", "b/c.txt", "b0.txt"]),
    "a file": (lambda root: Pattern(root / "a.txt"), ["a.txt"]),
}
every_place = pytest.mark.parametrize(("at", "names"), PLACES.values(), ids=PLACES.keys())

At = Callable[[Path], Place]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    for name in ("b0.txt", "a.txt", "b/c.txt", "b/d.other"):
        (root / name).write_text(f"text of {name}")
    return root


def items(place: Place) -> dict[str, Item]:
    listed = [one for one in place.list_items("handbook") if not isinstance(one, PassedOver)]
    assert all(isinstance(one, Item) for one in listed)
    return {one.name: one for one in listed if isinstance(one, Item)}


@every_place
def test_items_are_listed_in_the_order_of_their_names_and_give_their_bytes(
    root: Path, at: At, names: list[str]
) -> None:
    found = items(at(root))
    assert list(found) == names
    for name, item in found.items():
        with item.open() as stream:
            assert stream.read() == f"text of {name}".encode()
        assert item.size in (None, len(f"text of {name}"))


@every_place
def test_a_mark_stays_while_nothing_changes_and_an_item_of_this_moment_is_not_settled(
    root: Path, at: At, names: list[str]
) -> None:
    first = items(at(root))
    assert {name: item.mark for name, item in items(at(root)).items()} == {name: i.mark for name, i in first.items()}
    assert all(first.values())
    assert not any(item.settled for item in first.values())


@every_place
def test_another_file_of_the_same_size_and_times_has_another_mark(root: Path, at: At, names: list[str]) -> None:
    before = items(at(root))["a.txt"]
    times = ((root / "a.txt").stat().st_atime_ns, (root / "a.txt").stat().st_mtime_ns)
    (root / "new").write_text("TEXT of a.txt")
    os.utime(root / "new", ns=times)
    os.replace(root / "new", root / "a.txt")
    after = items(at(root))["a.txt"]
    assert after.size == before.size
    assert after.mark != before.mark


@every_place
def test_the_same_files_by_another_path_have_other_marks(root: Path, at: At, names: list[str]) -> None:
    before = items(at(root))
    root.rename(root.with_name("moved"))
    after = items(at(root.with_name("moved")))
    assert after.keys() == before.keys()
    assert not {item.mark for item in before.values()} & {item.mark for item in after.values()}


@every_place
@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_place_that_is_not_there_or_has_nothing_is_an_error_with_its_cure(
    root: Path, at: At, names: list[str], what: str
) -> None:
    shutil.rmtree(root)
    if what == "empty":
        root.mkdir()
    with pytest.raises(PermanentError, match=r"source handbook: .* Cure: "):
        items(at(root))


@every_place
def test_an_item_that_is_no_file_any_more_cannot_be_opened(root: Path, at: At, names: list[str]) -> None:
    """What stands in its place is neither followed nor waited for."""
    item = items(at(root))["a.txt"]
    (root / "secret").write_text("not of this item")
    for put in (
        lambda path: None,
        lambda path: path.symlink_to(root / "secret"),
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
    ):
        if (root / "a.txt").is_dir():
            (root / "a.txt").rmdir()
        (root / "a.txt").unlink(missing_ok=True)
        put(root / "a.txt")
        with pytest.raises(OSError, match=r"\w"):
            item.open()
