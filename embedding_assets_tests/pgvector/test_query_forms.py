"""Each form in which an application may hand its query to search(): by psycopg and asyncpg, prepared and not."""

import asyncio
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import asyncpg
import numpy as np
import psycopg
import pytest
from pgvector.asyncpg import register_vector as register_asyncpg
from pgvector.psycopg import register_vector as register_psycopg

from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.schema import language
from embedding_assets_tests.pgvector.test_search import literal, query
from embedding_assets_tests.support.toy import Toy, bind, nearest, row

TOY = Toy(shards=1, rows=60)
LIST = [float(number) for number in query()]
NEAREST = nearest(TOY.all_rows(), query(), 3)


@pytest.fixture(scope="module")
def served(search_database: str) -> Iterator[Connection]:
    with connect(search_database) as conn:
        bind(conn)
        language.ensure_language(conn, "simple")
        TOY.publish_to(conn)
        yield conn


@pytest.mark.parametrize("prepare", [True, False])
@pytest.mark.parametrize(
    ("call", "given"),
    [
        ("search(%s, 3)", [literal(query())]),
        ("search(%s, %s)", [literal(query()), 3]),
        ("search(%s::vector, %s)", [literal(query()), 3]),
        ("search(%s::text, 3)", [literal(query())]),
        ("search(%s, %s)", [LIST, 3]),
        ("search(%s::real[], 3)", [LIST]),
        ("search(%s::real[], 3)", ["{" + literal(query())[1:-1] + "}"]),
        ("search(%s::double precision[], 3)", [LIST]),
        ("search(%s::vector::real[], 3)", [literal(query())]),
        ("search(%s, 3)", [[Decimal(number) for number in LIST]]),
        ("search(query => %s, k => 3, source => 'handbook')", [LIST]),
        ("search(query => %s, k => 3, filter => '{}')", [literal(query())]),
        (f"search('{literal(query())}', 3)", []),
        (f"search(ARRAY{literal(query())}, 3)", []),
    ],
)
def test_psycopg(served: Connection, search_database: str, call: str, given: list[Any], prepare: bool) -> None:
    with psycopg.connect(search_database) as conn:
        for _ in range(2):
            found = conn.execute(f"SELECT document_id, ordinal FROM {call}".encode(), given, prepare=prepare)
            assert found.fetchall() == NEAREST


def test_psycopg_with_the_types_of_pgvector(served: Connection, search_database: str) -> None:
    with psycopg.connect(search_database) as conn:
        register_psycopg(conn)
        for given in (query(), LIST, literal(query())):
            found = conn.execute("SELECT document_id, ordinal FROM search(%s, %s)", [given, 3], prepare=True)
            assert found.fetchall() == NEAREST


@pytest.mark.parametrize(
    ("call", "given", "types"),
    [
        ("search($1, $2)", [literal(query()), 3], False),
        ("search($1, 3)", [literal(query())], False),
        ("search($1::vector, 3)", [literal(query())], False),
        ("search($1::real[], 3)", [LIST], False),
        ("search($1::double precision[], $2, 'handbook')", [LIST, 3], False),
        ("search($1::vector, $2)", [query(), 3], True),
        ("search($1::vector, 3)", [LIST], True),
        ("search($1::real[], 3)", [query()], True),
    ],
)
def test_asyncpg(served: Connection, search_database: str, call: str, given: list[Any], types: bool) -> None:
    async def ask() -> list[list[tuple[str, int]]]:
        conn = await asyncpg.connect(search_database)
        try:
            if types:
                await register_asyncpg(conn)
            statement = await conn.prepare(f"SELECT document_id, ordinal FROM {call}")
            return [[tuple(hit) for hit in await statement.fetch(*given)] for _ in range(2)]
        finally:
            await conn.close()

    assert asyncio.run(ask()) == [NEAREST] * 2


