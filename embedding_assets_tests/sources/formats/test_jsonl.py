import codecs
import gzip
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.documents import Document
from embedding_assets.sources.formats.jsonl import MAX_LINE_BYTES, MAX_NESTING, MAX_TOKENS, Jsonl
from embedding_assets.sources.places import Item
from embedding_assets.sources.places.pattern import Pattern
from embedding_assets.sources.reader import Reader

GOOD = b'{"id": "good", "body": "text"}'


def reader(path: Path, metadata: tuple[str, ...] = ("title", "team")) -> Reader:
    return Reader("tickets", Pattern(path), Jsonl("id", "body", metadata))


def stream(path: Path) -> Iterator[Document | RejectedDocument]:
    one = reader(path)
    for item in one.list_items():
        assert isinstance(item, Item)
        yield from one.read_item(item)


def read(path: Path, data: bytes) -> list[Document | RejectedDocument]:
    path.write_bytes(data)
    return list(stream(path))


def test_each_line_is_a_document_with_its_line_number(tmp_path: Path) -> None:
    lines = [
        '\ufeff{"id": "a", "body": "One\\r\\ntwo", "title": "T", "other": 1}',
        "",
        '{"id": 42, "body": "café", "title": null, "team": {"b": [1.50, 1E3], "a": "é"}}\r',
        '  {"body": "\\ud83d\\ude00", "id": "-1"}  ',
    ]
    one, two, three = read(tmp_path / "t.jsonl", "\n".join(lines).encode())
    assert isinstance(one, Document)
    assert isinstance(two, Document)
    assert isinstance(three, Document)
    assert (one.document_id, one.text, one.metadata_json) == ("a", "One\ntwo", '{"title": "T"}')
    assert (two.document_id, two.text) == ("42", "café")
    assert two.metadata_json == '{"team": {"a": "é", "b": [1.50, 1000]}, "title": null}'
    assert (three.document_id, three.text, three.metadata_json) == ("-1", "😀", "{}")
    assert [found.position for found in (one, two, three)] == [1, 3, 4]


