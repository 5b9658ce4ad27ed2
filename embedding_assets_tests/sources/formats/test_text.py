import codecs
import json
import os
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.documents import MAX_TEXT_BYTES, Document
from embedding_assets.sources.formats.html import MAX_HTML_BYTES
from embedding_assets.sources.formats.text import SUFFIXES, Text
from embedding_assets.sources.options import FilesOptions
from embedding_assets.sources.places import Item
from embedding_assets.sources.places.folder import Folder
from embedding_assets.sources.reader import Reader, open_reader


def reader(root: Path) -> Reader:
    return Reader("handbook", Folder(root, ("**/*",)), Text())


def item(root: Path, name: str) -> Item:
    [found] = [one for one in reader(root).list_items() if isinstance(one, Item) and one.name == name]
    return found


def read(root: Path, name: str, data: bytes) -> Document | RejectedDocument:
    (root / name).write_bytes(data)
    [found] = reader(root).read_item(item(root, name))
    return found


def document(root: Path, name: str, data: bytes) -> Document:
    found = read(root, name, data)
    assert isinstance(found, Document)
    return found


def test_a_file_is_a_document_under_its_path(tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    found = document(tmp_path, "guide/start.md", b"\xef\xbb\xbf# Getting *started*\r\n\r\nText.\r\n")
    assert (found.source, found.document_id) == ("handbook", "guide/start.md")
    assert found.text == "# Getting *started*\n\nText.\n"
    assert json.loads(found.metadata_json) == {"path": "guide/start.md", "title": "Getting *started*"}


@pytest.mark.parametrize("bom", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_utf_16_is_read_by_its_byte_order_mark(tmp_path: Path, bom: bytes) -> None:
    encoding = "utf-16-le" if bom == codecs.BOM_UTF16_LE else "utf-16-be"
    assert document(tmp_path, "a.txt", bom + "größer 😀\r\n".encode(encoding)).text == "größer 😀\n"


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.md", "text\n\n## Second *level* ##\n", "Second *level*"),
        ("a.md", "Setext\n===\ntext", "Setext"),
        ("a.md", "---\nkey: value\n---\n# Title", "Title"),
        ("a.md", "```\n# comment\n```\n# Title", "Title"),
        ("a.md", "#hashtag\n# \ntext", None),
        ("a.rst", "Title\n*****\n", "Title"),
        ("a.rst", "=====\nTitle\n=====\n", "Title"),
        ("a.rst", "A longer title\n***\n", None),
        ("a.rst", "# comment\n\ntext", None),
        ("a.txt", "Title\n-----\n", "Title"),
        ("a.txt", "text", None),
        ("a.md", "# " + "long " * 100, ("long " * 100)[:200]),
        ("a.MDX", "---\ntitle: M\n---\n", "M"),
        ("a.HTML", "<title>Page</title>text", "Page"),
        ("a.htm", "<h1>Heading</h1>text", "Heading"),
    ],
)
def test_the_title_is_the_first_heading(tmp_path: Path, name: str, text: str, title: str | None) -> None:
    assert json.loads(document(tmp_path, name, text.encode()).metadata_json).get("title") == title


def test_html_is_stored_as_the_text_that_a_reader_sees(tmp_path: Path) -> None:
    assert document(tmp_path, "a.html", b"<p>One</p><script>no</script><p>Two</p>").text == "One\n\nTwo"


@pytest.mark.parametrize(
    ("declaration", "charset"),
    [
        ('<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1">', "latin-1"),
        ('<?xml version="1.0" encoding="iso-8859-1"?><html><body>', "latin-1"),
        ("<meta charset=windows-1252>", "cp1252"),
        ("<meta charset=utf-8>", "utf-8"),
        ("", "utf-8-sig"),
        ("<meta charset=gbk>", "utf-8-sig"),
        ("", "utf-16"),
    ],
)
@pytest.mark.parametrize("name", ["a.html", "A.HTM", "a.xhtml"])
def test_a_page_is_read_in_the_charset_that_it_declares(
    tmp_path: Path, name: str, declaration: str, charset: str
) -> None:
    assert document(tmp_path, name, f"{declaration}<p>Größe</p>".encode(charset)).text == "Größe"


