"""How well an index finds: what counts, and what is remembered of it."""

from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.indexes import exact, measurement, recall
from embedding_assets.pgvector.indexes.index import IndexReport, build_indexes
from embedding_assets.pgvector.indexes.measurement import Measured
from embedding_assets.pgvector.indexes.recall import QUESTIONS, smallest_ef_search
from embedding_assets.pgvector.indexes.sequential import shows_less_than
from embedding_assets.pgvector.options import TARGET_RECALL, Hnsw
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.snapshots.slots import Slot
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Toy, bind, row

points = st.tuples(st.floats(0, 1), st.sampled_from([7, QUESTIONS]))
curves = st.lists(points, min_size=1, max_size=9).map(
    lambda found: [
        Measured(ef_search, share, 1.0, 2.0, questions)
        for ef_search, (share, questions) in zip(
            recall.EF_SEARCH, [*found[:-1], (found[-1][0], QUESTIONS)], strict=False
        )
    ]
)
"""As they are measured: the last one has all the questions."""


@given(curves, st.floats(0, 1))
def test_the_ef_search_chosen_is_the_smallest_that_reaches_the_target_or_else_the_largest(
    curve: list[Measured], target: float
) -> None:
    chosen = next(point for point in curve if point.ef_search == smallest_ef_search(curve, target))

    whole = [point for point in curve if point.questions == QUESTIONS]
    assert all(point.recall < target for point in whole if point.ef_search < chosen.ef_search)
    assert chosen.recall >= target or chosen == curve[-1]


@given(curves, st.floats(0, 1))
def test_a_curve_answers_for_a_target_unless_more_questions_could_choose_another_ef_search(
    curve: list[Measured], target: float
) -> None:
    could_do = [point for point in curve if point.questions < QUESTIONS and point.recall >= target]
    reached = [point for point in curve if point.questions == QUESTIONS and point.recall >= target]

    assert recall.answers(curve, target) == (not could_do and bool(reached or len(curve) == len(recall.EF_SEARCH)))


@pytest.mark.parametrize(("target", "mean"), [(0.98, 0.98), (0.98, 0.99), (0.9, 0.9), (0.5, 0.6)])
def test_an_index_that_reaches_the_target_is_left_early_once_in_twenty_times_at_most(
    target: float, mean: float
) -> None:
    rng = np.random.default_rng(20)

    assert sum(asked_until_left(rng, target, mean) < QUESTIONS for _ in range(400)) <= 20


@pytest.mark.parametrize(("mean", "most"), [(0.6, 3), (0.9, 10), (0.95, 30)])
def test_a_few_questions_show_an_index_that_is_far_below_the_target(mean: float, most: int) -> None:
    rng = np.random.default_rng(20)

    assert np.mean([asked_until_left(rng, 0.98, mean) for _ in range(200)]) <= most


def asked_until_left(rng: np.random.Generator, target: float, mean: float) -> int:
    """Questions asked of an index that finds this share of ten neighbours; all of them where it was not left."""
    shares = list(rng.binomial(10, mean, QUESTIONS) / 10)
    return next((n for n in range(1, QUESTIONS) if shows_less_than(target, shares[:n])), QUESTIONS)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_target_of_everything_is_missed_by_one_neighbour(shares: list[float]) -> None:
    assert shows_less_than(1, shares) == (min(shares) < 1)


def test_another_target_measures_again_only_what_the_curve_does_not_tell(region: Connection) -> None:
    bind(region, d1=64)
    toy = Toy(rows=300, d1=64)
    load_generation(region, toy.name, toy.root, toy.refs, toy.read)

    def measured(target: float) -> IndexReport:
        report = build_indexes(region, toy.name, toy.root, target_recall=target)["v1"]
        stored = region.execute("SELECT ef_search FROM embedding_assets.recall WHERE slot = 'v1'").fetchone()
        assert stored == (report.ef_search,)
        return report

    low = measured(0.5)
    assert low.ef_search == 10

    high = measured(0.999)
    assert high.ef_search > 10, "a target that the curve does not reach"
    assert high.curve[0].questions < QUESTIONS, "or the test shows nothing"

    back = measured(high.curve[-1].recall)
    assert (back.curve, back.ef_search) == (high.curve, high.ef_search), "nothing was measured again"

    assert measured(0.5).ef_search == 10, "one that was left early might do now"


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

    hnsw: dict[Slot, Hnsw] = {"v1": Hnsw(m=2, ef_construction=4), "v2": Hnsw()}
    poor = build_indexes(region, toy.name, toy.root, hnsw, target_recall=0.01)["v1"]

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

    vectors, found = exact.nearest(region, generation, "v1", queries, 10)

    assert region.execute("SELECT count(embedding_v1) FROM embedding_assets.generation_1").fetchone() == (vectors,)

    for query, neighbours in zip(queries, found, strict=True):
        wanted = region.execute(
            f"SELECT chunk_id, embedding_v1 <=> %(query)s::{kind} FROM embedding_assets.generation_1 "
            f"WHERE embedding_v1 IS NOT NULL ORDER BY embedding_v1 <=> %(query)s::{kind} LIMIT 10",
            {"query": vector_literal(query)},
        ).fetchall()
        assert [one.chunk_id for one in neighbours] == [chunk_id for chunk_id, _ in wanted]
        np.testing.assert_allclose([one.distance for one in neighbours], [far for _, far in wanted], atol=1e-6)
