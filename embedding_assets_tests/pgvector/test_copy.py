"""The binary COPY stream: byte for byte what psycopg writes, and what Postgres gives back."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pgvector import HalfVector, Vector
from pgvector.psycopg import register_vector
from psycopg.copy import FileWriter
from psycopg.types.json import Jsonb

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.loading.generations import TOAST_TUPLE_TARGET
from embedding_assets.pgvector.rows.copy import COLUMNS, HEADER, TRAILER, digests_of, encode
from embedding_assets.pgvector.rows.shards import ShardRows
from embedding_assets.pgvector.rows.vector_types import VectorTypes, vector_type
from embedding_assets_tests.support.strategies import lists_of_rows
from embedding_assets_tests.support.toy import Row, chunk_hash, row, shard_rows, vector_hash


@pytest.fixture(scope="module")
def conn(scratch: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(scratch, autocommit=True) as conn:
        register_vector(conn)
        yield conn


def types(d1: int, d2: int, *, halfvec: bool = False) -> VectorTypes:
    return vector_type(d1, halfvec=halfvec), vector_type(d2)


def stream(parts: ShardRows, shard: int, of: VectorTypes, block_bytes: int = 1 << 20) -> bytes:
    return HEADER + b"".join(encode(parts, digests_of(parts, of), shard, of, block_bytes)) + TRAILER


@contextmanager
def stored(conn: psycopg.Connection, some: list[Row], of: VectorTypes) -> Iterator[str]:
    """A table like a generation's with these rows, as the stream brings them; it goes at the end."""
    v1, v2 = of
    with conn.transaction(force_rollback=True):
        conn.execute(
            "CREATE TEMP TABLE stored (shard int, digest bigint, chunk_id uuid, document_id text, ordinal int, "
            f"start_offset int, end_offset int, content text, metadata jsonb, embedding_v1 {v1.name}({v1.dimensions}), "
            f"embedding_v2 {v2.name}({v2.dimensions})) WITH (toast_tuple_target = {TOAST_TUPLE_TARGET})"
        )
        with conn.cursor().copy(f"COPY stored ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)") as copy:
            copy.write(stream(shard_rows(some, v1.dimensions, v2.dimensions), 0, of))
        yield "stored"


def by_psycopg(conn: psycopg.Connection, given_rows: list[Row], shard: int, of: VectorTypes) -> bytes:
    """What psycopg's own binary COPY sends for the same rows."""
    kinds = [each.name for each in of]
    fields = ["int4", "int8", "uuid", "text", "int4", "int4", "int4", "text", "jsonb", *kinds]
    written = io.BytesIO()
    with psycopg.Copy(conn.cursor(), binary=True, writer=FileWriter(written)) as copy:
        copy.set_types(fields)
        for r in given_rows:
            found = [
                None if v is None else (Vector(v) if kind == "vector" else HalfVector(v))
                for v, kind in zip((r.v1, r.v2), kinds, strict=True)
            ]
            values = [UUID(bytes=r.chunk_id), r.document_id, r.ordinal, r.start, r.end, r.content]
            parts = shard_rows([r], *(each.dimensions for each in of))
            digest = int(digests_of(parts, of)[0])
            copy.write_row([shard, digest, *values, Jsonb(r.metadata, dumps=str), *found])
    return written.getvalue()


@given(some=lists_of_rows(1, 3), shard=st.integers(0, 2**31 - 1), block_bytes=st.sampled_from([1, 100, 1 << 20]))
@settings(max_examples=100, deadline=None)
def test_the_stream_is_what_psycopg_writes_for_the_same_rows(
    conn: psycopg.Connection, some: list[Row], shard: int, block_bytes: int
) -> None:
    of = types(1, 3)
    assert stream(shard_rows(some, 1, 3), shard, of, block_bytes) == by_psycopg(conn, some, shard, of)


@pytest.mark.parametrize("of", [types(384, 2000), types(2001, 4000), types(384, 2000, halfvec=True)])
def test_vectors_and_halfvecs_and_nulls_are_what_psycopg_writes(conn: psycopg.Connection, of: VectorTypes) -> None:
    d1, d2 = (each.dimensions for each in of)
    some = [row(1, d1, d2), row(2, d1, d2, v1=None), row(3, d1, d2, v2=None), row(4, d1, d2, v1=None, v2=None)]

    assert stream(shard_rows(some, d1, d2), 7, of) == by_psycopg(conn, some, 7, of)


