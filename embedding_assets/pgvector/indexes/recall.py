"""How well an HNSW index finds: recall@10 against exact search, by ef_search; measured once a build, and on drift.

The smallest `ef_search` that will do is looked for from below. One that plainly does not is left as soon as that is
known (`sequential`), and the one that does is asked all the questions: the recall that people are told of has the whole
sample behind it. All ways up to an `ef_search` of 400 with 100 questions each took .28 of the CPU of a build of 5,000
vectors.
"""

import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import numpy as np
import numpy.typing as npt
from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.indexes.exact import Neighbour, nearest
from embedding_assets.pgvector.indexes.measurement import Measured, Measurement, stored_measurement
from embedding_assets.pgvector.indexes.sequential import shows_less_than
from embedding_assets.pgvector.locks import transaction
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.schema.generations import Generation, column_type
from embedding_assets.pgvector.schema.names import generation_index, generation_table
from embedding_assets.snapshots.slots import Slot, column_of

EF_SEARCH: Final = (10, 20, 40, 80, 120, 200, 400, 600, 1000)
"""From below; 1,000 is the most that pgvector takes."""

NEIGHBOURS: Final = 10
QUESTIONS: Final = 100
"""Of a sample: 1,000 neighbours asked for, a standard error of .005 at a recall of .98."""

_NOISE: Final = 1.5
"""Length of the noise added to a stored unit vector: the query stands at a cosine of .55 to its row, as short questions
do to the nearest text. 177 one-line summaries and 200 headings stood at .56 and .60 to the nearest of 11,332 texts of
500 characters (wordllama, 256 dimensions), and found .85 and .88 of their ten nearest with an ef_search of 10, .98 and
.96 with 40, .99 and .98 with 80; these queries found .84, .96 and .98. Noise of 0.3 found .99 with 10 already.
"""

_SEED: Final = 20
_SAME_DISTANCE: Final = 1e-6  # float32 distances of equal vectors


def measure(conn: Connection, generation: Generation, slot: Slot, target: float) -> Measurement:
    """Measure a slot's index, and store it with the smallest `ef_search` that reaches the target.

    Where none does that is the largest measured. Searches use it after `put_to_use`, or publication.
    """
    vectors, curve = measure_recall(conn, generation, slot, target)
    conn.execute(
        """
        INSERT INTO embedding_assets.recall AS stored (
            generation, slot, vectors, ef_search, curve,
            index_id, built_bytes_per_vector, changes_at_build, changes_at_measurement, measured_at
        )
        SELECT generations.id, %(slot)s, %(vectors)s, %(ef_search)s, %(curve)s, index_id,
               pg_relation_size(index_id)::double precision / greatest(%(vectors)s, 1), rows_changed, rows_changed,
               now()
        FROM embedding_assets.generations, to_regclass(%(index)s) AS index_id
        WHERE generations.id = %(generation)s
        ON CONFLICT (generation, slot) DO UPDATE SET
            vectors = excluded.vectors, ef_search = excluded.ef_search, curve = excluded.curve,
            index_id = excluded.index_id, changes_at_measurement = excluded.changes_at_measurement,
            measured_at = excluded.measured_at,
            built_bytes_per_vector = CASE WHEN stored.index_id = excluded.index_id
                THEN stored.built_bytes_per_vector ELSE excluded.built_bytes_per_vector END,
            changes_at_build = CASE WHEN stored.index_id = excluded.index_id
                THEN stored.changes_at_build ELSE excluded.changes_at_build END
        """,
        {
            "vectors": vectors,
            "generation": generation.id,
            "slot": slot,
            "index": generation_index(generation.id, slot).as_string(conn),
            "ef_search": smallest_ef_search(curve, target),
            "curve": Jsonb(curve),
        },
    )
    measurement = stored_measurement(conn, generation, slot)
    assert measurement is not None
    return measurement


def smallest_ef_search(curve: Sequence[Measured], target: float) -> int:
    """The smallest ef_search of a curve that reaches the target; the largest where none does."""
    reached = [point.ef_search for point in curve if point.recall >= target and point.questions == _most(curve)]
    return reached[0] if reached else curve[-1].ef_search if curve else EF_SEARCH[0]


def answers(curve: Sequence[Measured], target: float) -> bool:
    """Whether a curve, measured for this target or another, tells the smallest ef_search that reaches this one."""
    if not curve:  # fewer than two vectors: nothing to measure
        return True
    complete = [point for point in curve if point.questions == _most(curve)]
    left_early = [point for point in curve if point not in complete]
    return all(point.recall < target for point in left_early) and (
        any(point.recall >= target for point in complete) or curve[-1].ef_search == EF_SEARCH[-1]
    )


def _most(curve: Sequence[Measured]) -> int:
    return max(point.questions for point in curve)


