"""The indexes of a generation that is not yet published: primary key and HNSW, and how well the latter finds.

Built after the load, on the detached table: inserting under a live HNSW index takes several times longer (FIELD §5).
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, pipeline_errors, source_lock
from embedding_assets.pgvector.generations import Generation, find_generation
from embedding_assets.pgvector.schema import bound_dimensions, generation_index, generation_table
from embedding_assets.pgvector.shards import SLOTS, ColumnType, column_type
from embedding_assets.snapshots.failpoints import failpoint

_log = logging.getLogger(__name__)

M: Final = 16
EF_CONSTRUCTION: Final = 200
"""Published recall@10 of 1 M × 1,536 with these: .966 at ef_search 40, .995 at 200 (pgvector #409)."""

TARGET_RECALL: Final = 0.98
EF_SEARCH: Final = (10, 20, 40, 80, 120, 200, 400)
NEIGHBOURS: Final = 10
_SAMPLES: Final = 100  # 1,000 neighbours asked for: a standard error of 0.005 at a recall of 0.98
_NOISE: Final = 0.3  # length of the noise added to a unit vector: the query stands at a cosine of .96 to its row
_SEED: Final = 20
_SAME_DISTANCE: Final = 1e-6  # float32 distances of equal vectors

_LEAST_MEMORY: Final = 64 << 20
_MOST_MEMORY: Final = 2 << 30
"""Bounds of maintenance_work_mem for a build: the server's usual default, and some 900,000 vectors of 384 dimensions.

Not more than the graph needs: workers' shared memory is set aside whole, and containers have little. Not more than the
bound: a server that swaps is slower than one that builds the rest of a graph on disk.
"""


class Measured(NamedTuple):
    """One point of a recall curve: recall@10 against exact search, and a query's latency as the client sees it."""

    ef_search: int
    recall: float
    p50_ms: float
    p95_ms: float


class IndexReport(NamedTuple):
    """An HNSW index: how it was built (0 s where it was there already), and what was measured on it.

    `curve` is empty where fewer than two vectors leave nothing to measure.
    """

    slot: str
    name: str
    vectors: int
    build_seconds: float
    size_bytes: int
    estimated_memory_bytes: int
    granted_memory_bytes: int
    ef_search: int
    curve: tuple[Measured, ...]

    @property
    def recall(self) -> float | None:
        """recall@10 at `ef_search`; None where nothing could be measured."""
        return next((point.recall for point in self.curve if point.ef_search == self.ef_search), None)


def build_indexes(conn: Connection, source: str, target_root: str) -> dict[str, IndexReport]:
    """Build and measure what a loaded generation lacks: primary key, an HNSW index for each slot, statistics, recall.

    Returns a report for each slot. A build that was killed is made anew, a finished one stays. On a published
    generation only an HNSW index that has gone or is invalid is built, while readers go on. The smallest `ef_search`
    that reaches `TARGET_RECALL` is stored (the largest measured, where none does); publishing puts it to use.

    Raises PermanentError where no generation was loaded from `target_root`, or a chunk is in it twice.
    """
    with pipeline_errors(f"building the indexes of source {source!r}"), source_lock(conn, source):
        generation = require_generation(conn, source, target_root)
        dimensions = dict(zip(SLOTS, bound_dimensions(conn), strict=True))
        if generation.state != "published":
            _add_primary_key(conn, generation)
        reports = {slot: _ensure_index(conn, generation, slot, dimensions[slot]) for slot in SLOTS}
        if generation.state != "published":
            conn.execute(sql.SQL("ANALYZE {}").format(generation_table(generation.id)))
        return reports


def require_generation(conn: Connection, source: str, target_root: str) -> Generation:
    """The generation loaded from this root. Raises PermanentError where there is none."""
    generation = find_generation(conn, source, target_root)
    if generation is None:
        raise PermanentError(
            f"source {source!r} has no generation loaded from {target_root}: it was never loaded, or a later load has "
            "dropped it. Materialize pgvector_table for this partition again"
        )
    return generation


def invalid_indexes(conn: Connection, generation: Generation) -> list[str]:
    """Names of the indexes that a generation must have, and does not have in a valid state."""
    names = [f"generation_{generation.id}_pkey", *(f"generation_{generation.id}_{slot}" for slot in SLOTS)]
    return [name for name in names if not _is_valid(conn, name)]


def _add_primary_key(conn: Connection, generation: Generation) -> None:
    if _is_valid(conn, f"generation_{generation.id}_pkey"):
        return
    try:
        conn.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (chunk_id)").format(generation_table(generation.id)))
    except psycopg.errors.UniqueViolation as error:
        raise PermanentError(
            f"source {generation.source!r} has a chunk twice: {error.diag.message_detail}; materialize its chunks again"
        ) from error
    failpoint("pgvector.index.primary_key")


def _ensure_index(conn: Connection, generation: Generation, slot: str, dimensions: int) -> IndexReport:
    name = f"generation_{generation.id}_{slot}"
    stored = _stored(conn, generation, slot)
    vectors = _count(conn, generation, slot) if stored is None else stored.vectors
    estimate, granted, seconds = graph_bytes(vectors, dimensions), 0, 0.0
    if not _is_valid(conn, name):
        conn.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(generation_index(generation.id, slot)))
        began = time.monotonic()
        granted = _build(conn, generation, slot, column_type(dimensions), estimate)
        seconds = time.monotonic() - began
        failpoint(f"pgvector.index.{slot}")
    (size,) = _row(conn.execute("SELECT pg_relation_size(%s::regclass)", [f"embedding_assets.{name}"]))
    if granted:
        _log.info(
            "%s: %d vectors in %.1f s; memory estimated %d MB, granted %d MB; index %d MB",
            name, vectors, seconds, estimate >> 20, granted >> 20, size >> 20,
        )  # fmt: skip
    if stored is None:
        stored = _measure(conn, generation, slot, vectors, dimensions)
    return IndexReport(slot, name, vectors, seconds, size, estimate, granted, stored.ef_search, stored.curve)


