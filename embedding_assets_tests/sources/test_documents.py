import hashlib
import json
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.snapshots.rejections import ERROR_CLASSES, RejectedDocument
from embedding_assets.sources.documents import MAX_ID_BYTES, MAX_TEXT_BYTES, Document, normalised, validate


def validated(**changes: Any) -> Document | RejectedDocument:
    given: dict[str, Any] = {
        "document_id": "a",
        "text": "text",
        "metadata": {},
        "item": "in.jsonl",
        "position": 3,
    } | changes
    return validate(source="handbook", **given)


def document(**changes: Any) -> Document:
    found = validated(**changes)
    assert isinstance(found, Document)
    return found


@pytest.mark.parametrize(
    ("given", "error_class"),
    [
        ({"document_id": ""}, "missing-id"),
        ({"document_id": " \t"}, "missing-id"),
        ({"document_id": "a\0"}, "bad-id"),
        ({"document_id": "a\nb"}, "bad-id"),
        ({"document_id": "a\x1b[31m"}, "bad-id"),
        ({"document_id": "a\x85"}, "bad-id"),
        ({"document_id": "\udc80"}, "bad-id"),
        ({"document_id": "é" * (MAX_ID_BYTES // 2) + "x"}, "bad-id"),
        ({"text": ""}, "empty-text"),
        ({"text": "\ufeff \r\n\t\u2003"}, "empty-text"),
        ({"text": "a\0b"}, "nul-byte"),
        ({"text": "a\ud800b"}, "lone-surrogate"),
        ({"text": "é" * (MAX_TEXT_BYTES // 2) + "x"}, "too-large"),
        ({"metadata": {"k": float("nan")}}, "bad-metadata"),
        ({"metadata": {"k": "a\0"}}, "bad-metadata"),
        ({"metadata": {"k": "\ud800"}}, "bad-metadata"),
    ],
)
def test_what_cannot_be_a_document_is_rejected_with_its_place_reason_and_cure(
    given: dict[str, Any], error_class: str
) -> None:
    rejected = validated(**given)

    assert isinstance(rejected, RejectedDocument)
    assert (rejected.source, rejected.item, rejected.position) == ("handbook", "in.jsonl", 3)
    assert rejected.error_class == error_class
    assert rejected.reason
    assert rejected.cure == ERROR_CLASSES[rejected.error_class].cure
    # A broken id is not repeated: it names nothing, and it may be anything.
    assert rejected.document_id == (None if "document_id" in given else "a")
    assert json.loads(rejected.model_dump_json())["error_class"] == error_class


@pytest.mark.parametrize(
    "document_id", ["a", "é" * (MAX_ID_BYTES // 2), "'; drop table chunks; --", "../../etc", "a b"]
)
def test_any_other_id_is_taken_as_it_is(document_id: str) -> None:
    assert document(document_id=document_id).document_id == document_id


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_text_is_stored_in_nfc_with_unix_line_ends_and_normalising_again_changes_nothing(text: str) -> None:
    once = normalised(text)
    assert "\r" not in once
    assert unicodedata.is_normalized("NFC", once)
    assert normalised("\ufeff" + once) == once


@pytest.mark.parametrize(
    ("one", "other"),
    [("a\nb\n", "a\r\nb\r\n"), ("a\nb", "a\rb"), ("caf\u00e9", "cafe\u0301"), ("text", "\ufefftext")],
)
def test_texts_that_differ_in_line_ends_or_normal_form_alone_are_one_text(one: str, other: str) -> None:
    assert document(text=one) == document(text=other)


@pytest.mark.parametrize("pile", ["\u0301\u0327", "\u0327\u0301", "\u3099\u0301"])
def test_a_pile_of_combining_marks_costs_no_time_and_is_left_as_it_is(pile: str) -> None:
    """The standard library sorts them by insertion: these would take it hours."""
    text = "e\u0301 a" + pile * 1_000_000
    started = time.process_time()
    assert normalised(text) == text
    assert time.process_time() - started < 5


def test_long_runs_of_letters_beyond_latin_are_no_pile() -> None:
    korean = "\u1112\u1161\u11ab" * 1_000
    assert normalised(korean) == "한" * 1_000


def test_the_hash_is_sha256_over_the_texts_length_the_text_and_the_metadata() -> None:
    found = document(text="é", metadata={"b": 1, "a": [True]})
    assert found.metadata_json == '{"a": [true], "b": 1}'
    expected = hashlib.sha256(b"\0\0\0\0\0\0\0\x02" + "é".encode() + b'{"a": [true], "b": 1}').digest()
    assert found.content_hash == expected


def test_text_and_metadata_cannot_be_confused_by_the_hash() -> None:
    assert document(text='x{"k": 1}').content_hash != document(text="x", metadata={"k": 1}).content_hash


@pytest.mark.parametrize("changed", [{"text": "other"}, {"metadata": {"k": 1}}])
def test_the_hash_changes_with_text_and_metadata(changed: dict[str, Any]) -> None:
    assert document(**changed).content_hash != document().content_hash


@pytest.mark.parametrize("moved", [{"item": "other.jsonl"}, {"position": 9}, {"document_id": "b"}])
def test_the_hash_does_not_change_with_the_place(moved: dict[str, Any]) -> None:
    assert document(**moved).content_hash == document().content_hash