def settled(
    conn: Connection, generation: Generation, slot: Slot, measurement: Measurement, target: float
) -> Measurement:
    """What is stored of an index with the `ef_search` that the target asks for; measured again if the curve has none.

    So a target that was changed costs searches only where they can tell something new.
    """
    if not answers(measurement.curve, target):
        return measure(conn, generation, slot, target)
    ef_search = smallest_ef_search(measurement.curve, target)
    if ef_search != measurement.ef_search:
        conn.execute(
            "UPDATE embedding_assets.recall SET ef_search = %s WHERE generation = %s AND slot = %s",
            [ef_search, generation.id, slot],
        )
    return measurement._replace(ef_search=ef_search)


def measure_recall(
    conn: Connection, generation: Generation, slot: Slot, target: float
) -> tuple[int, tuple[Measured, ...]]:
    """The vectors of a slot, and its index's recall curve: recall@10 against exact search, for stored vectors with
    fixed noise added.

    It ends where the target is reached. Empty where there are fewer than two vectors.
    """
    column, table = sql.Identifier(column_of(slot)), generation_table(generation.id)
    # Chunk ids are hashes: the first ones are a random sample, and the same one each time.
    sample = conn.execute(
        sql.SQL(
            "SELECT chunk_id, {0}::vector::real[] FROM {1} WHERE {0} IS NOT NULL ORDER BY chunk_id LIMIT {2}"
        ).format(column, table, QUESTIONS)
    ).fetchall()
    if len(sample) < 2:
        return len(sample), ()
    kind, dimensions = column_type(conn, generation, slot)
    queries = _questions(np.array([vector for _, vector in sample], np.float32))
    literals = [vector_literal(query) for query in queries]
    vectors, exact = nearest(conn, generation, slot, queries, NEIGHBOURS)
    statement = sql.SQL(
        "SELECT chunk_id, {0} <=> %(query)s::{1}({2}) AS distance FROM {3} WHERE {0} IS NOT NULL "
        "ORDER BY {0} <=> %(query)s::{1}({2}) LIMIT {4}"
    ).format(column, sql.Identifier(kind), dimensions, table, NEIGHBOURS)

    def ask(ef_search: int, *, to_the_end: bool) -> Measured:
        conn.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(ef_search))
        seconds, counts = [], []
        for (own, _), query, truth in zip(sample, literals, exact, strict=True):
            began = time.perf_counter()
            answer = [Neighbour(*row) for row in conn.execute(statement, {"query": query}, prepare=True)]
            seconds.append(time.perf_counter() - began)
            counts.append(recalled(own, truth, answer))
            if not to_the_end and shows_less_than(target, [hits / wanted for hits, wanted in counts]):
                break
        hits, wanted = (sum(each) for each in zip(*counts, strict=True))
        p50, p95 = np.percentile(seconds, [50, 95]) * 1000
        return Measured(ef_search, hits / wanted, float(p50), float(p95), len(counts))

    points: list[Measured] = []
    with transaction(conn):
        # Without enable_seqscan = off a small table would not be searched by the index at all. A plan for each query,
        # as search() makes: a cached one would outlive the settings that it was made under.
        conn.execute(
            "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off; "
            "SET LOCAL hnsw.iterative_scan = 'relaxed_order'"
        )
        for ef_search in EF_SEARCH:
            points.append(ask(ef_search, to_the_end=ef_search == EF_SEARCH[-1]))
            if points[-1].questions == len(sample) and points[-1].recall >= target:
                break
    return vectors, tuple(points)


def index_bytes(conn: Connection, generation: Generation, slot: Slot) -> int:
    """The size of a slot's index; 0 where there is none."""
    row = conn.execute(
        "SELECT coalesce(pg_relation_size(to_regclass(%s)), 0)", [generation_index(generation.id, slot).as_string(conn)]
    ).fetchone()
    return int(row[0]) if row else 0


def recalled(own: UUID, exact: Sequence[tuple[UUID, float]], answer: Sequence[tuple[UUID, float]]) -> tuple[int, int]:
    """Of the neighbours that an exact search finds, how many an answer has, and how many count.

    The query's own row does not count on either side: found by any index, it would add a tenth of recall for nothing.
    A neighbour counts by its distance, so that one of several equal texts is as good as another.
    """
    farthest = exact[-1][1] + _SAME_DISTANCE
    wanted = len(exact) - any(chunk_id == own for chunk_id, _ in (*exact, *answer))
    hits = sum(distance <= farthest for chunk_id, distance in answer if chunk_id != own)
    return min(hits, wanted), wanted


def _questions(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Queries ((n, d) float32) about the given unit vectors: the same each time, not unit."""
    noise = np.random.default_rng(_SEED).standard_normal(vectors.shape).astype(np.float32)
    questions: npt.NDArray[np.float32] = vectors + _NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return questions
