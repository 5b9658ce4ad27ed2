import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.places import Item, PassedOver, Unknown
from embedding_assets.sources.places.folder import State, file_item, walk

AsUser = Callable[[], AbstractContextManager[None]]


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")


def names(root: Path, *include: str) -> list[str]:
    return [
        found.name if isinstance(found, Item) else f"!{found.item}"
        for found in map(said, listed(root, *include))
        if found is not None
    ]


def said(found: Item | Unknown | RejectedDocument) -> Item | RejectedDocument | None:
    """What people hear of."""
    return found.rejected if isinstance(found, Unknown) else found


def listed(root: Path, *include: str) -> list[Item | Unknown | RejectedDocument]:
    found = walk("handbook", root, include or ("**/*.md",))
    return [one for one in found if not isinstance(one, PassedOver)]


def only_rejection(root: Path, *include: str) -> RejectedDocument:
    [rejected] = [found for found in map(said, listed(root, *include)) if isinstance(found, RejectedDocument)]
    return rejected


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (["**/*.md"], ["a b.md", "a.md", "a/b/c.md", "a/x.md", "n.MD", "z.md"]),
        (["*.md"], ["a b.md", "a.md", "n.MD", "z.md"]),
        (["A/*.MD"], ["a/x.md"]),
        (["a/**"], ["a/b/c.md", "a/b/d.txt", "a/x.md"]),
        (["**/b/*"], ["a/b/c.md", "a/b/d.txt"]),
        (["a/*/c.md", "z.??"], ["a/b/c.md", "z.md"]),
        (["**/[cd].*"], ["a/b/c.md", "a/b/d.txt"]),
        (["**/*.md", ".github/**/*.md"], [".github/w/s.md", "a b.md", "a.md", "a/b/c.md", "a/x.md", "n.MD", "z.md"]),
        (["**/.*.md"], [".hidden.md"]),
    ],
)
def test_the_patterns_say_which_files_are_items(tmp_path: Path, include: list[str], expected: list[str]) -> None:
    write(tmp_path, "z.md", "a.md", "a/x.md", "a/b/c.md", "a/b/d.txt", "a b.md", "n.MD")
    write(tmp_path, ".hidden.md", ".git/x.md", ".github/w/s.md", "a/.venv/y.md")
    assert names(tmp_path, *include) == expected


segments = st.sampled_from(["a", "a!", "a.", "aa", "A", "é", "中", "😀", "a~"])


@settings(max_examples=50, deadline=None)
@given(paths=st.sets(st.tuples(segments, segments, segments), min_size=1, max_size=20))
def test_items_come_in_the_byte_order_of_their_names(
    paths: set[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    wanted = sorted({f"{a}/{b}/{c}.md" for a, b, c in paths} | {f"{a}/{b}.md" for a, b, _ in paths}, key=str.encode)
    write(root, *wanted)
    assert names(root) == wanted


def only_item(root: Path) -> Item:
    [item] = listed(root)
    assert isinstance(item, Item)
    return item


STATE = State(mode=0o100644, device=1, inode=2, size=3, modified_ns=4, changed_ns=5)


@pytest.mark.parametrize("seen", ["device", "inode", "size", "modified_ns", "changed_ns"])
def test_the_mark_changes_with_each_thing_that_is_seen_of_a_file(seen: str) -> None:
    """Times can be put back, and a file of the same size and time be moved over another."""
    mark = file_item("a.md", "/root", ("a.md",), STATE, now=0).mark
    assert file_item("a.md", "/root", ("a.md",), STATE._replace(**{seen: 9}), now=0).mark != mark
    assert file_item("a.md", "/root", ("a.md",), STATE, now=9).mark == mark


def test_the_mark_changes_with_the_folder_that_the_path_leads_to(tmp_path: Path) -> None:
    write(tmp_path, "one/a.md")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=os.link)
    (tmp_path / "root").symlink_to("one")
    first = only_item(tmp_path / "root").mark
    assert only_item(tmp_path / "root").mark == first
    (tmp_path / "root").unlink()
    (tmp_path / "root").symlink_to("two")
    assert only_item(tmp_path / "root").mark != first


@pytest.mark.parametrize(("age", "settled"), [(1, False), (-5, False), (3600, True)])
@pytest.mark.parametrize("what", ["modified_ns", "changed_ns"])
def test_a_file_that_changed_just_before_the_look_is_not_settled(what: str, age: int, settled: bool) -> None:
    """It may change once more within the same tick of the file system's clock, or that clock is ahead of ours."""
    now = 1_700_000_000 * 10**9
    state = STATE._replace(**{what: now - age * 10**9})
    assert file_item("a.md", "/root", ("a.md",), state, now).settled is settled


def test_an_item_gives_the_bytes_that_the_file_had_when_it_was_opened(tmp_path: Path) -> None:
    """A log that is written on must not be read for ever."""
    (tmp_path / "a.md").write_bytes(b"a" * 3_000_000)
    item = only_item(tmp_path)
    assert item.size == 3_000_000
    with item.open() as stream:
        read = stream.read(10)
        with open(tmp_path / "a.md", "ab") as file:
            file.write(b"b" * 3_000_000)
        read += stream.read()
    assert read == b"a" * 3_000_000


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_not_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"a" * 3_000_000)
    with only_item(tmp_path).open() as stream:
        stream.read(10)
        os.truncate(tmp_path / "a.md", 2_000_000)
        with pytest.raises(OSError, match="cut while it was read"):
            stream.read()


