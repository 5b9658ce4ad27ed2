"""Building an HNSW index: memory and workers for it, progress while it lasts, and what a killed build leaves behind."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from embedding_assets.errors import PipelineError, TransientError
from embedding_assets.pgvector.connection import Connection, connect, dsn_of
from embedding_assets.pgvector.locks import QUEUE_SECONDS
from embedding_assets.pgvector.options import Hnsw, M
from embedding_assets.pgvector.schema.generations import Generation, column_type
from embedding_assets.pgvector.schema.names import generation_index, generation_table
from embedding_assets.snapshots.slots import Slot, column_of
from embedding_assets.telemetry.events import IndexBuilt, IndexProgress, Tell, unheard

_log = logging.getLogger(__name__)

_LEAST_MEMORY: Final = 32 << 20  # a process: Postgres starts no parallel worker where that would leave one with less
_USUAL_MEMORY: Final = 2 << 30  # some 900,000 vectors of 384 dimensions

_EVERY_SECONDS: Final = 1.0  # a build's progress is asked for
_PATIENCE_SECONDS: Final = 5.0  # with a connection for progress that does not answer any more, when the build is done


class Means(NamedTuple):
    """What a build may use: bytes of memory for the graph, and workers besides the process that builds.

    None: what the server has. As memory that is its shared_buffers, a quarter of a machine by custom, and 2 GiB at
    least; as workers its max_parallel_maintenance_workers. A build takes no more memory than its graph needs, for that
    of workers is set aside whole. Beyond the bound the rest of a graph is built on disk: a server that swaps is slower.
    """

    memory: int | None = None
    workers: int | None = None


SERVERS: Final = Means()

_LARGER: Final = ((1.5, 2), (2, 4))  # times m and ef_construction, which a build's seconds follow


def graphs_for(hnsw: Hnsw) -> tuple[Hnsw, ...]:
    """What the settings say, and the larger graphs that are built in turn where that finds less than it should.

    Within pgvector's bounds. Measured on 12,000 vectors of 64 dimensions, sixty close to each of 200: recall .978 at an
    ef_search of 1,000 with m 16 and ef_construction 200, .990 with 24 and 400, 1.000 at 400 with 32 and 800. Random
    ones reached .98 at 200, 120 and 80. Each step doubled the build's CPU.
    """
    larger = (
        Hnsw(m=min(int(hnsw.m * links), 100), ef_construction=min(hnsw.ef_construction * candidates, 1000))
        for links, candidates in _LARGER
    )
    return tuple(dict.fromkeys((hnsw, *larger)))


def next_larger(built: Hnsw, hnsw: Hnsw) -> Hnsw | None:
    """The graph to be built next where one with these parameters, of those for `hnsw`, finds less than it should."""
    graphs = graphs_for(hnsw)
    return next(iter(graphs[graphs.index(built) + 1 :]), None) if built in graphs else None


def graph_bytes(vectors: int, dimensions: int, width: int = 4, m: int = M) -> int:
    """Estimate of the memory that pgvector's build needs for the whole graph; `width` is a dimension's, in bytes.

    Measured with 0.8.5 by the number of vectors at which it says that the graph no longer fits. With m = 16 these are
    713 to 745 bytes for each besides the vector itself (8 to 3,072 dimensions), 305 with m = 2, 2,256 with m = 64; and
    4 MB set aside when workers share the memory.
    """
    return (4 << 20) + vectors * (width * dimensions + 240 + 32 * m)


def parameters_of(conn: Connection, generation: Generation, slot: Slot) -> Hnsw | None:
    """The parameters of a slot's index; None where there is none, or an invalid one."""
    row = conn.execute(
        """
        SELECT coalesce(max(option_value) FILTER (WHERE option_name = 'm'), '16')::integer,
               coalesce(max(option_value) FILTER (WHERE option_name = 'ef_construction'), '64')::integer
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        LEFT JOIN LATERAL pg_options_to_table(reloptions) ON true
        WHERE indexrelid = to_regclass(%s) AND indisvalid GROUP BY indexrelid
        """,  # 16 and 64: pgvector's own defaults, which an index made by hand may have
        [generation_index(generation.id, slot).as_string(conn)],
    ).fetchone()
    return Hnsw(m=row[0], ef_construction=row[1]) if row else None


