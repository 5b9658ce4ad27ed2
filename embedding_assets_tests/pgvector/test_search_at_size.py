"""Searches of 100,000 chunks, where Postgres begins to plan with parallel workers: what runs is the index, alone."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.inverted import ensure_metadata_index
from embedding_assets.pgvector.schema import language, words
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.pgvector.schema.migrations import MIGRATIONS
from embedding_assets_tests.pgvector.test_search import literal, query
from embedding_assets_tests.support.toy import Toy, bind

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("search at size")]  # one such table for all of them

ROWS = 100_000
LARGE, SMALL = Toy("large", shards=1, rows=3), Toy("small", shards=1, rows=800, edition=1)
LARGE_INDEX, SMALL_INDEX = "generation_1_v1", "generation_2_v1"
ALL = "{}"
NARROW = '{"rare": true}'  # 10 of 100,000
BETWEEN = '{"team": "3"}'  # a tenth


@pytest.fixture(scope="module")
def served(search_database: str) -> Iterator[Connection]:
    """A source of 100,000 chunks of 8 dimensions, eight of each vector, and one of 800.

    Put straight into the published table, and its index built by hand with less care than ours: seconds, not a minute.
    """
    with connect(search_database) as conn:
        bind(conn)
        language.ensure_language(conn, "english")
        for toy in (LARGE, SMALL):
            toy.publish_to(conn)
        conn.execute(f"DROP INDEX embedding_assets.{LARGE_INDEX}, embedding_assets.generation_1_metadata")
        conn.execute("SELECT setseed(0.5)")
        conn.execute(
            """
            INSERT INTO embedding_assets.generation_1 (
                shard, digest, chunk_id, document_id, ordinal, start_offset, end_offset, content, metadata, embedding_v1
            )
            SELECT 0, 0, gen_random_uuid(), 'doc-' || vector_id, ordinal, 0, 400,
                   'text ' || vector_id || ' and more ' || repeat('x', 200),
                   jsonb_build_object('rare', ordinal = 0 AND vector_id %% 1250 = 0, 'team', (vector_id %% 10)::text,
                                      'away', embedding <#> %s::vector > 0),
                   embedding
            FROM (
                SELECT vector_id, l2_normalize(array_agg(random() - 0.5)::vector) AS embedding
                FROM generate_series(1, %s) AS vector_id, generate_series(1, 8) GROUP BY vector_id
            ) AS vectors, generate_series(0, 7) AS ordinal
            """,
            [literal(query()), ROWS // 8],
        )
        conn.execute("SET maintenance_work_mem = '256MB'")
        conn.execute(
            f"CREATE INDEX {LARGE_INDEX} ON embedding_assets.generation_1 USING hnsw (embedding_v1 vector_cosine_ops) "
            "WITH (m = 8, ef_construction = 32)"
        )
        for toy in (LARGE, SMALL):
            generation = published_generation(conn, toy.name)
            assert generation is not None
            ensure_metadata_index(conn, generation)
            words.ensure_words(conn, generation)
        conn.execute("VACUUM (ANALYZE) embedding_assets.generation_1")
        conn.execute("UPDATE embedding_assets.models SET ef_search = 40")
        yield conn


@pytest.fixture
def in_one_statement(served: Connection) -> Iterator[None]:
    """search() as it was before 0011: both its branches are planned at every call."""
    with served.transaction(force_rollback=True):
        served.execute("SET LOCAL search_path = embedding_assets, public")
        served.execute("ALTER TYPE hit DROP ATTRIBUTE chunk_id CASCADE")  # it had none then
        for name in ("0005_surface.sql", "0008_ef_search.sql"):
            served.execute((MIGRATIONS / name).read_bytes())
        served.execute("SET LOCAL search_path = public")
        yield


class Plans(NamedTuple):
    """What the statements were planned with: nodes of Postgres's plan trees, and indexes of generations."""

    gathers: set[str]
    indexes: list[str]


def plans(conn: Connection, statement: str, parameters: list[Any]) -> Plans:
    """Of a statement and of all that its functions run: EXPLAIN does not look into functions, debug_print_plan does."""
    trees: list[str] = []

    def listen(diagnostic: psycopg.errors.Diagnostic) -> None:
        trees.append(diagnostic.message_detail or "")

    conn.add_notice_handler(listen)
    try:
        with conn.transaction():
            # auto_explain is not among the server's libraries.
            conn.execute("SET LOCAL debug_print_plan = on; SET LOCAL client_min_messages = log")
            conn.execute(statement.encode(), parameters).fetchall()
    finally:
        conn.remove_notice_handler(listen)
    ours = [tree for tree in trees if "PLANNEDSTMT" in tree]
    assert ours
    found = [int(oid) for tree in ours for oid in re.findall(r":indexid (\d+)", tree)]
    names: dict[int, str] = dict(
        conn.execute("SELECT oid::bigint, relname FROM pg_class WHERE relname ~ '^generation_[0-9]'").fetchall()
    )
    return Plans(
        {node for tree in ours for node in re.findall(r"\{(GATHER\w*)", tree)},
        sorted(names[oid] for oid in found if oid in names),
    )


SEARCH = "SELECT source, document_id, ordinal, content, metadata, distance FROM search(%s, %s, %s, %s)"


@pytest.mark.usefixtures("in_one_statement")
def test_a_table_of_this_size_had_workers_planned_for_it(served: Connection) -> None:
    """So that the tests below would tell."""
    assert plans(served, SEARCH, [literal(query()), 10, None, ALL]) == ({"GATHERMERGE"}, [LARGE_INDEX, SMALL_INDEX])


@pytest.mark.parametrize(
    ("source", "filter", "indexes"),
    [
        (None, ALL, [LARGE_INDEX, SMALL_INDEX]),
        ("large", ALL, [LARGE_INDEX]),
        ("large", BETWEEN, [LARGE_INDEX]),
        ("large", NARROW, ["generation_1_metadata"]),
    ],
)
def test_a_search_is_planned_with_the_index_alone_and_without_workers(
    served: Connection, source: str | None, filter: str, indexes: list[str]
) -> None:
    assert plans(served, SEARCH, [literal(query()), 10, source, filter]) == (set(), indexes)


def test_a_hybrid_search_is_planned_without_workers(served: Connection) -> None:
    statement = "SELECT * FROM search_hybrid(%s, %s, 10)"

    for text in ("text", "edition", "more or chunk", "nowhere"):
        gathers, indexes = plans(served, statement, [literal(query()), text])
        assert gathers == set()
        assert {LARGE_INDEX, SMALL_INDEX} <= set(indexes)


@pytest.mark.parametrize(
    ("narrowed", "indexes"),
    [("", [LARGE_INDEX, SMALL_INDEX]), ("WHERE source = 'large'", [LARGE_INDEX])],
)
@pytest.mark.parametrize("k", [10, 1_000])
def test_the_nearest_of_the_view_are_planned_with_the_indexes_alone_and_without_workers(
    served: Connection, narrowed: str, indexes: list[str], k: int
) -> None:
    statement = f"SELECT content FROM live_chunks {narrowed} ORDER BY embedding <=> %s::vector LIMIT {k}"

    assert plans(served, statement, [literal(query())]) == (set(), indexes)


def test_an_exact_search_that_is_needed_still_has_workers(served: Connection) -> None:
    """Of what lies the other way the index finds none before it gives up."""
    with served.transaction(force_rollback=True):
        served.execute("SET LOCAL hnsw.max_scan_tuples = 500")
        asked = [literal(query()), 10, "large", '{"away": true}']

        gathers, indexes = plans(served, SEARCH, asked)
        assert LARGE_INDEX in indexes
        assert gathers == {"GATHERMERGE"}
        assert len(served.execute(SEARCH, asked).fetchall()) == 10


# What a change of how it is asked must leave alone

QUERIES = [literal(query(seed)) for seed in range(5_000_000, 5_000_003)]
FEW = list(itertools.product([1, 10, 60], [None, "large", "small", "nowhere"], [ALL, NARROW, BETWEEN, '{"team": "x"}']))
MANY = (10_000, None, ALL)


def answers(conn: Connection, k: int, source: str | None, filter: str) -> list[list[tuple[Any, ...]]]:
    return [conn.execute(SEARCH, [vector, k, source, filter]).fetchall() for vector in QUERIES]


def test_the_answers_are_those_of_one_statement_for_both(served: Connection, request: pytest.FixtureRequest) -> None:
    """The same rows in the same order, for every k, source and filter, with eight chunks at every distance."""
    cases = [*FEW, MANY]
    now = {case: answers(served, *case) for case in cases}

    request.getfixturevalue("in_one_statement")

    for case in cases:
        assert now[case] == answers(served, *case), case


def test_hits_are_sorted_where_the_index_gives_them_nearly_so(served: Connection) -> None:
    """From Postgres 17 on a sort is left out where an index is said to have done it; with relaxed_order it has not."""
    for found in answers(served, *MANY):
        places = [(distance, *place) for *place, _, _, distance in found]
        assert places == sorted(places)


@pytest.mark.parametrize(("k", "source", "filter"), [case for case in FEW if case[2] == NARROW])
def test_where_the_index_has_too_few_the_answer_is_exact(
    served: Connection, k: int, source: str | None, filter: str
) -> None:
    """Against every chunk looked at, in the order of distance, source, document and ordinal."""
    exact = """
        SELECT source, document_id, ordinal, content, metadata, embedding_v1 <=> %(query)s::vector AS distance
        FROM embedding_assets.chunks WHERE (%(source)s::text IS NULL OR source = %(source)s) AND metadata @> %(filter)s
        ORDER BY (embedding_v1 <=> %(query)s::vector) + 0 LIMIT %(k)s
    """
    ordered = f"SELECT * FROM ({exact}) AS nearest ORDER BY distance, source, document_id, ordinal"
    asked = {"source": source, "filter": filter, "k": k}

    for vector, found in zip(QUERIES, answers(served, k, source, filter), strict=True):
        expected = served.execute(ordered.encode(), {"query": vector, **asked}).fetchall()
        assert [hit[5] for hit in found] == [hit[5] for hit in expected]
        # Of those at the last distance any may be the ones that k leaves.
        last = expected[-1][5] if expected else None
        assert [hit for hit in found if hit[5] != last] == [hit for hit in expected if hit[5] != last]
        assert all(hit[4].items() >= json.loads(filter).items() for hit in found)
