"""Rejections: one form, a cure for each class, and what format 1 said of them is still understood."""

import json
import re
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from embedding_assets.snapshots import log
from embedding_assets.snapshots.draft import Draft, prepare
from embedding_assets.snapshots.rejections import (
    ERROR_CLASSES,
    DocumentErrorClass,
    RejectedDocument,
    RejectedText,
    Rejection,
    parsed,
)
from embedding_assets.snapshots.snapshot import FORMAT, Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.sources.documents import MAX_ID_BYTES, reject

# Written by the last version that had format 1.
DOCUMENTS_OF_FORMAT_1: Final = """{
 "format": 1,
 "asset": "raw_docs",
 "source": "handbook",
 "number": 1,
 "root": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
 "version": "raw_docs-1",
 "shard_bits": 0,
 "parts": [],
 "counts": {"documents": 0, "text_bytes": 0},
 "rejected": [
  {
   "source": "handbook",
   "document_id": "empty.md",
   "item": "empty.md",
   "position": null,
   "error_class": "empty_text",
   "reason": "the text is empty, or blank",
   "cure": "fill it, or remove the document from the source"
  },
  {
   "source": "handbook",
   "document_id": null,
   "item": "tickets.jsonl",
   "position": 7,
   "error_class": "undecodable",
   "reason": "not UTF-8",
   "cure": "save it as UTF-8, or as UTF-16 with a byte order mark"
  }
 ],
 "upstream": {},
 "model": null,
 "created_at": "2026-11-21T05:00:00+00:00"
}"""
TEXTS_OF_FORMAT_1: Final = """{
 "format": 1,
 "asset": "embeddings_v1",
 "source": "handbook",
 "number": 1,
 "root": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
 "version": "embeddings-1",
 "shard_bits": 0,
 "parts": [],
 "counts": {"vectors_v1": 0, "dead_v1": 2},
 "rejected": [
  {
   "source": "handbook",
   "document_id": "bad.md",
   "chunk_id": "b1b9b2f6-3a93-5b6c-8f6e-2f6c9f3f0a11",
   "payload": "parts/chunks/handbook/ca978112.parquet#b1b9b2f6-3a93-5b6c-8f6e-2f6c9f3f0a11",
   "text_hash": "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
   "error_class": "refused",
   "reason": "400: '$.input' is invalid; mend the text at its source, or leave it out",
   "attempts": 1
  },
  {
   "source": "handbook",
   "document_id": "long.md",
   "chunk_id": "b1b9b2f6-3a93-5b6c-8f6e-2f6c9f3f0a12",
   "payload": "parts/chunks/handbook/ca978112.parquet#b1b9b2f6-3a93-5b6c-8f6e-2f6c9f3f0a12",
   "text_hash": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
   "error_class": "too-large",
   "reason": "413: too much; lower max_tokens of the source's chunking",
   "attempts": 2
  }
 ],
 "upstream": {"chunks": "18ac3e7343f016890c510e93f935261169d9e3f565436429830faf0934f4f8e4"},
 "model": {"provider": "openai", "name": "m", "dimensions": 3},
 "created_at": "2026-11-21T05:00:00+00:00"
}"""

CHUNK: Final = "b1b9b2f6-3a93-5b6c-8f6e-2f6c9f3f0a1"


def text(**given: Any) -> RejectedText:
    """The first rejection of TEXTS_OF_FORMAT_1, as this version makes it."""
    return RejectedText(
        **{
            "source": "handbook",
            "part": "parts/chunks/handbook/ca978112.parquet",
            "document_id": "bad.md",
            "chunk_id": f"{CHUNK}1",
            "text_hash": "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
            "error_class": "refused",
            "reason": "400: '$.input' is invalid",
            "cure": ERROR_CLASSES["refused"].cure,
        }
        | given
    )


def test_every_class_has_a_cure_and_one_spelling() -> None:
    for name, known in ERROR_CLASSES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert known.cure, name
        assert not known.cure.endswith("."), name
    assert {name for name, known in ERROR_CLASSES.items() if known.kind == "document"} == set(
        get_args(DocumentErrorClass)
    )


