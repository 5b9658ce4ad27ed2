"""Indexes of a generation: built once, valid, and measured."""

from uuid import UUID

import numpy as np
import pytest

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector import index
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.generations import load_generation
from embedding_assets.pgvector.index import build_indexes
from embedding_assets.pgvector.publish import publish
from embedding_assets.pgvector.schema import bound_models
from embedding_assets.pgvector.search import region_status
from embedding_assets.pgvector.shards import ShardRef
from embedding_assets_tests.pgvector.toy import Toy, bind, row, shard_rows


def load(conn: Connection, toy: Toy) -> None:
    load_generation(conn, toy.name, toy.root, toy.refs, toy.read)


def test_a_loaded_generation_gets_a_key_and_a_measured_index_for_each_model(region: Connection) -> None:
    toy = Toy(rows=300)
    load(region, toy)

    reports = build_indexes(region, toy.name, toy.root)

    assert set(reports) == {"v1", "v2"}
    for report in reports.values():
        assert report.vectors == 900
        assert report.build_seconds > 0
        assert [point.ef_search for point in report.curve] == [10, 20, 40, 80, 120, 200, 400]
        assert all(0 < point.p50_ms <= point.p95_ms for point in report.curve)
        assert report.recall is not None
        assert report.recall >= index.TARGET_RECALL


def test_the_ef_search_stored_is_the_smallest_that_reaches_the_target(region: Connection) -> None:
    """Random vectors of 64 dimensions have no structure that helps: a narrow search misses some."""
    toy = Toy(rows=700, d1=64)
    bind(region, d1=64)
    load(region, toy)

    report = build_indexes(region, toy.name, toy.root)["v1"]

    assert report.curve[0].recall < index.TARGET_RECALL, "or the test shows nothing"
    below = [point for point in report.curve if point.ef_search < report.ef_search]
    assert all(point.recall < index.TARGET_RECALL for point in below)
    assert report.recall is not None
    assert report.recall >= index.TARGET_RECALL
    publish(region, toy.name, toy.root, toy.refs)
    assert bound_models(region)["v1"].ef_search == report.ef_search


def test_search_uses_the_largest_ef_search_that_a_published_source_needs(region: Connection) -> None:
    easy, hard = Toy("easy", rows=10), Toy("hard", rows=10)
    for toy, ef_search in ((easy, 20), (hard, 200)):
        load(region, toy)
        build_indexes(region, toy.name, toy.root)
        region.execute(
            "UPDATE embedding_assets.recall SET ef_search = %s FROM embedding_assets.generations "
            "WHERE id = generation AND source = %s",
            [ef_search, toy.name],
        )
        publish(region, toy.name, toy.root, toy.refs)
    assert bound_models(region)["v1"].ef_search == 200

    hard.edited().publish_to(region)

    assert bound_models(region)["v1"].ef_search == 20


def test_a_poor_index_is_measured_as_poor(region: Connection) -> None:
    bind(region, d1=64)
    toy = Toy(rows=300, d1=64)
    load(region, toy)
    healthy = build_indexes(region, toy.name, toy.root)["v1"]

    region.execute("DELETE FROM embedding_assets.recall")
    region.execute("DROP INDEX embedding_assets.generation_1_v1")
    region.execute(
        "CREATE INDEX generation_1_v1 ON embedding_assets.generation_1 USING hnsw (embedding_v1 vector_cosine_ops) "
        "WITH (m = 2, ef_construction = 4)"
    )
    poor = build_indexes(region, toy.name, toy.root)["v1"]

    assert poor.curve[0].recall < healthy.curve[0].recall - 0.2


def test_building_again_builds_and_measures_nothing(region: Connection) -> None:
    toy = Toy()
    load(region, toy)
    first = build_indexes(region, toy.name, toy.root)

    again = build_indexes(region, toy.name, toy.root)

    assert [report.build_seconds for report in again.values()] == [0, 0]
    assert [report.curve for report in again.values()] == [report.curve for report in first.values()]


def test_an_invalid_index_is_dropped_and_built_anew(region: Connection) -> None:
    toy = Toy()
    load(region, toy)
    build_indexes(region, toy.name, toy.root)
    region.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'embedding_assets.generation_1_v2'::regclass"
    )

    reports = build_indexes(region, toy.name, toy.root)

    assert (reports["v1"].build_seconds, reports["v2"].build_seconds > 0) == (0, True)
    publish(region, toy.name, toy.root, toy.refs)
    assert all(found.valid for status in region_status(region) for found in status.indexes)


