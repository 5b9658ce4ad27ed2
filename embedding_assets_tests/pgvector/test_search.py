"""The search surface, as any Postgres client sees it."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.reading.search import Hit, search
from embedding_assets.pgvector.reading.status import region_status
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.schema import migrations
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.pgvector.schema.names import generation_table
from embedding_assets_tests.support.toy import Row, Toy, bind, nearest, row

FIRST, SECOND = Toy("first", shards=2, rows=800), Toy("second", shards=1, rows=800, edition=1)


@pytest.fixture(scope="module")
def served(search_database: str) -> Iterator[Connection]:
    """Two sources, 2,400 chunks."""
    with connect(search_database) as conn:
        bind(conn)
        for toy in (FIRST, SECOND):
            toy.publish_to(conn)
        yield conn


def query(seed: int = 5_000_000) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = row(seed).v1
    assert vector is not None
    return vector


def places(hits: list[Hit]) -> list[tuple[str, int]]:
    return [(hit.document_id, hit.ordinal) for hit in hits]


def scans(conn: Connection, statement: str, parameters: list[Any]) -> dict[str, tuple[int, int]]:
    """How a statement read the generations' tables: (scans of the table, scans by an index), by table."""
    before = (
        "SELECT relname, seq_scan, coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables "
        "WHERE relname ~ '^generation_[0-9]'"
    )
    with conn.transaction():
        started = {name: (seq, idx) for name, seq, idx in conn.execute(before)}
        conn.execute(statement, parameters).fetchall()
        return {
            name: (seq - started.get(name, (0, 0))[0], idx - started.get(name, (0, 0))[1])
            for name, seq, idx in conn.execute(before)
            if (seq, idx) != started.get(name, (0, 0))
        }


def literal(vector: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    return vector_literal(vector)


def test_the_nearest_chunks_come_first_from_all_sources(served: Connection) -> None:
    hits = search(served, query(), 10)

    assert places(hits) == nearest(itertools.chain(FIRST.all_rows(), SECOND.all_rows()), query(), 10)
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)


def test_a_hit_has_the_documented_fields(served: Connection) -> None:
    sent = FIRST.rows_of(0)[7]
    assert sent.v1 is not None

    (hit,) = search(served, sent.v1, 1)

    assert hit == Hit("first", "doc-1", 3, "edition 0, chunk 7", {"rare": False, "team": "7"}, hit.distance)
    assert hit.distance == pytest.approx(0, abs=1e-6)


def test_a_source_narrows_the_search(served: Connection) -> None:
    hits = search(served, query(), 10, source="second")

    assert {hit.source for hit in hits} == {"second"}
    assert places(hits) == nearest(SECOND.all_rows(), query(), 10)


def test_any_client_can_call_it_by_name(served: Connection) -> None:
    cursor = served.cursor(row_factory=dict_row)
    found = cursor.execute(
        """SELECT * FROM search(query => %s, k => 3, filter => '{"team": "4"}')""", [literal(query())]
    ).fetchall()

    assert len(found) == 3
    assert list(found[0]) == ["source", "document_id", "ordinal", "content", "metadata", "distance", "chunk_id"]


def test_search_is_answered_by_the_index_of_every_partition(served: Connection) -> None:
    statement = "SELECT * FROM search(%s, 10)"
    assert scans(served, statement, [literal(query())]) == {"generation_1": (0, 1), "generation_2": (0, 1)}


def test_search_in_a_source_is_answered_by_its_index_alone(served: Connection) -> None:
    statement = "SELECT * FROM search(%s, 10, 'second')"
    assert scans(served, statement, [literal(query())]) == {"generation_2": (0, 1)}


def test_the_view_is_answered_by_the_indexes(served: Connection) -> None:
    statement = "SELECT document_id FROM live_chunks ORDER BY embedding <=> %s::vector LIMIT 10"

    assert scans(served, statement, [literal(query())]) == {"generation_1": (0, 1), "generation_2": (0, 1)}
    for_llamaindex = """
        SELECT id, node_id, text, metadata_, embedding <=> %s::vector AS distance
        FROM data_live_chunks ORDER BY distance LIMIT 10
    """
    assert scans(served, for_llamaindex, [literal(query())]) == {"generation_1": (0, 1), "generation_2": (0, 1)}
    plan = "\n".join(line for (line,) in served.execute("EXPLAIN " + statement, [literal(query())]))
    assert "Merge Append" in plan
    assert "Index Scan using generation_1_v1" in plan
    assert "Index Scan using generation_2_v1" in plan


def test_the_view_in_a_source_is_answered_by_its_index_alone(served: Connection) -> None:
    statement = "SELECT document_id FROM live_chunks WHERE source = 'second' ORDER BY embedding <=> %s::vector LIMIT 10"
    plan = "\n".join(line for (line,) in served.execute("EXPLAIN " + statement, [literal(query())]))
    assert "Index Scan using generation_2_v1" in plan
    assert "Append" not in plan
    assert "generation_1" not in plan