def test_a_name_in_another_normal_form_is_listed_in_nfc_and_opened_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "cafe\u0301/e\u0301.md")
    item = only_item(tmp_path)
    assert item.name == "caf\u00e9/\u00e9.md"
    with item.open() as stream:
        assert stream.read()


def test_of_two_names_that_differ_in_normal_form_alone_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "\u00e9.md", "e\u0301.md", "\u00e9/a.md", "e\u0301/b.md")
    assert names(tmp_path) == ["é.md", "!é.md", "é/b.md", "!é/"]


def test_links_inside_are_followed_under_their_own_names(tmp_path: Path) -> None:
    write(tmp_path, "real/a.md", "real/notes.markdown")
    (tmp_path / "z.md").symlink_to("real/notes.markdown")
    (tmp_path / "linked").symlink_to("real")
    assert names(tmp_path) == ["linked/a.md", "real/a.md", "z.md"]


def test_folders_linked_in_a_circle_are_entered_once(tmp_path: Path) -> None:
    write(tmp_path, "a/x.md", "b/y.md")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    assert names(tmp_path) == ["a/to_b/y.md", "a/x.md", "b/to_a/x.md", "b/y.md"]


def test_folders_that_all_link_to_each_other_do_not_multiply(tmp_path: Path) -> None:
    folders = [f"d{number}" for number in range(12)]
    write(tmp_path, *(f"{folder}/a.md" for folder in folders))
    for folder in folders:
        for other in folders:
            if other != folder:
                (tmp_path / folder / f"to_{other}").symlink_to(f"../{other}")
    assert len(names(tmp_path)) <= 2 * len(folders)


def test_a_link_that_leads_outside_is_refused_and_what_lies_there_is_not_listed(tmp_path: Path) -> None:
    write(tmp_path, "root/a.md", "root-too/secret.md", "outside/secret.md", "outside/other.txt")
    root = tmp_path / "root"
    (root / "file.md").symlink_to(tmp_path / "outside" / "secret.md")
    (root / "folder").symlink_to("../outside")
    (root / "hop.md").symlink_to("file.md")
    (root / "near.md").symlink_to("../root-too/secret.md")
    (root / "not_ours.txt").symlink_to("../outside/other.txt")
    found = listed(root)
    rejected = [one for one in found if isinstance(one, RejectedDocument)]
    assert [one.item for one in rejected] == ["file.md", "folder/", "hop.md", "near.md"]
    assert {one.error_class for one in rejected} == {"outside-link"}
    assert names(root)[0] == "a.md"


def test_a_root_that_is_a_link_itself_is_followed(tmp_path: Path) -> None:
    write(tmp_path, "real/a.md")
    (tmp_path / "root").symlink_to("real")
    assert names(tmp_path / "root") == ["a.md"]


@pytest.mark.parametrize("target", ["nowhere.md", "broken.md"])
def test_a_link_that_leads_nowhere_or_to_itself_is_unreadable(tmp_path: Path, target: str) -> None:
    write(tmp_path, "a.md")
    (tmp_path / "broken.md").symlink_to(target)
    rejected = only_rejection(tmp_path)
    assert (rejected.item, rejected.error_class) == ("broken.md", "unreadable")


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    assert only_rejection(tmp_path).error_class == "unreadable"


@pytest.mark.parametrize("name", [b"new\nline.md", b"esc\x1b[2J.md", b"latin\xe9.md"])
def test_a_name_that_cannot_be_an_id_is_refused_and_shown_harmlessly(tmp_path: Path, name: bytes) -> None:
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(b"text")
    rejected = only_rejection(tmp_path)
    assert rejected.error_class == "bad-id"
    assert rejected.item.isprintable()
    rejected.item.encode()


