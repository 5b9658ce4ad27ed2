"""The content fingerprint: one number from a shard's rows by NumPy, and from a table by SQL."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.rows import fingerprint
from embedding_assets.pgvector.rows.copy import COLUMNS, HEADER, TRAILER, digests_of, encode
from embedding_assets.pgvector.rows.fingerprint import Fingerprint
from embedding_assets.pgvector.rows.vector_types import VectorType, VectorTypes
from embedding_assets_tests.support.strategies import INTS, METADATA, TEXTS, lists_of_rows, vectors
from embedding_assets_tests.support.toy import Row, row, shard_rows


@pytest.fixture(scope="module")
def conn(scratch: str) -> Iterator[Connection]:
    with connect(scratch) as conn:
        yield conn


TABLE = sql.Identifier("stored")
SMALL = VectorType("vector", 2), VectorType("vector", 3)


@contextmanager
def stored(conn: Connection, shards: dict[int, list[Row]], types: VectorTypes) -> Iterator[None]:
    """A table of these rows, whose vectors have these types. It goes at the end."""
    v1, v2 = types
    with conn.transaction(force_rollback=True):
        conn.execute(
            "CREATE TEMP TABLE stored (shard int, digest bigint, chunk_id uuid, document_id text, ordinal int, "
            "start_offset int, end_offset int, content text, metadata jsonb, "
            f"embedding_v1 {v1.name}({v1.dimensions}), embedding_v2 {v2.name}({v2.dimensions}))".encode()
        )
        with conn.cursor().copy(f"COPY stored ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)".encode()) as copy:
            copy.write(HEADER)
            for shard, rows in shards.items():
                parts = shard_rows(rows, v1.dimensions, v2.dimensions)
                for block in encode(parts, digests_of(parts, types), shard, types):
                    copy.write(block)
            copy.write(TRAILER)
        yield


def in_sql(conn: Connection, shards: dict[int, list[Row]], types: VectorTypes) -> dict[int, Fingerprint]:
    """The fingerprints that SQL finds in a table of these rows, from their content and by their digests alike."""
    with stored(conn, shards, types):
        found = {shard: content.fingerprint for shard, content in fingerprint.of_table(conn, TABLE, types).items()}
        assert found == {shard: fingerprint.by_digests(conn, TABLE, shard) for shard in found}
        return found


@given(first=lists_of_rows(2, 3), second=lists_of_rows(2, 3))
@settings(max_examples=50, deadline=None)
def test_sql_and_numpy_agree_on_every_shard(conn: Connection, first: list[Row], second: list[Row]) -> None:
    shards = {0: first, 7: second}

    expected = {n: fingerprint.of_rows(shard_rows(rows, 2, 3), SMALL) for n, rows in shards.items() if rows}

    assert in_sql(conn, shards, SMALL) == expected


@pytest.mark.parametrize("v1", ["vector", "halfvec"])
def test_sql_and_numpy_agree_on_halfvec_and_null_vectors(conn: Connection, v1: Literal["vector", "halfvec"]) -> None:
    rows = [row(1, 4, 2001), row(2, 4, 2001, v2=None), row(3, 4, 2001, v1=None, v2=None)]
    types = VectorType(v1, 4), VectorType("halfvec", 2001)

    assert in_sql(conn, {0: rows}, types) == {0: fingerprint.of_rows(shard_rows(rows, 4, 2001), types)}


CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "chunk_id": st.binary(min_size=16, max_size=16),
    "document_id": TEXTS,
    "ordinal": INTS,
    "start": INTS,
    "end": INTS,
    "content": TEXTS,
    "metadata": METADATA,
    "v1": vectors(2),
    "v2": vectors(3),
}


@given(rows=lists_of_rows(2, 3).filter(bool), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_single_change_of_a_row_is_noticed(rows: list[Row], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    field = data.draw(st.sampled_from(sorted(CHANGES)))
    value: Any = data.draw(CHANGES[field])
    changed = [*rows[:place], rows[place]._replace(**{field: value}), *rows[place + 1 :]]

    same = of(changed) == of(rows)

    # Bit by bit: 0.0 and -0.0 are different contents.
    before = getattr(rows[place], field)
    unchanged = (
        before.tobytes() == value.tobytes()
        if isinstance(before, np.ndarray) and isinstance(value, np.ndarray)
        else before is value
        if before is None or value is None
        else before == value
    )
    assert same == unchanged


@given(rows=lists_of_rows(2, 3).filter(bool), data=st.data())
@settings(deadline=None)
def test_order_does_not_matter_and_a_row_lost_or_doubled_does(rows: list[Row], data: st.DataObject) -> None:
    assert of(data.draw(st.permutations(rows))) == of(rows)
    assert of(rows[1:]).digest != of(rows).digest
    assert of([rows[0], *rows]).digest != of(rows).digest
    assert of([rows[0], rows[0], *rows]).digest != of(rows).digest  # which XOR would miss


def test_text_cannot_move_between_neighbouring_fields_unnoticed() -> None:
    assert of([row(1, 2, 3, document_id="ab", content="c")]) != of([row(1, 2, 3, document_id="a", content="bc")])


def test_no_rows_have_the_fingerprint_nothing() -> None:
    assert of([]) == fingerprint.NOTHING


@pytest.mark.parametrize(
    ("tampering", "misdigested", "misnormed"),
    [
        ("content = content || ' '", 1, 0),
        ("digest = digest + 1", 1, 0),
        ("digest = NULL", 1, 0),
        ("embedding_v1 = '[0.6,0.81]'", 1, 1),
        ("embedding_v1 = NULL", 1, 0),
        ("embedding_v2 = '[1,1,1]'", 1, 1),
    ],
)
def test_a_row_changed_in_the_table_shows_whatever_its_digest_says(
    conn: Connection, tampering: str, misdigested: int, misnormed: int
) -> None:
    rows = [row(n, 2, 3) for n in range(3)]
    with stored(conn, {0: rows}, SMALL):
        ids = [UUID(bytes=r.chunk_id) for r in rows]
        assert fingerprint.count_sound(conn, TABLE, SMALL, ids) == 3

        conn.execute(f"UPDATE stored SET {tampering} WHERE ordinal = 1".encode())

        (content,) = fingerprint.of_table(conn, TABLE, SMALL).values()
        assert content[1:] == (misdigested, misnormed)
        assert fingerprint.count_sound(conn, TABLE, SMALL, ids) == 2
        assert fingerprint.count_sound(conn, TABLE, SMALL, ids[:1]) == 1


def of(rows: list[Row]) -> Fingerprint:
    return fingerprint.of_rows(shard_rows(rows, 2, 3), SMALL)