@pytest.mark.parametrize(
    ("source", "expected"),
    [(None, ["Merge Append", "using generation_1_v1", "using generation_2_v1"]), ("second", ["using generation_2_v1"])],
)
def test_the_query_that_search_makes_is_planned_by_the_indexes(
    served: Connection, source: str | None, expected: list[str]
) -> None:
    """Read from the plan of what `search_terms` gives it, which EXPLAIN does not show from inside a function."""
    with served.transaction():
        terms = served.execute(
            "SELECT distance, conditions FROM embedding_assets.search_terms(%s, 10, %s, '{}')",
            [literal(query()), source],
        ).fetchone()
        assert terms is not None
        distance, conditions = (part.replace("$1", "%(query)s").replace("$3", "%(source)s") for part in terms)
        asked = f"SELECT content FROM embedding_assets.chunks WHERE {conditions} ORDER BY {distance} LIMIT 10"
        lines = served.execute(f"EXPLAIN {asked}".encode(), {"query": literal(query()), "source": source})
        plan = "\n".join(line for (line,) in lines)
    assert [
        part for part in ("Merge Append", "using generation_1_v1", "using generation_2_v1") if part in plan
    ] == expected
    assert "Seq Scan" not in plan


@pytest.mark.parametrize("wanted", [{"rare": True}, {"team": "3"}, {"team": "3", "rare": False}, {}])
@pytest.mark.parametrize("source", [None, "first"])
def test_a_filter_never_leaves_too_few(served: Connection, wanted: dict[str, Any], source: str | None) -> None:
    """One row in a hundred, one in ten, all: as many as there are, up to k, and the right ones."""

    def fits(r: Row) -> bool:
        rare, team = r.metadata.startswith('{"rare": true'), r.metadata[-3]
        return {"rare": rare, "team": team} | wanted == {"rare": rare, "team": team}

    rows = FIRST.all_rows() + (SECOND.all_rows() if source is None else [])
    expected = nearest(filter(fits, rows), query(), 20)

    found = places(search(served, query(), 20, source, wanted))

    assert len(found) == len(expected) == min(20, sum(map(fits, rows)))
    assert len(set(found) & set(expected)) >= 0.95 * len(expected)


def test_more_than_there_are_returns_all_there_are(served: Connection) -> None:
    assert len(search(served, query(), 10_000)) == 2_400
    assert search(served, query(), 5, source="nowhere") == []
    assert search(served, query(), 5, filter={"team": "nobody's"}) == []


def test_equal_distances_come_in_the_order_of_their_places(served: Connection) -> None:
    hits = search(served, query(), 2_400)
    ties = [
        [(h.source, h.document_id, h.ordinal) for h in group]
        for _, group in itertools.groupby(hits, lambda h: h.distance)
    ]
    assert all(tie == sorted(tie) for tie in ties)


def test_a_query_of_another_dimension_is_told_the_live_models(served: Connection) -> None:
    with pytest.raises(PermanentError, match=r"the query has 3 dimensions, the live model toy-8 \(v1\) has 8"):
        search(served, [1.0, 0.0, 0.0], 5)


@pytest.mark.parametrize("k", [0, -1, 10_001, 2_147_483_647, -2_147_483_648])
def test_k_has_bounds(served: Connection, k: int) -> None:
    with pytest.raises(PermanentError, match=rf"k from 1 to 10000, not {k}\n.*use the view live_chunks"):
        search(served, query(), k)
    assert len(search(served, query(), 10_000)) == 2_400


def test_the_callers_own_settings_are_left_alone(served: Connection) -> None:
    with served.transaction():
        served.execute("SET LOCAL hnsw.ef_search = 77")
        search(served, query(), 500)
        assert served.execute("SHOW hnsw.ef_search").fetchone() == ("77",)
        assert served.execute("SHOW hnsw.iterative_scan").fetchone() == ("off",)


@pytest.mark.parametrize(
    ("stored", "k", "filter", "sources", "used"),
    [
        (20, 10, "{}", ["handbook"], 20),
        (20, 50, "{}", ["handbook"], 50),
        (120, 10, "{}", ["handbook"], 120),
        (20, 10, '{"team": "1"}', ["handbook"], 200),
        (20, 10, "{}", ["handbook", "tickets"], 100),
        (400, 10, '{"team": "1"}', ["handbook", "tickets"], 400),
    ],
)
def test_a_search_uses_the_stored_ef_search_or_what_k_a_filter_and_other_sources_need(
    region: Connection, stored: int, k: int, filter: str, sources: list[str], used: int
) -> None:
    for source in sources:
        Toy(source, shards=1, rows=3).publish_to(region)
    with region.transaction():
        region.execute("UPDATE embedding_assets.models SET ef_search = %s", [stored])

        region.execute("SELECT embedding_assets.search_terms(%s::vector, %s, NULL, %s)", [literal(query()), k, filter])

        assert region.execute("SHOW hnsw.ef_search").fetchone() == (str(used),)


def test_a_database_without_a_live_model_says_so(database: str) -> None:
    with connect(database) as conn, pytest.raises(PermanentError, match="no live model yet"):
        search(conn, query(), 5)