def test_folders_nested_deeper_than_an_id_can_be_long_are_refused_not_followed(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(600):
        deep = deep / "d"
        deep.mkdir()
    write(tmp_path, "a.md")
    assert names(tmp_path)[0] == "a.md"
    assert only_rejection(tmp_path).error_class == "bad-id"


def test_a_folder_that_may_not_be_entered_is_unreadable_and_the_rest_goes_on(
    open_folder: Path, as_ordinary_user: AsUser
) -> None:
    write(open_folder, "a.md", "closed/b.md", "z.md")
    (open_folder / "closed").chmod(0)
    with as_ordinary_user():
        found = listed(open_folder)
    assert isinstance(found[1], Unknown)
    assert found[1].name == "closed/"
    rejected = found[1].rejected
    assert rejected is not None
    assert (rejected.item, rejected.error_class) == ("closed/", "unreadable")
    assert [one.name for one in found if isinstance(one, Item)] == ["a.md", "z.md"]


@pytest.mark.parametrize("what", ["missing", "a file", "closed", "empty", "no match"])
def test_a_source_that_is_not_there_is_an_error_and_not_an_empty_source(
    open_folder: Path, as_ordinary_user: AsUser, what: str
) -> None:
    root = open_folder / "root"
    if what == "a file":
        root.write_text("text")
    elif what != "missing":
        root.mkdir(mode=0 if what == "closed" else 0o755)
    if what == "no match":
        write(root, "a.txt")
    with as_ordinary_user(), pytest.raises(PermanentError) as refused:
        listed(root)
    message = str(refused.value)
    assert "handbook" in message
    assert str(root) in message
    assert "Cure:" in message


def test_a_link_put_in_an_items_place_after_listing_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "root/a.md", "secret.md")
    item = only_item(tmp_path / "root")
    (tmp_path / "root" / "a.md").unlink()
    (tmp_path / "root" / "a.md").symlink_to(tmp_path / "secret.md")
    with pytest.raises(OSError, match="symbolic link"):
        item.open()


def test_a_folder_swapped_for_a_link_after_listing_leads_nowhere(tmp_path: Path) -> None:
    write(tmp_path, "root/deep/sub/a.md", "outside/sub/a.md")
    item = only_item(tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "deep")
    (tmp_path / "root" / "deep").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=r"Not a directory|symbolic link"):
        item.open()


def test_a_folder_swapped_for_a_link_while_it_is_listed_is_not_entered(tmp_path: Path) -> None:
    """Not even the names of what lies outside are told."""
    write(tmp_path, "root/a.md", "root/sub/b.md", "outside/secret.md")
    listing = walk("handbook", tmp_path / "root", ("**/*.md",))
    next(listing)
    shutil.rmtree(tmp_path / "root" / "sub")
    (tmp_path / "root" / "sub").symlink_to(tmp_path / "outside")
    [unknown] = listing
    assert isinstance(unknown, Unknown)
    assert unknown.name == "sub/"
    assert unknown.rejected is not None
    assert unknown.rejected.error_class == "unreadable"


def test_what_is_below_a_link_that_leads_nowhere_is_unknown_and_nobody_is_told(tmp_path: Path) -> None:
    """It may have led to a folder. No pattern names the link itself, which may be none of ours."""
    write(tmp_path, "a.md")
    (tmp_path / "linked").symlink_to("nowhere")
    _, *unknown = listed(tmp_path)
    assert unknown == [Unknown("linked"), Unknown("linked/")]


def test_files_that_cannot_be_looked_at_are_unknown_by_name(open_folder: Path, as_ordinary_user: AsUser) -> None:
    """A folder that may be listed and not be entered tells names and nothing else."""
    write(open_folder, "a.md", "half/b.md", "half/c.txt", "half/sub/d.md")
    (open_folder / "half").chmod(0o744)
    with as_ordinary_user():
        found = [one for one in listed(open_folder) if isinstance(one, Unknown)]
    (open_folder / "half").chmod(0o755)
    assert [(one.name, one.rejected is not None) for one in found] == [
        ("half/b.md", True),
        ("half/c.txt", False),
        ("half/sub/", True),
    ]


def test_a_file_that_no_pattern_names_is_passed_over_by_name_and_a_hidden_one_without_a_word(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "b.pdf", "c/d.docx", ".hidden.pdf", ".git/x.pdf")
    found = list(walk("handbook", tmp_path, ["**/*.md"]))
    assert [one.name for one in found if isinstance(one, PassedOver)] == ["b.pdf", "c/d.docx"]


@pytest.mark.parametrize("name", [b"latin\xe9.md", b"new\nline.md"])
def test_a_link_that_leads_nowhere_under_a_name_that_no_item_can_have_is_refused_alone(
    tmp_path: Path, name: bytes
) -> None:
    write(tmp_path, "a.md")
    os.symlink(b"nowhere", os.fsencode(tmp_path) + b"/" + name)
    [rejected] = [one for one in listed(tmp_path) if not isinstance(one, Item)]
    assert isinstance(rejected, RejectedDocument)
    assert rejected.error_class == "unreadable"
    assert rejected.item.isprintable()