HOSTILE: dict[str, tuple[bytes, str]] = {
    "broken": (b'{"id": "a", "body": ', "broken-json"),
    "two objects": (b'{"id": "a", "body": "x"} {}', "broken-json"),
    "a list": (b'["a"]', "broken-json"),
    "a string": (b'"a"', "broken-json"),
    "a number": (b"1", "broken-json"),
    "single quotes": (b"{'id': 'a'}", "broken-json"),
    "a comment": (b"// comment", "broken-json"),
    "NaN": (b'{"id": "a", "body": "x", "title": NaN}', "broken-json"),
    "Infinity": (b'{"id": "a", "body": "x", "other": -Infinity}', "broken-json"),
    "a raw control character": (b'{"id": "a", "body": "x\x01y"}', "broken-json"),
    "a raw NUL": (b'{"id": "a", "body": "x\0y"}', "broken-json"),
    "a doubled key": (b'{"id": "a", "id": "b", "body": "x"}', "broken-json"),
    "a doubled key below": (b'{"id": "a", "body": "x", "title": {"k": 1, "k": 1}}', "broken-json"),
    "deep lists": (b'{"id": "a", "title": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "broken-json"),
    "deep objects": (b'{"a":' * 100_000, "broken-json"),
    "deep behind a string": (b'{"id": "\\"' + b"[" * 300 + b'", "k": ' + b"[" * 300, "broken-json"),
    "no id": (b'{"body": "x"}', "missing-id"),
    "null id": (b'{"id": null, "body": "x"}', "missing-id"),
    "empty id": (b'{"id": "", "body": "x"}', "missing-id"),
    "true id": (b'{"id": true, "body": "x"}', "missing-id"),
    "float id": (b'{"id": 1.0, "body": "x"}', "missing-id"),
    "list id": (b'{"id": ["a"], "body": "x"}', "missing-id"),
    "endless id": (b'{"id": ' + b"9" * 10_000 + b', "body": "x"}', "missing-id"),
    "NUL in the id": (b'{"id": "a\\u0000", "body": "x"}', "bad-id"),
    "surrogate in the id": (b'{"id": "\\ud800", "body": "x"}', "bad-id"),
    "long id": (b'{"id": "' + b"a" * 2_000 + b'", "body": "x"}', "bad-id"),
    "no text": (b'{"id": "a"}', "missing-text"),
    "null text": (b'{"id": "a", "body": null}', "missing-text"),
    "number for a text": (b'{"id": "a", "body": 1}', "missing-text"),
    "list for a text": (b'{"id": "a", "body": ["x"]}', "missing-text"),
    "empty text": (b'{"id": "a", "body": " \\n"}', "empty-text"),
    "NUL in the text": (b'{"id": "a", "body": "x\\u0000"}', "nul-byte"),
    "lone surrogate": (b'{"id": "a", "body": "x\\udc00"}', "lone-surrogate"),
    "surrogates swapped": (b'{"id": "a", "body": "\\ude00\\ud83d"}', "lone-surrogate"),
    "not UTF-8": (b'{"id": "a", "body": "caf\xe9"}', "undecodable"),
    "surrogate as bytes": (b'{"id": "a", "body": "\xed\xa0\x80"}', "undecodable"),
    "NUL in the metadata": (b'{"id": "a", "body": "x", "title": "\\u0000"}', "bad-metadata"),
    "surrogate in a key": (b'{"id": "a", "body": "x", "title": {"\\ud800": 1}}', "bad-metadata"),
    "absurd exponent": (b'{"id": "a", "body": "x", "title": 1e999999999999999999999}', "bad-metadata"),
    "large exponent": (b'{"id": "a", "body": "x", "title": 1e100000}', "bad-metadata"),
    "exponents that unfold": (b'{"id": "a", "body": "x", "title": [' + b"1e600," * 100_000 + b"0]}", "bad-metadata"),
    "endless integer": (b'{"id": "a", "body": "x", "title": ' + b"9" * 1_000_000 + b"}", "bad-metadata"),
    "metadata too deep": (b'{"id": "a", "body": "x", "title": ' + b"[" * 100 + b"]" * 100 + b"}", "bad-metadata"),
    "metadata too large": (b'{"id": "a", "body": "x", "title": "' + b"x" * 100_000 + b'"}', "bad-metadata"),
}


@pytest.mark.parametrize(("line", "error_class"), HOSTILE.values(), ids=HOSTILE)
def test_a_bad_line_is_rejected_with_its_number_and_the_lines_around_it_are_read(
    tmp_path: Path, line: bytes, error_class: str
) -> None:
    before, rejected, after = read(tmp_path / "t.jsonl", b"\n".join([GOOD, line, GOOD]))
    assert isinstance(before, Document)
    assert isinstance(after, Document)
    assert isinstance(rejected, RejectedDocument)
    assert (rejected.item, rejected.position, rejected.error_class) == ("t.jsonl", 2, error_class)
    assert len(rejected.reason) < 200  # says what is wrong, and carries nothing of the line
    rejected.model_dump_json().encode()


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "a", "body": "x", "other": 1e999999999999999999999}',
        b'{"id": "a", "body": "x", "other": "\\ud800\\u0000"}',
        b'{"id": "a", "body": "x", "other": ' + b"9" * 1_000_000 + b"}",
        b'{"id": "a", "body": "' + b"[{" * 1_000 + b'\\"[[["}',
        b'{"id": "a", "body": "x", "other": [' + b"[]," * 10_000 + b"{}]}",
        b'{"id": "a", "body": "x", "other": ' + b"[" * (MAX_NESTING - 1) + b"]" * (MAX_NESTING - 1) + b"}",
    ],
)
def test_what_stands_in_fields_that_are_not_read_does_no_harm(tmp_path: Path, line: bytes) -> None:
    [found] = read(tmp_path / "t.jsonl", line)
    assert isinstance(found, Document)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_line_of_100_mb_is_passed_over_without_being_held(tmp_path: Path, name: str) -> None:
    pack = gzip.compress if name.endswith(".gz") else bytes
    with open(tmp_path / name, "wb") as file:
        file.write(pack(GOOD + b'\n{"id": "a", "body": "'))
        for _ in range(100):
            file.write(pack(os.urandom(10_000).hex().encode() + b"x" * 980_000))
        file.write(pack(b'"}\n' + GOOD))

    tracemalloc.start()
    before, rejected, after = stream(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert isinstance(before, Document)
    assert isinstance(rejected, RejectedDocument)
    assert (rejected.error_class, rejected.position) == ("too-large", 2)
    assert isinstance(after, Document)
    assert after.position == 3
    assert peak < 2.5 * MAX_LINE_BYTES


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    line = b'{"id": "a", "body": "' + b"x" * (MAX_LINE_BYTES - 23) + b'"}'
    assert len(line) == MAX_LINE_BYTES
    one, two, three = read(tmp_path / "t.jsonl", line + b"\n" + line + b" \n" + line)
    assert isinstance(one, Document)
    assert isinstance(two, RejectedDocument)
    assert isinstance(three, Document)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    with open(tmp_path / "t.jsonl", "wb") as file:
        for number in range(20_000):
            file.write(b'{"id": %d, "body": "%s"}\n' % (number, b"x" * 1_000))
    tracemalloc.start()
    assert sum(1 for _ in stream(tmp_path / "t.jsonl")) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_packed_files_are_unpacked_also_when_packed_in_several_pieces(tmp_path: Path) -> None:
    found = read(tmp_path / "t.jsonl.gz", gzip.compress(GOOD + b"\n") + gzip.compress(GOOD))
    assert [type(one) for one in found] == [Document, Document]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
@pytest.mark.parametrize("bom", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_utf_16_is_read_by_its_byte_order_mark_and_a_broken_line_spoils_no_other(
    tmp_path: Path, name: str, bom: bytes
) -> None:
    codec = "utf-16-le" if bom == codecs.BOM_UTF16_LE else "utf-16-be"
    lines = ['{"id": "a", "body": "größer 😀"}', '{"id": "b", "body": "\ud800"}', "", '{"id": "d", "body": "x"}']
    data = bom + "\r\n".join(lines).encode(codec, "surrogatepass")
    one, two, three = read(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    assert isinstance(one, Document)
    assert one.text == "größer 😀"
    assert isinstance(two, RejectedDocument)
    assert (two.error_class, two.position) == ("undecodable", 2)
    assert isinstance(three, Document)
    assert (three.document_id, three.position) == ("d", 4)


def test_utf_16_that_ends_within_a_character_spoils_its_last_line_alone(tmp_path: Path) -> None:
    data = codecs.BOM_UTF16_LE + (GOOD + b"\n" + GOOD).decode().encode("utf-16-le") + b"x"
    one, two = read(tmp_path / "t.jsonl", data)
    assert isinstance(one, Document)
    assert isinstance(two, RejectedDocument)
    assert (two.error_class, two.position) == ("undecodable", 2)


def test_a_packed_file_that_unpacks_to_absurd_sizes_is_given_up_where_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_assets.sources.formats.lines._UNPACKED_ANYWAY", 1 << 20)
    data = gzip.compress(GOOD + b"\n") + gzip.compress(b"\n" * (1 << 20)) * 3
    found = read(tmp_path / "t.jsonl.gz", data)
    assert [type(one) for one in found] == [Document, RejectedDocument]
    assert isinstance(found[1], RejectedDocument)
    assert found[1].error_class == "unpacks-too-far"
    assert len(read(tmp_path / "t.jsonl", gzip.decompress(data))) == 1  # the cure


def test_a_line_of_more_json_than_is_built_in_memory_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    many = b'{"id": "a", "body": "x", "other": [' + b"[]," * (MAX_TOKENS // 3) + b"[]]}"
    text = b'{"id": "b", "body": "' + b"[]," * (MAX_TOKENS // 3) + b'[]"}'
    cured = b'{"id": "c", "body": "x"}'
    one, two, three, four = read(tmp_path / "t.jsonl", b"\n".join([many, text, GOOD, cured]))
    assert isinstance(one, RejectedDocument)
    assert one.error_class == "too-many-values"
    assert isinstance(four, Document)
    assert isinstance(two, Document)
    assert isinstance(three, Document)


def test_blank_lines_count(tmp_path: Path) -> None:
    lines = [GOOD, b"", b" \t\r", b"", b"  " + GOOD, b"", b"\x0b", b"{"]
    found = read(tmp_path / "t.jsonl", b"\n".join(lines))
    assert [one.position for one in found] == [1, 5, 8]


def damaged(packed: bytes, how: str) -> bytes:
    middle = len(packed) // 2
    return {
        "truncated": packed[:middle],
        "bytes turned over": packed[:middle] + bytes(64) + packed[middle + 64 :],
        "wrong checksum": packed[:-8] + bytes(8),
        "rubbish behind": packed + b"rubbish",
    }[how]


@pytest.mark.parametrize("how", ["truncated", "bytes turned over", "wrong checksum", "rubbish behind"])
def test_a_damaged_packed_file_keeps_the_documents_before_the_damage(tmp_path: Path, how: str) -> None:
    lines = [b'{"id": %d, "body": "%s"}' % (number, os.urandom(500).hex().encode()) for number in range(1_000)]
    found = read(tmp_path / "t.jsonl.gz", damaged(gzip.compress(b"\n".join(lines)), how))
    *before, rejected = found
    assert isinstance(rejected, RejectedDocument)
    assert (rejected.error_class, rejected.position) == ("unreadable", len(before) + 1)
    # The damage is in the middle. Turned bytes may unpack to something until the checksum at the end tells.
    first = before[:400]
    assert [one.document_id for one in first] == [str(number) for number in range(400)]
    assert all(isinstance(one, Document) for one in first)


def test_a_file_that_is_not_packed_at_all_is_unreadable(tmp_path: Path) -> None:
    [rejected] = read(tmp_path / "t.jsonl.gz", GOOD)
    assert isinstance(rejected, RejectedDocument)
    assert (rejected.error_class, rejected.position) == ("unreadable", 1)


def test_an_empty_file_has_no_documents_and_is_no_error(tmp_path: Path) -> None:
    assert read(tmp_path / "t.jsonl", b"\n\n") == []


def test_a_file_that_vanished_since_it_was_listed_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(GOOD)
    one = reader(tmp_path / "t.jsonl")
    [item] = one.list_items()
    (tmp_path / "t.jsonl").unlink()
    assert isinstance(item, Item)
    [rejected] = one.read_item(item)
    assert isinstance(rejected, RejectedDocument)
    assert rejected.error_class == "unreadable"


def test_the_version_changes_with_the_fields_that_are_read_and_not_with_their_order() -> None:
    version = Jsonl("id", "body", ("title", "team")).version
    assert Jsonl("id", "body", ("team", "title")).version == version
    assert Jsonl("id", "body", ("team",)).version != version
    assert Jsonl("body", "id", ("title", "team")).version != version
