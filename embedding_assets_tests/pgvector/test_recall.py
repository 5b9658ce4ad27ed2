"""How well an index finds: what counts, and what is remembered of it."""

from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.indexes import exact, measurement, recall
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.indexes.measurement import Measured
from embedding_assets.pgvector.indexes.recall import smallest_ef_search
from embedding_assets.pgvector.loading.generations import load_generation
from embedding_assets.pgvector.options import TARGET_RECALL, Hnsw
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets_tests.support.toy import Toy, bind, row

curves = st.lists(st.floats(0, 1), min_size=1, max_size=7).map(
    lambda recalls: [Measured(ef, found, 1.0, 2.0) for ef, found in zip(recall.EF_SEARCH, recalls, strict=False)]
)


@given(curves, st.floats(0, 1))
def test_the_ef_search_chosen_is_the_smallest_that_reaches_the_target_or_else_the_largest(
    curve: list[Measured], target: float
) -> None:
    chosen = next(point for point in curve if point.ef_search == smallest_ef_search(curve, target))

    assert all(point.recall < target for point in curve if point.ef_search < chosen.ef_search)
    assert chosen.recall >= target or chosen == curve[-1]


@pytest.mark.slow
def test_another_target_takes_another_ef_search_from_the_curve_that_was_measured(region: Connection) -> None:
    bind(region, d1=64)
    toy = Toy(rows=500, d1=64)
    load_generation(region, toy.name, toy.root, toy.refs, toy.read)
    low = build_indexes(region, toy.name, toy.root, target_recall=0.5)["v1"]

    high = build_indexes(region, toy.name, toy.root, target_recall=0.999)["v1"]

    assert high.curve == low.curve, "nothing was measured again"
    assert low.ef_search == 10 < high.ef_search
    stored = region.execute("SELECT ef_search FROM embedding_assets.recall WHERE slot = 'v1'").fetchone()
    assert stored == (high.ef_search,)


def test_a_measurement_belongs_to_the_index_that_was_measured(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    generation = published_generation(region, toy.name)
    assert generation is not None
    before = measurement.stored_measurement(region, generation, "v1")

    region.execute("REINDEX INDEX CONCURRENTLY embedding_assets.generation_1_v1")

    assert before is not None
    assert measurement.stored_measurement(region, generation, "v1") is None


@pytest.mark.slow
def test_measuring_an_index_again_remembers_how_it_was_when_it_was_built(region: Connection) -> None:
    toy = Toy(rows=400)
    generation = toy.publish_to(region)
    built = measurement.stored_measurement(region, generation, "v1")
    region.execute("DELETE FROM embedding_assets.generation_1 WHERE ordinal <> 0")
    region.execute("UPDATE embedding_assets.generations SET rows_changed = 900")

    recall.measure(region, generation, "v1", TARGET_RECALL)

    again = measurement.stored_measurement(region, generation, "v1")
    assert built is not None
    assert again is not None
    assert (again.vectors, again.changes_at_measurement) == (300, 900)
    assert (again.built_bytes_per_vector, again.changes_at_build) == (built.built_bytes_per_vector, 0)


def test_a_poor_index_is_measured_as_poor(region: Connection) -> None:
    bind(region, d1=64)
    toy = Toy(rows=300, d1=64)
    load_generation(region, toy.name, toy.root, toy.refs, toy.read)
    healthy = build_indexes(region, toy.name, toy.root)["v1"]

    poor = build_indexes(region, toy.name, toy.root, {"v1": Hnsw(m=2, ef_construction=4), "v2": Hnsw()})["v1"]

    assert poor.curve[0].recall < healthy.curve[0].recall - 0.2


OWN, A, B, C, D = (UUID(int=n) for n in range(5))


@pytest.mark.parametrize(
    ("exact", "answer", "counted"),
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
    exact: list[tuple[UUID, float]], answer: list[tuple[UUID, float]], counted: tuple[int, int]
) -> None:
    assert recall.recalled(OWN, exact, answer) == counted


def test_queries_of_the_measurement_are_as_far_from_their_rows_as_questions_are_and_the_same_each_time() -> None:
    vectors = np.stack([row(n, 384).v1 for n in range(50)])  # type: ignore[misc]

    queries = recall._questions(vectors)

    cosines = (queries * vectors).sum(axis=1) / np.linalg.norm(queries, axis=1)
    assert cosines.mean() == pytest.approx(0.555, abs=0.02)
    assert 0.4 < cosines.min() < cosines.max() < 0.7
    np.testing.assert_array_equal(queries, recall._questions(vectors))


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
@pytest.mark.parametrize("block_rows", [7, 8_192])
def test_the_exact_neighbours_are_those_that_postgres_finds_and_as_far(
    region: Connection, monkeypatch: pytest.MonkeyPatch, kind: str, block_rows: int
) -> None:
    monkeypatch.setattr(exact, "_BLOCK_ROWS", block_rows)
    bind(region, d1=64, halfvec=["v1"] if kind == "halfvec" else [])
    toy = Toy(rows=60, d1=64)
    generation = load_generation(region, toy.name, toy.root, toy.refs, toy.read).generation
    region.execute("UPDATE embedding_assets.generation_1 SET embedding_v1 = NULL WHERE ordinal = 1")
    queries = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)

    found = exact.nearest(region, generation, "v1", queries, 10)

    for query, neighbours in zip(queries, found, strict=True):
        wanted = region.execute(
            f"SELECT chunk_id, embedding_v1 <=> %(query)s::{kind} FROM embedding_assets.generation_1 "
            f"WHERE embedding_v1 IS NOT NULL ORDER BY embedding_v1 <=> %(query)s::{kind} LIMIT 10",
            {"query": vector_literal(query)},
        ).fetchall()
        assert [one.chunk_id for one in neighbours] == [chunk_id for chunk_id, _ in wanted]
        np.testing.assert_allclose([one.distance for one in neighbours], [far for _, far in wanted], atol=1e-6)