class Built(NamedTuple):
    """How a build went; `workers` were asked for besides the process that builds."""

    vectors: int
    seconds: float
    estimate: int
    granted: int
    workers: int


def build(
    conn: Connection,
    generation: Generation,
    slot: Slot,
    hnsw: Hnsw,
    statement: sql.Composed,
    tell: Tell,
    means: Means = SERVERS,
) -> Built:
    """Run a statement that builds an HNSW index with memory for its graph and workers, within these means.

    Serially, where the server's shared memory is too little for the workers: Docker gives /dev/shm 64 MB (pgvector
    #453, #714).
    """
    kind, dimensions = column_type(conn, generation, slot)
    vectors = _count(conn, generation, slot)
    estimate = graph_bytes(vectors, dimensions, 4 if kind == "vector" else 2, hnsw.m)
    most, workers = _means(conn, means)
    if estimate > most:
        _log.warning(
            "%s of source %r: the graph needs about %d MB, %d MB are granted: the build slows down from there. Raise "
            "the region's build_memory, if its server has more, or split the source",
            slot, generation.source, estimate >> 20, most >> 20,
        )  # fmt: skip
    began = time.monotonic()
    with _watched(conn, slot, vectors, tell):
        try:
            granted = _granted(estimate, workers, most)
            _execute_build(conn, statement, granted, workers)
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
            if not workers:
                raise
            _log.warning(
                "%s of source %r: building it in one process, which takes longer: %s. More shared memory for Postgres "
                "(docker run --shm-size) or less max_parallel_maintenance_workers prevents this",
                slot, generation.source, str(error).strip(),
            )  # fmt: skip
            drop_leftovers(conn, generation)
            workers = 0
            granted = _granted(estimate, workers, most)
            _execute_build(conn, statement, granted, workers)
    built = Built(vectors, time.monotonic() - began, estimate, granted, workers)
    tell(IndexProgress(slot, "built", vectors, vectors))
    tell(IndexBuilt(slot, vectors, built.seconds, granted, workers))
    return built


def _means(conn: Connection, means: Means) -> tuple[int, int]:
    """The most memory, and the workers, that a build may use."""
    servers, workers = _row(
        conn.execute(
            "SELECT pg_size_bytes(current_setting('shared_buffers')), "
            "current_setting('max_parallel_maintenance_workers')::integer"
        )
    )
    return (
        max(servers, _USUAL_MEMORY) if means.memory is None else means.memory,
        workers if means.workers is None else means.workers,
    )


def _granted(estimate: int, workers: int, most: int) -> int:
    return min(max(estimate, _LEAST_MEMORY * (workers + 1)), most)


def _execute_build(conn: Connection, statement: sql.Composed, memory: int, workers: int) -> None:
    settings = {
        "maintenance_work_mem": f"{memory >> 10}kB",
        "max_parallel_maintenance_workers": str(workers),
        # By default 8, whatever the machine: a build's own workers are within it.
        "max_parallel_workers": str(max(workers, _row(conn.execute("SHOW max_parallel_workers"))[0], key=int)),
        # The planner would give a small table no worker, going by its pages, where HNSW's cost is in the distances.
        "min_parallel_table_scan_size": "0",
    }
    with patience(conn), _settings(conn, settings):
        try:
            conn.execute(statement)
        except psycopg.errors.LockNotAvailable as error:
            raise TransientError(
                f"building an index waited {QUEUE_SECONDS:g} s for transactions that were older than it. Cure: end "
                "the one that was left open, by xact_start in pg_stat_activity, and run this again"
            ) from error


def patience(conn: Connection) -> AbstractContextManager[None]:
    """Wait longer for locks, for as long as this lasts.

    For what is done CONCURRENTLY: it waits for older transactions as for a lock, at its end as well, when all the work
    is done, and holds up neither readers nor writers meanwhile.
    """
    return _settings(conn, {"lock_timeout": f"{QUEUE_SECONDS:.0f}s"})