def test_an_index_that_a_published_generation_lost_is_built_anew(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    region.execute("DROP INDEX embedding_assets.generation_1_v1")

    build_indexes(region, toy.name, toy.root)

    assert [found.name for found in region_status(region)[0].indexes] == [
        "generation_1_pkey",
        "generation_1_v1",
        "generation_1_v2",
    ]


def test_equal_texts_are_no_misses(region: Connection) -> None:
    """Forty rows share one vector: which ten of them are found says nothing about the index."""
    same = row(0).v1
    refs = [ShardRef(0, "a" * 64, 60)]
    rows = [row(n, v1=same if n < 40 else row(n).v1) for n in range(60)]
    load_generation(region, "equal", "root", refs, lambda _: shard_rows(rows))

    report = build_indexes(region, "equal", "root")["v1"]

    assert report.recall == 1


OWN, A, B, C, D = (UUID(int=n) for n in range(5))


@pytest.mark.parametrize(
    ("exact", "answer", "recall"),
    [
        ([(OWN, 0.0), (A, 0.1), (B, 0.2)], [(OWN, 0.0), (A, 0.1), (B, 0.2)], (2, 2)),
        ([(OWN, 0.0), (A, 0.1), (B, 0.2)], [(OWN, 0.0), (A, 0.1), (C, 0.3)], (1, 2)),
        ([(OWN, 0.0), (A, 0.1), (B, 0.2)], [(A, 0.1), (B, 0.2), (C, 0.3)], (2, 2)),
        ([(A, 0.1), (B, 0.2)], [(A, 0.1), (C, 0.3)], (1, 2)),
        # C is as near as B, and OWN as A.
        ([(OWN, 0.0), (A, 0.1), (B, 0.2)], [(OWN, 0.0), (A, 0.1), (C, 0.2)], (2, 2)),
        ([(A, 0.0), (B, 0.0)], [(OWN, 0.0), (C, 0.0)], (1, 1)),
        ([(OWN, 0.0), (B, 0.0)], [(C, 0.0), (D, 0.0)], (1, 1)),
        ([(A, 0.1), (B, 0.2)], [], (0, 2)),
    ],
)
def test_recall_counts_neighbours_by_distance_and_never_the_querys_own_row(
    exact: list[tuple[UUID, float]], answer: list[tuple[UUID, float]], recall: tuple[int, int]
) -> None:
    assert index.recalled(OWN, exact, answer) == recall


@pytest.mark.parametrize("vectors", [0, 1, 2])
def test_a_source_of_hardly_any_vectors_is_no_error(region: Connection, vectors: int) -> None:
    refs = [ShardRef(0, "a" * 64, 3)]
    rows = [row(n) if n < vectors else row(n, v1=None, v2=None) for n in range(3)]
    load_generation(region, "few", "root", refs, lambda _: shard_rows(rows))

    report = build_indexes(region, "few", "root")["v1"]

    assert report.recall == (1 if vectors == 2 else None)
    assert report.ef_search == 10


def test_halfvec_models_are_indexed_too(region: Connection) -> None:
    bind(region, d2=2001)
    toy = Toy(rows=10, d2=2001)

    toy.publish_to(region)

    definition = region.execute("SELECT pg_get_indexdef('embedding_assets.generation_1_v2'::regclass)").fetchone()
    assert definition is not None
    assert "halfvec_cosine_ops" in definition[0]


def test_a_build_gets_memory_for_its_graph_and_says_so(
    region: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "embedding_assets")
    monkeypatch.setattr(index, "_LEAST_MEMORY", 1 << 20)
    notices: list[str] = []
    region.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    toy = Toy(rows=1_500, shards=1)
    load(region, toy)

    report = build_indexes(region, toy.name, toy.root)["v1"]

    assert report.granted_memory_bytes == report.estimated_memory_bytes == index.graph_bytes(1_500, 8)
    assert [notice for notice in notices if "no longer fits" in notice] == []
    assert "generation_1_v1: 1500 vectors in" in caplog.text


def test_a_graph_beyond_the_bound_is_built_with_what_is_granted(
    region: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_LEAST_MEMORY", 1 << 20)
    monkeypatch.setattr(index, "_MOST_MEMORY", 1 << 20)
    toy = Toy(rows=1_500, shards=1)
    load(region, toy)

    assert build_indexes(region, toy.name, toy.root)["v1"].granted_memory_bytes == 1 << 20
    assert "Split the source" in caplog.text


def test_queries_of_the_measurement_are_near_their_rows_and_the_same_each_time() -> None:
    vectors = np.stack([row(n).v1 for n in range(50)])  # type: ignore[misc]

    near = index._near(vectors)

    cosines = (near * vectors).sum(axis=1) / np.linalg.norm(near, axis=1)
    assert cosines.min() > 0.9
    assert cosines.max() < 1
    np.testing.assert_array_equal(near, index._near(vectors))


def test_indexing_what_was_never_loaded_says_what_to_do(region: Connection) -> None:
    with pytest.raises(PermanentError, match="Materialize pgvector_table for this partition again"):
        build_indexes(region, "nowhere", "root")