def graph_bytes(vectors: int, dimensions: int) -> int:
    """Estimate of the memory that pgvector's build needs for the whole graph.

    Measured with 0.8.5 and m = 16, by the number of vectors at which it says that the graph no longer fits: 713 to 745
    bytes for each besides the vector itself (8 to 3,072 dimensions), and 4 MB set aside when workers share the memory.
    """
    width = 4 if column_type(dimensions) == "vector" else 2
    return (4 << 20) + vectors * (width * dimensions + 745)


def _build(conn: Connection, generation: Generation, slot: str, kind: ColumnType, estimate: int) -> int:
    """Build an HNSW index with memory for its graph and all the workers that the server allows; returns the memory."""
    granted = min(max(estimate, _LEAST_MEMORY), _MOST_MEMORY)
    if estimate > granted:
        _log.warning(
            "the graph needs about %d MB, %d MB are granted: the build slows down from there. Split the source",
            estimate >> 20, granted >> 20,
        )  # fmt: skip
    table = generation_table(generation.id)
    statement = sql.SQL("CREATE INDEX {} ON {} USING hnsw ({} {}) WITH (m = {}, ef_construction = {})").format(
        sql.Identifier(f"generation_{generation.id}_{slot}"),
        table,
        sql.Identifier(f"embedding_{slot}"),
        sql.SQL("vector_cosine_ops" if kind == "vector" else "halfvec_cosine_ops"),
        M,
        EF_CONSTRUCTION,
    )
    with conn.transaction():
        conn.execute(sql.SQL("SET LOCAL maintenance_work_mem = {}").format(f"{granted >> 10}kB"))
        # The planner would give a small table no worker, going by its pages, where HNSW's cost is in the distances.
        (workers,) = _row(conn.execute("SELECT current_setting('max_parallel_maintenance_workers')::integer"))
        conn.execute(sql.SQL("ALTER TABLE {} SET (parallel_workers = {})").format(table, workers))
        conn.execute(statement)
        conn.execute(sql.SQL("ALTER TABLE {} RESET (parallel_workers)").format(table))
    return granted


def _count(conn: Connection, generation: Generation, slot: str) -> int:
    column = sql.Identifier(f"embedding_{slot}")
    statement = sql.SQL("SELECT count({}) FROM {}").format(column, generation_table(generation.id))
    return int(_row(conn.execute(statement))[0])