def test_a_page_that_is_not_what_it_declares_is_read_once_its_cure_was_followed(tmp_path: Path) -> None:
    page = "<meta charset=iso-2022-jp><p>Größe</p>"
    rejected = read(tmp_path, "a.html", page.encode("latin-1"))
    assert isinstance(rejected, RejectedDocument)
    assert rejected.cure == "save it as UTF-8, and let it declare no other charset"
    assert document(tmp_path, "a.html", page.replace("<meta charset=iso-2022-jp>", "").encode()).text == "Größe"


@pytest.mark.parametrize(
    ("name", "data", "error_class", "reason"),
    [
        ("latin.txt", "café".encode("latin-1"), "undecodable", "byte 3 "),
        ("cut.txt", "é".encode()[:1], "undecodable", "byte 0 "),
        ("image.txt", b"\x89PNG\r\n\x1a\n", "undecodable", "byte 0 "),
        ("odd16.txt", codecs.BOM_UTF16_LE + b"a", "undecodable", "UTF-16"),
        ("half16.txt", codecs.BOM_UTF16_LE + b"\x00\xd8", "undecodable", "UTF-16"),
        ("surrogate.txt", b"\xed\xa0\x80", "undecodable", "byte 0 "),
        ("latin.html", "<p>café".encode("latin-1"), "undecodable", "byte 6 of the file is not UTF-8"),
        ("wrong.html", b"<meta charset=gbk><p>\xff", "undecodable", "GB18030, the charset that it declares"),
        ("nul.txt", b"a\0b", "nul-byte", "character 1"),
        ("nul.html", b"<p>\0", "nul-byte", "character 3"),
        ("utf32.txt", codecs.BOM_UTF32_LE + "a".encode("utf-32-le"), "nul-byte", "NUL"),
        ("empty.md", b"", "empty-text", "empty"),
        ("blank.md", b"\xef\xbb\xbf \r\n\t", "empty-text", "empty"),
        ("empty.html", b"<script>only()</script>", "empty-text", "empty"),
        ("deep.html", b"<div>" * 5_000 + b"x", "broken-html", "depth"),
        ("big.html", b" " * (MAX_HTML_BYTES + 1), "too-large", f"{MAX_HTML_BYTES + 1:,}"),
    ],
)
def test_a_file_that_cannot_be_a_document_is_rejected_and_named(
    tmp_path: Path, name: str, data: bytes, error_class: str, reason: str
) -> None:
    rejected = read(tmp_path, name, data)
    assert isinstance(rejected, RejectedDocument)
    assert (rejected.error_class, rejected.item, rejected.document_id) == (error_class, name, name)
    assert reason in rejected.reason


def test_a_file_over_the_limit_is_rejected_without_being_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    tracemalloc.start()
    [rejected] = reader(tmp_path).read_item(item(tmp_path, "a.txt"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(rejected, RejectedDocument)
    assert rejected.error_class == "too-large"
    assert peak < 2 << 20


def test_a_file_that_grew_over_the_limit_since_it_was_listed_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    listed = item(tmp_path, "a.txt")
    os.truncate(tmp_path / "a.txt", 10 * MAX_TEXT_BYTES)
    [rejected] = reader(tmp_path).read_item(listed)
    assert isinstance(rejected, RejectedDocument)
    assert rejected.error_class == "too-large"


def test_a_file_that_vanished_since_it_was_listed_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    listed = item(tmp_path, "a.txt")
    (tmp_path / "a.txt").unlink()
    [rejected] = reader(tmp_path).read_item(listed)
    assert isinstance(rejected, RejectedDocument)
    assert rejected.error_class == "unreadable"


def test_a_file_that_may_not_be_read_is_unreadable(
    open_folder: Path, as_ordinary_user: Callable[[], AbstractContextManager[None]]
) -> None:
    (open_folder / "a.txt").write_bytes(b"a")
    (open_folder / "a.txt").chmod(0)
    with as_ordinary_user():
        [rejected] = reader(open_folder).read_item(item(open_folder, "a.txt"))
    assert isinstance(rejected, RejectedDocument)
    assert (rejected.error_class, rejected.reason) == ("unreadable", "Permission denied")


def test_every_kind_of_text_that_is_known_is_an_item_by_itself(tmp_path: Path) -> None:
    names = {case(f"a{suffix}") for case in (str.lower, str.upper) for suffix in SUFFIXES}
    for name in (*names, "picture.png", "paper.pdf"):
        (tmp_path / name).write_text("text")
    one = open_reader("handbook", FilesOptions(kind="files", path=tmp_path))
    assert {item.name for item in one.list_items() if isinstance(item, Item)} == names