@contextmanager
def _settings(conn: Connection, values: Mapping[str, str]) -> Iterator[None]:
    """Settings of the session, for as long as this lasts: what is done CONCURRENTLY cannot be in a transaction."""
    before = {name: _row(conn.execute("SELECT current_setting(%s)", [name]))[0] for name in values}
    _set(conn, values)
    try:
        yield
    finally:
        if not conn.closed:
            _set(conn, before)


def _set(conn: Connection, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        conn.execute("SELECT set_config(%s, %s, false)", [name, value])


@contextmanager
def _watched(conn: Connection, slot: Slot, vectors: int, tell: Tell) -> Iterator[None]:
    """Tell of the build that `conn` does meanwhile, as another connection sees it."""
    if tell is unheard:
        yield
        return
    (backend,) = _row(conn.execute("SELECT pg_backend_pid()"))
    try:
        # By the login role, whatever role the session acts as: Postgres shows it what its own sessions do.
        watching = connect(dsn_of(conn))
    except PipelineError as error:
        _log.warning("%s is built without progress to show: %s", slot, error)
        yield
        return
    done = threading.Event()

    def watch() -> None:
        try:
            while not done.wait(_EVERY_SECONDS):
                now = watching.execute(
                    "SELECT phase, tuples_done FROM pg_stat_progress_create_index WHERE pid = %s", [backend]
                ).fetchone()
                if now is not None:
                    phase, done_by_now = now
                    tell(IndexProgress(slot, phase, done_by_now, vectors))
        except psycopg.Error as error:
            _log.warning("%s is built on, without progress to show: %s", slot, str(error).strip())
        finally:
            watching.close()

    watcher = threading.Thread(target=watch, name=f"index-progress-{slot}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(_PATIENCE_SECONDS)


def leftovers(conn: Connection, generation: Generation) -> list[str]:
    """Names of the indexes that killed builds left on a generation's table.

    INVALID ones, of CREATE INDEX CONCURRENTLY and of REINDEX CONCURRENTLY (`…_ccnew`, `…_ccold`), and our own `…_new`
    and `…_old`. What somebody is building at this moment is none of them, nor is what others have named.
    """
    rows = conn.execute(
        """
        SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = to_regclass(%s) AND starts_with(relname, %s)
        AND (NOT indisvalid OR relname ~ '_v[12]_(new|old)$')
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
        AND NOT EXISTS (
            SELECT FROM pg_stat_progress_create_index AS building
            WHERE index_relid = indexrelid
            -- To our role Postgres hides what others build, not that they build, nor which table they have locked.
            OR index_relid IS NULL AND EXISTS (
                SELECT FROM pg_locks
                WHERE pg_locks.pid = building.pid AND database = building.datid AND relation = indrelid
            )
        )
        ORDER BY relname
        """,
        [generation_table(generation.id).as_string(conn), f"generation_{generation.id}_"],
    )
    return [name for (name,) in rows]


def drop_leftovers(conn: Connection, generation: Generation) -> list[str]:
    """Drop the `leftovers`, whose upkeep every load pays for and no search uses; returns their names."""
    concurrently = sql.SQL("CONCURRENTLY" if generation.state == "published" else "")
    names = leftovers(conn, generation)
    for name in names:
        _log.info("dropping index %s, which nothing uses", name)
        with patience(conn):
            conn.execute(sql.SQL("DROP INDEX {} embedding_assets.{}").format(concurrently, sql.Identifier(name)))
    return names


def _count(conn: Connection, generation: Generation, slot: Slot) -> int:
    column = sql.Identifier(column_of(slot))
    statement = sql.SQL("SELECT count({}) FROM {}").format(column, generation_table(generation.id))
    return int(_row(conn.execute(statement))[0])


def _row(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The one row of a query that always has one."""
    row = cursor.fetchone()
    assert row is not None
    return row