@given(some=lists_of_rows(3, 1))
@settings(max_examples=25, deadline=None)
def test_rows_come_back_from_postgres_as_they_were(conn: psycopg.Connection, some: list[Row]) -> None:
    some = [r._replace(v2=row(n, 1, 2001).v2) for n, r in enumerate(some)]
    with stored(conn, some, types(3, 2001)) as table:
        found = conn.execute(f"SELECT *, metadata::text FROM {table}").fetchall()

    assert len(found) == len(some)
    for back, sent in zip(found, some, strict=True):
        assert (back[0], *back[2:8]) == (0, UUID(bytes=sent.chunk_id), *sent[1:6])
        assert back[11] == sent.metadata
        assert (back[9] is None) == (sent.v1 is None)
        if sent.v1 is not None:
            np.testing.assert_array_equal(back[9].to_numpy(), sent.v1)
        np.testing.assert_array_equal(back[10].to_numpy(), np.asarray(sent.v2, np.float16))


@given(some=lists_of_rows(2, 1))
@settings(max_examples=50, deadline=None)
def test_the_digest_of_a_row_is_made_of_its_parts_hashes(some: list[Row]) -> None:
    of = types(2, 1)

    found = digests_of(shard_rows(some, 2, 1), of).tolist()

    for digest, r in zip(found, some, strict=True):
        hashes = [chunk_hash(r), *(bytes(32) if v is None else vector_hash(v) for v in (r.v1, r.v2))]
        chunk, v1, v2 = (int.from_bytes(each[8 * n : 8 * n + 8], "big") for n, each in enumerate(hashes))
        assert digest % (1 << 64) == chunk ^ v1 ^ v2


def test_parts_from_before_they_had_hashes_have_the_same_digests() -> None:
    rows = shard_rows([row(1), row(2, v1=None), row(3)])
    before = ShardRows(
        rows.chunks.drop_columns("chunk_hash"), tuple(each.drop_columns("vector_hash") for each in rows.vectors)
    )
    assert digests_of(before, types(8, 12)).tolist() == digests_of(rows, types(8, 12)).tolist()


def test_a_shard_is_cut_into_blocks_of_the_size_asked_for() -> None:
    parts = shard_rows([row(n) for n in range(500)])

    blocks = list(encode(parts, np.zeros(500, np.int64), 0, types(8, 12), block_bytes=8_192))

    assert len(blocks) > 5
    assert all(len(block) < 2 * 8_192 for block in blocks)
    assert b"".join(blocks) == b"".join(encode(parts, np.zeros(500, np.int64), 0, types(8, 12)))


def test_a_text_of_ten_megabytes_is_one_row_of_the_stream(conn: psycopg.Connection) -> None:
    some = [row(1), row(2, content="ä" * 5_000_000), row(3)]
    assert stream(shard_rows(some), 0, types(8, 12)) == by_psycopg(conn, some, 0, types(8, 12))


def test_a_row_beyond_what_postgres_holds_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedding_assets.pgvector.rows.copy._LARGEST_ROW", 1_000)
    with pytest.raises(PermanentError, match=r"document 'doc-0' takes.*Cure: lower max_tokens"):
        stream(shard_rows([row(1), row(2, content="x" * 2_000)]), 0, types(8, 12))


def test_encoding_costs_at_most_four_microseconds_a_row() -> None:
    """At 384 dimensions with 800 characters and metadata: the best of seven, in CPU time."""
    parts = shard_rows([row(n, 1, 384, content="x" * 800) for n in range(4_000)], 1, 384)

    def seconds() -> float:
        began = time.process_time()
        for _ in encode(parts, digests_of(parts, types(1, 384)), 0, types(1, 384)):
            pass
        return time.process_time() - began

    assert min(seconds() for _ in range(7)) / 4_000 < 4e-6


@pytest.mark.parametrize(
    ("d1", "d2", "content", "in_line"),
    [(8, 384, 800, True), (8, 1536, 800, True), (384, 1536, 300, True), (384, 1536, 800, False)],
)
def test_vectors_lie_in_line_where_a_row_fits_a_page(
    conn: psycopg.Connection, d1: int, d2: int, content: int, in_line: bool
) -> None:
    text = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz  "), content))
    some = [row(n, d1, d2, content=text, metadata="{}") for n in range(5)]
    with stored(conn, some, types(d1, d2)) as table:
        outside = conn.execute(
            f"SELECT count(*) FROM {table} WHERE pg_column_toast_chunk_id(embedding_v1) IS NOT NULL "
            "OR pg_column_toast_chunk_id(embedding_v2) IS NOT NULL"
        ).fetchone()
    assert outside == (0 if in_line else len(some),)