def test_the_cure_of_a_bad_id_names_the_limit_there_is() -> None:
    assert f"{MAX_ID_BYTES:,} bytes" in ERROR_CLASSES["bad-id"].cure


def test_format_1_is_read_as_a_snapshot_of_today() -> None:
    documents = Snapshot.model_validate_json(DOCUMENTS_OF_FORMAT_1)
    texts = Snapshot.model_validate_json(TEXTS_OF_FORMAT_1)

    assert (documents.format, texts.format) == (FORMAT, FORMAT)
    assert documents.rejected == (
        reject("empty-text", "the text is empty, or blank", source="handbook", item="empty.md", document_id="empty.md"),
        reject("undecodable", "not UTF-8", source="handbook", item="tickets.jsonl", position=7),
    )
    first, second = texts.rejected
    assert first == text()
    assert first.where == f"parts/chunks/handbook/ca978112.parquet#{CHUNK}1"
    assert (second.error_class, second.reason, second.attempts) == ("request-too-large", "413: too much", 2)
    assert second.cure == ERROR_CLASSES["request-too-large"].cure


@pytest.mark.parametrize("stored", [DOCUMENTS_OF_FORMAT_1, TEXTS_OF_FORMAT_1])
def test_a_head_of_format_1_that_says_the_same_is_not_committed_again(store: Store, stored: str) -> None:
    old = Snapshot.model_validate_json(stored).model_copy(update={"upstream": {}})
    as_stored = json.loads(stored) | {"upstream": {}}
    store.put_if_absent(log.entry_path(old.asset, old.source, 1), json.dumps(as_stored).encode())
    head = log.head(store, old.asset, old.source)

    def draft(*rejected: Rejection) -> Draft:
        return prepare(
            asset=old.asset,
            source=old.source,
            version=old.version,
            shard_bits=0,
            parts=[],
            counts=old.counts,
            upstream=[],
            after=head,
            rejected=rejected,
            model=old.model,
        )

    assert log.append(store, draft(*reversed(old.rejected))) == head
    assert log.numbers(store, old.asset, old.source) == [1]
    assert log.append(store, draft(*old.rejected[:1])).number == 2


@pytest.mark.parametrize("format_", [0, 4, "1", None])
def test_another_format_is_refused(format_: Any) -> None:
    with pytest.raises(ValidationError):
        Snapshot.model_validate_json(json.dumps(json.loads(DOCUMENTS_OF_FORMAT_1) | {"format": format_}))


names = st.text(max_size=20)
rejections = st.builds(
    RejectedDocument,
    source=names,
    item=names,
    position=st.none() | st.integers(1, 9),
    document_id=st.none() | names,
    error_class=st.sampled_from(sorted(ERROR_CLASSES)),
    reason=names,
    cure=names,
) | st.builds(text, reason=names, attempts=st.integers(0, 9))


@given(rejections)
def test_a_rejection_comes_back_from_its_json(rejection: Rejection) -> None:
    assert parsed(rejection.model_dump_json()) == rejection


def test_a_name_that_is_no_unicode_can_be_written() -> None:
    rejection = RejectedDocument(source="s", item="\udc80", error_class="bad-id", reason="\udc80", cure="name it")

    assert parsed(rejection.model_dump_json()) == rejection


def test_what_a_rejection_says_does_not_hang_on_tries_or_on_the_words_of_its_cure() -> None:
    def snapshot(*rejected: Rejection) -> Snapshot:
        return Snapshot.model_validate_json(TEXTS_OF_FORMAT_1).model_copy(update={"rejected": rejected})

    assert snapshot(text()).same_content(snapshot(text(attempts=3, cure="in other words")))
    for other in (text(reason="another"), text(error_class="too-long"), text(text_hash="0" * 64)):
        assert not snapshot(text()).same_content(snapshot(other))
        assert not snapshot(text()).same_content(snapshot(text(), other))