@pytest.mark.parametrize(("dimensions", "halfvec"), [(2_001, []), (16, ["v2"])])
def test_a_halfvec_model_is_searched_by_its_index(database: str, dimensions: int, halfvec: list[str]) -> None:
    toy = Toy(rows=60, d2=dimensions)
    with connect(database) as conn:
        bind(conn, d2=dimensions, live="v2", halfvec=halfvec)
        toy.publish_to(conn)
        vector = toy.rows_of(1)[5].v2
        assert vector is not None
        conn.execute("SET enable_seqscan = off")  # a table so small is searched without it

        hits = search(conn, vector, 3)

        assert places(hits)[0] == (toy.rows_of(1)[5].document_id, toy.rows_of(1)[5].ordinal)
        assert scans(conn, "SELECT * FROM search(%s, 3)", [literal(vector)]) == {"generation_1": (0, 1)}


@pytest.mark.parametrize("dimensions", [16, 2_001])
def test_the_view_has_a_halfvec_column_that_a_halfvec_index_serves(database: str, dimensions: int) -> None:
    toy = Toy(rows=60, d2=dimensions)
    with connect(database) as conn:
        bind(conn, d2=dimensions, live="v2", halfvec=["v2"])
        toy.publish_to(conn)
        conn.execute("SET enable_seqscan = off")
        vector = toy.rows_of(1)[5].v2
        assert vector is not None
        statement = "SELECT document_id, ordinal FROM live_chunks ORDER BY embedding_halfvec <=> %s::halfvec LIMIT 10"

        nearest = conn.execute(statement.encode(), [literal(vector)]).fetchall()

        assert nearest[0] == (toy.rows_of(1)[5].document_id, toy.rows_of(1)[5].ordinal)
        assert scans(conn, statement, [literal(vector)]) == {"generation_1": (0, 1)}


def test_the_status_tells_what_each_source_serves(served: Connection) -> None:
    first, second = region_status(served)

    assert (first.source, first.rows, first.target_root, first.live_model) == ("first", 1_600, FIRST.root, "toy-8")
    assert first.ledger == {ref.shard: ref.key for ref in FIRST.refs}
    assert {"generation_2_pkey", "generation_2_v1", "generation_2_v2"} <= {found.name for found in second.indexes}
    assert all(found.valid for found in second.indexes)
    assert all(found.size_bytes > 0 for found in first.indexes)


def test_comparing_names_the_shard_that_differs(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    assert compare(region, toy.name, toy.refs, toy.read) == []

    region.execute("UPDATE embedding_assets.chunks SET content = content || ' ' WHERE shard = 1 AND ordinal = 0")
    region.execute("DELETE FROM embedding_assets.chunks WHERE shard = 2 AND ordinal = 1")
    region.execute("DROP INDEX embedding_assets.generation_1_v2")

    found = [str(difference) for difference in compare(region, toy.name, toy.refs, toy.read)]
    assert found[0].startswith("shard 1: content differs: fingerprint ")
    assert found[1:] == [
        "shard 2: 30 rows in the table, 40 in the snapshot",
        "index generation_1_v2 is missing or invalid",
    ]
    assert "shard 2: 30 rows in the table, and not in the snapshot" in map(
        str, compare(region, toy.name, toy.refs[:2], toy.read)
    )


def test_comparing_a_source_that_is_not_served_says_so(region: Connection) -> None:
    assert [d.what for d in compare(region, "nowhere", [], Toy().read)] == [
        "has no published generation in this region"
    ]


def test_a_reader_in_a_read_only_transaction_may_search(served: Connection, search_database: str) -> None:
    with psycopg.connect(search_database) as conn:
        conn.read_only = True
        assert len(conn.execute("SELECT * FROM search(%s, 3)", [literal(query())]).fetchall()) == 3


def test_the_view_gives_k_rows_where_all_the_nearest_entries_of_the_index_are_dead(database: str) -> None:
    migrations.migrate(database)
    toy = Toy(shards=1, rows=1_500)
    with connect(database) as conn:
        bind(conn)
        toy.publish_to(conn)
        generation = published_generation(conn, toy.name)
        assert generation is not None
        nudged = sql.SQL(
            "UPDATE {} SET embedding_v1 = l2_normalize(embedding_v1 + %s::vector) "
            "WHERE ordinal = %s AND document_id = %s"
        ).format(generation_table(generation.id))
        chosen = toy.rows_of(0)[0]
        assert chosen.v1 is not None
        asked = literal(chosen.v1)
        nudge = np.zeros_like(chosen.v1)
        nudge[0] = 1e-4
        for _ in range(80):
            conn.execute(nudged, [literal(nudge), chosen.ordinal, chosen.document_id])

    def found(iterative_scan: str | None) -> int:
        with psycopg.connect(database, autocommit=True) as application:
            application.execute("SET enable_seqscan = off")
            if iterative_scan is not None:
                application.execute(sql.SQL("SET hnsw.iterative_scan = {}").format(iterative_scan))
            nearest_ten = "SELECT FROM live_chunks ORDER BY embedding <=> %s::vector LIMIT 10"
            return len(application.execute(nearest_ten, [asked]).fetchall())

    assert found("off") < 10  # what pgvector does by itself
    assert found(None) == 10
