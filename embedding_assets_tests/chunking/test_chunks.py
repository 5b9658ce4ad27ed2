"""The chunks stage: what its table holds, and that nothing but its input decides."""

import hashlib
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from embedding_assets.chunking.chunks import chunk_documents
from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.schemas import CHUNKS, DOCUMENTS
from embedding_assets_tests.chunking.texts import real_texts


def documents(*rows: tuple[str, str], metadata: str = "{}") -> pa.Table:
    return pa.table(
        {
            "document_id": [document_id for document_id, _ in rows],
            "text": [text for _, text in rows],
            "metadata": [metadata] * len(rows),
            "content_hash": [hashlib.sha256(text.encode()).digest() for _, text in rows],
        },
        schema=DOCUMENTS,
    )


def chunk(table: pa.Table, source: str = "handbook", max_tokens: int = 64, overlap: int = 8) -> pa.Table:
    return chunk_documents(source, table, max_tokens=max_tokens, overlap=overlap)


LONG = "Überall the vectors — naïve or not — were loaded. 今天天气很好。 😀 " * 30


def test_the_table_has_the_schema_and_every_column_agrees_with_the_text() -> None:
    table = chunk(documents(("a", LONG), ("b", "  One line.\n"), metadata='{"team":"search"}'))
    assert table.schema == CHUNKS
    table.validate(full=True)
    for row in table.to_pylist():
        text = {"a": LONG, "b": "  One line.\n"}[row["document_id"]]
        assert row["text"] == text[row["start"] : row["end"]]
        assert row["text_hash"] == hashlib.sha256(row["text"].encode()).digest()
        assert row["metadata"] == '{"team":"search"}'
        assert row["chunk_hash"] == hashlib.sha256(covered(row)).digest()
        assert 0 < row["tokens"] <= 64
    assert table.filter(pc.field("document_id") == "b")["text"].to_pylist() == ["One line."]


def covered(row: dict[str, Any]) -> bytes:
    """What a chunk's hash covers."""
    document = row["document_id"].encode()
    numbers = b"".join(row[name].to_bytes(4, "big") for name in ("ordinal", "start", "end"))
    fixed = row["chunk_id"] + numbers + row["text_hash"] + len(document).to_bytes(4, "big")
    return bytes(fixed + document + row["metadata"].encode())


def test_rows_are_in_the_order_of_document_id_by_its_bytes_and_ordinal() -> None:
    names = ["b", "a/2", "a", "Z", "ä", "\U0001f600", "\uffff", "a/10", ""]
    table = chunk(documents(*((name, LONG) for name in names)))
    keys = [(row["document_id"].encode(), row["ordinal"]) for row in table.to_pylist()]
    assert keys == sorted(keys)
    assert {key for key, _ in keys} == {name.encode() for name in names}
    first = table.filter(pc.field("document_id") == "a")
    assert first["ordinal"].to_pylist() == list(range(len(first)))


def test_blank_documents_have_no_chunks() -> None:
    assert chunk(documents(("a", ""), ("b", " \n"))).num_rows == 0
    assert chunk(documents()).schema == CHUNKS


def test_a_chunk_id_is_a_uuid_of_version_8_that_source_document_and_ordinal_alone_decide() -> None:
    old, new = chunk(documents(("a", LONG))), chunk(documents(("a", LONG.upper())))
    assert new["chunk_id"].to_pylist()[:5] == old["chunk_id"].to_pylist()[:5]
    first = uuid.UUID(bytes=old["chunk_id"][0].as_py())
    assert (first.version, first.variant) == (8, uuid.RFC_4122)
    # A row keeps its id for ever: this one may only change together with STAGE_VERSION.
    assert first == uuid.UUID("b781db7e-a387-8501-9f14-2c5612032867")


@pytest.mark.parametrize(
    ("one", "other"), [(("ab", "c"), ("a", "bc")), (("a", "b"), ("b", "a")), (("a|b", ""), ("a", "b"))]
)
def test_names_that_read_alike_side_by_side_get_different_ids(one: tuple[str, str], other: tuple[str, str]) -> None:
    ids = [chunk(documents((document, "text")), source)["chunk_id"][0].as_py() for source, document in (one, other)]
    assert ids[0] != ids[1]


def test_equal_texts_share_a_hash_and_no_id() -> None:
    table = chunk(documents(("a", "The same."), ("b", "The same.")))
    assert len(set(table["text_hash"].to_pylist())) == 1
    assert len(set(table["chunk_id"].to_pylist())) == 2


def test_the_order_and_the_chunking_of_the_input_table_do_not_matter() -> None:
    texts = [(str(i), text) for i, text in enumerate(real_texts()[:20])]
    table = documents(*texts)
    scattered = pa.concat_tables([documents(*texts[13:]), documents(*texts[:13])])
    assert chunk(scattered).equals(chunk(table))


def fingerprint() -> str:
    """What another process is asked for."""
    table = chunk(documents(("a", LONG), ("ä", "İstanbul. ıI ŞS. " * 60), ("c", "# T\n\nX y z. " * 90)))
    return hashlib.sha256(repr(table.to_pylist()).encode()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "0", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONHASHSEED": "12345", "LC_ALL": "tr_TR.UTF-8", "PYTHONUTF8": "1"},
    ],
    ids=["C", "Turkish"],
)
def test_another_process_locale_and_hash_seed_give_the_same_chunks(environment: dict[str, str]) -> None:
    program = f"import {__name__} as here; print(here.fingerprint())"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == fingerprint()


def test_bad_limits_are_refused() -> None:
    with pytest.raises(PermanentError, match="overlap is 32"):
        chunk(documents(("a", "text")), max_tokens=64, overlap=32)