@pytest.mark.parametrize("given", ["%s", "%s::vector", "%s::real[]", "%s::text"])
def test_null_says_what_is_needed(served: Connection, given: str) -> None:
    for parameter in (given % "NULL", given):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="search needs a query vector, not NULL"):
            served.execute(f"SELECT FROM search({parameter}, 3)".encode(), [None] if "%" in parameter else None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0, 2.0], "the query has 2 dimensions, the live model toy-8"),
        ([float("nan")] * 8, "NaN not allowed in vector"),
        ([1e300] * 8, "infinite value not allowed in vector|out of range"),
        ([[1.0, 2.0]], "array must be 1-D"),
        ("cheese", "invalid input syntax for type vector"),
        ("", "invalid input syntax for type vector"),
        ("[]", "vector must have at least 1 dimension"),
        ([0.0] * 8, "the query is a vector of zeros"),
        ([None, *[0.5] * 7], "array must not contain nulls"),
    ],
)
def test_what_is_no_vector_of_the_model_is_refused_in_words(served: Connection, given: Any, said: str) -> None:
    for call in ("search(%s, 3)", "search_hybrid(%s, 'chunk', 3)"):
        with pytest.raises(psycopg.Error, match=said):
            served.execute(f"SELECT FROM {call}".encode(), [given])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0, 2.0], "different vector dimensions 8 and 2"),
        ([float("nan")] * 8, "NaN not allowed in vector"),
        ("[]", "vector must have at least 1 dimension"),
    ],
)
def test_the_view_refuses_in_words_too(served: Connection, given: Any, said: str) -> None:
    cast = "vector" if isinstance(given, str) else "real[]::vector"
    with pytest.raises(psycopg.Error, match=said):
        served.execute(f"SELECT FROM live_chunks ORDER BY embedding <=> %s::{cast} LIMIT 3".encode(), [given])


@pytest.mark.parametrize("filter", ["[]", '"team"', "null", "3"])
def test_a_filter_that_is_no_object_is_refused_in_words(served: Connection, filter: str) -> None:
    for call in ("search(%s, 3, filter => %s)", "search_hybrid(%s, 'chunk', 3, filter => %s)"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"the filter is of type \w+, not an object"):
            served.execute(f"SELECT FROM {call}".encode(), [LIST, filter])


@pytest.mark.parametrize("given", [LIST, literal(query())])
def test_hybrid_search_takes_the_same_forms(served: Connection, given: Any) -> None:
    statement = "SELECT document_id, score FROM search_hybrid(%s, %s, %s)"
    wanted = served.execute(statement.replace("%s", "%s::vector", 1), [literal(query()), "chunk", 3]).fetchall()

    assert served.execute(statement, [given, "chunk", 3]).fetchall() == wanted
    assert served.execute(statement.replace("%s", "%s::real[]", 1), [LIST, "chunk", 3]).fetchall() == wanted


def test_a_hit_has_the_chunk_id_of_live_chunks(served: Connection) -> None:
    by_search = served.execute("SELECT chunk_id FROM search(%s, 1)", [LIST]).fetchone()
    by_words = served.execute("SELECT chunk_id FROM search_hybrid(%s, '', 1)", [LIST]).fetchone()
    by_view = served.execute("SELECT chunk_id FROM live_chunks ORDER BY embedding <=> %s::vector LIMIT 1", [LIST])

    (place,) = nearest(TOY.all_rows(), query(), 1)
    (sent,) = (r for r in TOY.all_rows() if (r.document_id, r.ordinal) == place)
    assert by_search == by_words == by_view.fetchone() == (uuid.UUID(bytes=sent.chunk_id),)


def test_the_live_model_is_told_and_follows_a_switch(served: Connection) -> None:
    asked = "SELECT name, dimensions, provider, slot FROM live_model()"
    assert served.execute(asked, prepare=True).fetchone() == ("toy-8", 8, "test", "v1")

    bind(served, live="v2")
    try:
        assert served.execute(asked, prepare=True).fetchone() == ("toy-12", 12, "test", "v2")
        assert served.execute("SELECT FROM search(%s, 1)", [np.asarray(row(1).v2).tolist()]).rowcount == 1
    finally:
        bind(served)


def test_before_a_model_is_live_live_model_says_so(database: str) -> None:
    with connect(database) as conn, pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no live model"):
        conn.execute("SELECT * FROM live_model()")


def test_a_query_that_names_another_model_than_the_live_one_is_refused(served: Connection) -> None:
    query = np.asarray(row(1).v1).tolist()
    plain = served.execute("SELECT chunk_id FROM search(%s::vector, 3, NULL, '{}')", [str(query)]).fetchall()

    for form in ("vector", "text"):
        asked = f"SELECT chunk_id FROM search(%s::{form}, 3, NULL, '{{}}', %s)"
        assert served.execute(asked.encode(), [str(query), "toy-8"]).fetchall() == plain
        assert served.execute(asked.encode(), [str(query), None]).fetchall() == plain
        with pytest.raises(
            psycopg.errors.InvalidParameterValue, match=r"embedded with other-8, the live model is toy-8"
        ):
            served.execute(asked.encode(), [str(query), "other-8"])
    # What one call named is no other call's.
    assert served.execute("SELECT chunk_id FROM search(%s::vector, 3, NULL, '{}')", [str(query)]).fetchall() == plain