def _row(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The one row of a query that always has one."""
    row = cursor.fetchone()
    assert row is not None
    return row


def _is_valid(conn: Connection, name: str) -> bool:
    row = conn.execute(
        "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid", [f"embedding_assets.{name}"]
    ).fetchone()
    return row is not None


class _Stored(NamedTuple):
    vectors: int
    ef_search: int
    curve: tuple[Measured, ...]


def _stored(conn: Connection, generation: Generation, slot: str) -> _Stored | None:
    row = conn.execute(
        "SELECT vectors, ef_search, curve FROM embedding_assets.recall WHERE generation = %s AND slot = %s",
        [generation.id, slot],
    ).fetchone()
    return _Stored(row[0], row[1], tuple(Measured(*point) for point in row[2])) if row else None


def _measure(conn: Connection, generation: Generation, slot: str, vectors: int, dimensions: int) -> _Stored:
    """Measure the recall curve, and store it with the smallest ef_search that reaches the target."""
    curve = _curve(conn, generation, slot, dimensions)
    reached = [point.ef_search for point in curve if point.recall >= TARGET_RECALL]
    ef_search = reached[0] if reached else (EF_SEARCH[-1] if curve else EF_SEARCH[0])
    conn.execute(
        """
        INSERT INTO embedding_assets.recall (generation, slot, vectors, ef_search, curve) VALUES (%s, %s, %s, %s, %s)
        """,
        [generation.id, slot, vectors, ef_search, Jsonb(curve)],
    )
    failpoint(f"pgvector.recall.{slot}")
    return _Stored(vectors, ef_search, curve)


def _curve(conn: Connection, generation: Generation, slot: str, dimensions: int) -> tuple[Measured, ...]:
    """recall@10 of the index against exact search, for stored vectors with fixed noise added (`recalled`)."""
    column = sql.Identifier(f"embedding_{slot}")
    table = generation_table(generation.id)
    # Chunk ids are hashes: the first ones are a random sample, and the same one each time.
    sample = conn.execute(
        sql.SQL(
            "SELECT chunk_id, {0}::vector::real[] FROM {1} WHERE {0} IS NOT NULL ORDER BY chunk_id LIMIT {2}"
        ).format(column, table, _SAMPLES)
    ).fetchall()
    if len(sample) < 2:
        return ()
    queries = _near(np.array([vector for _, vector in sample], np.float32))
    literals = [vector_literal(query) for query in queries]
    statement = sql.SQL(
        "SELECT chunk_id, {0} <=> %(query)s::{1}({2}) AS distance FROM {3} WHERE {0} IS NOT NULL "
        "ORDER BY {0} <=> %(query)s::{1}({2}) LIMIT {4}"
    ).format(column, sql.SQL(column_type(dimensions)), dimensions, table, NEIGHBOURS)

    def ask(query: str) -> list[_Neighbour]:
        return [_Neighbour(*row) for row in conn.execute(statement, {"query": query}, prepare=True)]

    # A plan for each query, as search() makes: a cached one would outlive the settings that it was made under.
    with conn.transaction():
        conn.execute("SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_indexscan = off")
        exact = [ask(query) for query in literals]
    points = []
    with conn.transaction():
        # Without enable_seqscan = off a small table would not be searched by the index at all.
        conn.execute(
            "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off; "
            "SET LOCAL hnsw.iterative_scan = 'strict_order'"
        )
        for ef_search in EF_SEARCH:
            conn.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(ef_search))
            seconds, found, wanted = [], 0, 0
            for (own, _), query, truth in zip(sample, literals, exact, strict=True):
                began = time.perf_counter()
                answer = ask(query)
                seconds.append(time.perf_counter() - began)
                found_here, wanted_here = recalled(own, truth, answer)
                found, wanted = found + found_here, wanted + wanted_here
            p50, p95 = np.percentile(seconds, [50, 95]) * 1000
            points.append(Measured(ef_search, found / wanted, float(p50), float(p95)))
    return tuple(points)


class _Neighbour(NamedTuple):
    chunk_id: UUID
    distance: float


def recalled(own: UUID, exact: Sequence[tuple[UUID, float]], answer: Sequence[tuple[UUID, float]]) -> tuple[int, int]:
    """Of the neighbours that an exact search finds, how many an answer has, and how many count.

    The query's own row does not count on either side: found by any index, it would add a tenth of recall for nothing.
    A neighbour counts by its distance, so that one of several equal texts is as good as another.
    """
    farthest = exact[-1][1] + _SAME_DISTANCE
    wanted = len(exact) - any(chunk_id == own for chunk_id, _ in (*exact, *answer))
    found = sum(distance <= farthest for chunk_id, distance in answer if chunk_id != own)
    return min(found, wanted), wanted


def _near(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors ((n, d) float32) near the given unit vectors: the same each time, not unit."""
    noise = np.random.default_rng(_SEED).standard_normal(vectors.shape).astype(np.float32)
    near: npt.NDArray[np.float32] = vectors + _NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return near


def vector_literal(vector: npt.NDArray[np.float32]) -> str:
    """A vector as pgvector reads it: nine digits tell any two float32 apart."""
    return "[" + ",".join([f"{value:.9g}" for value in vector.tolist()]) + "]"
