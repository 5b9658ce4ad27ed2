"""Upkeep of what a region serves: dead rows, bloated indexes, recall that has drifted, and what killed builds left.

`examine` looks, `findings` judges, `act` mends; one thing at a time, while readers go on.
"""

import logging
import math
import time
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from psycopg import sql

from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.indexes.hnsw import (
    SERVERS,
    Means,
    drop_leftovers,
    graphs_for,
    leftovers,
    next_larger,
    parameters_of,
)
from embedding_assets.pgvector.indexes.index import IndexReport, enlarge, ensure_index, reindex
from embedding_assets.pgvector.indexes.measurement import Measurement, put_to_use, shortfall, stored_measurement
from embedding_assets.pgvector.indexes.recall import answers, index_bytes, measure
from embedding_assets.pgvector.loading.costs import index_seconds
from embedding_assets.pgvector.locks import source_lock
from embedding_assets.pgvector.options import Hnsw
from embedding_assets.pgvector.schema.generations import Generation, column_type, published_generation
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets.pgvector.schema.names import generation_table
from embedding_assets.snapshots.slots import Slot
from embedding_assets.telemetry.events import Tell, unheard

_log = logging.getLogger(__name__)

DEAD_SHARE: Final = 0.1
"""Of a table's rows that are dead. Half of what autovacuum waits for by default: a vacuum of HNSW reads and repairs the
whole graph, and here it does so when nobody is waiting."""

BLOAT: Final = 1.5
"""Bytes for each live vector, against those when the index was built. A vacuumed HNSW index never shrinks; a third of
it unused is a third of the cache wasted."""

SMALL_INDEX: Final = 8 << 20
"""Bytes below which bloat is nobody's trouble, and whole pages for a few vectors look like it."""

CHANGED_SHARE: Final = 0.05
"""Of the rows, changed since recall was measured, after which it is measured again. Measuring reads the table once."""

PATIENCE_SECONDS: Final = 10.0
"""For a load: upkeep's turn comes again."""

Cure = Literal["drop", "ef_search", "build", "enlarge", "reindex", "vacuum"]


class IndexState(NamedTuple):
    """A slot's index; `hnsw` and `measurement` are None where there is none, or it is invalid."""

    slot: Slot
    dimensions: int
    hnsw: Hnsw | None
    size_bytes: int
    measurement: Measurement | None


class State(NamedTuple):
    """What a source's published generation is like. `ef_search` is what searches use, by slot."""

    generation: Generation
    live_rows: int
    dead_rows: int
    leftovers: tuple[str, ...]
    indexes: tuple[IndexState, ...]
    ef_search: Mapping[str, int]

    def __str__(self) -> str:
        return ", ".join([f"{self.live_rows:,} rows, {self.dead_rows:,} dead", *map(_describe, self.indexes)])


class Finding(NamedTuple):
    """Something that is not as it should be, and what mends it; None where the settings must."""

    what: str
    cure: Cure | None
    slot: Slot | None = None
    """Of the index that it is about; None where it is about the whole table."""


def published_sources(conn: Connection) -> list[str]:
    """The sources that this region serves."""
    with pipeline_errors("asking for the region's sources"):
        rows = conn.execute("SELECT source FROM embedding_assets.generations WHERE state = 'published' ORDER BY source")
        return [source for (source,) in rows]


def examine(conn: Connection, source: str, target_recall: float, tell: Tell = unheard) -> State | None:
    """Look at a source's published generation; None where there is none.

    Recall is measured and stored where more than `CHANGED_SHARE` of the rows changed since it was, and where the index
    was built since. Raises SourceBusy where somebody is loading the source.
    """
    with pipeline_errors(f"examining source {source!r}"), source_lock(conn, source, PATIENCE_SECONDS, tell):
        generation = published_generation(conn, source)
        if generation is None:
            return None
        live_rows, dead_rows = _rows(conn, generation)
        bound = bound_models(conn)
        return State(
            generation=generation,
            live_rows=live_rows,
            dead_rows=dead_rows,
            leftovers=tuple(leftovers(conn, generation)),
            indexes=tuple(_index_state(conn, generation, slot, live_rows, target_recall) for slot in bound),
            ef_search={slot: model.ef_search for slot, model in bound.items()},
        )


def findings(state: State, hnsw: Mapping[Slot, Hnsw], target_recall: float, seconds: float = math.inf) -> list[Finding]:
    """What is to be done about a generation, in the order of doing it; a larger graph only where it takes no more than
    so many seconds, by estimate.

    The cheap things first. An index is rebuilt before the table is vacuumed, which then has no graph to repair
    (pgvector's README, "Vacuuming").
    """
    found = []
    if state.leftovers:
        found.append(Finding(f"left over from killed builds: {', '.join(state.leftovers)}", "drop"))
    judged = [_of_index(state, index, hnsw[index.slot], target_recall, seconds) for index in state.indexes]
    found += sorted(filter(None, judged), key=lambda finding: finding.cure != "ef_search")
    everything = state.live_rows + state.dead_rows
    if state.dead_rows > DEAD_SHARE * everything:
        share = state.dead_rows / everything
        found.append(Finding(f"{state.dead_rows:,} of {everything:,} rows are dead ({share:.0%})", "vacuum"))
    return found


def act(
    conn: Connection,
    generation: Generation,
    finding: Finding,
    hnsw: Mapping[Slot, Hnsw],
    target_recall: float,
    tell: Tell = unheard,
    means: Means = SERVERS,
) -> str:
    """Do what mends a finding, and tell what was done.

    Readers go on. Raises SourceBusy where somebody is loading the source, and TransientError where the table's lock is
    not to be had.
    """
    if finding.cure is None:
        return "nothing"
    began, slot = time.monotonic(), finding.slot
    with (
        pipeline_errors(f"upkeep of source {generation.source!r} ({finding.cure})"),
        source_lock(conn, generation.source, PATIENCE_SECONDS, tell),
    ):
        present = published_generation(conn, generation.source)
        if present is None or present.id != generation.id:
            return "nothing: another generation was published meanwhile"
        match finding.cure, slot:
            case "drop", None:
                did = f"dropped {', '.join(drop_leftovers(conn, generation)) or 'nothing, they are gone'}"
            case "vacuum", None:
                did = _vacuum(conn, generation)
            case "ef_search", str(index):
                put_to_use(conn)
                did = f"searches use ef_search {bound_models(conn)[index].ef_search}"
            case "build", str(index):
                did = _rebuilt(ensure_index(conn, generation, index, hnsw[index], target_recall, tell, means))
            case "enlarge", str(index):
                did = _rebuilt(enlarge(conn, generation, index, hnsw[index], target_recall, tell, means))
            case "reindex", str(index):
                did = _rebuilt(reindex(conn, generation, index, hnsw[index], target_recall, tell, means))
            case cure, about:
                raise ValueError(f"{cure} is no cure for {about or 'the whole table'}")
        if finding.cure in ("build", "enlarge", "reindex"):
            put_to_use(conn)
    seconds = time.monotonic() - began
    _log.info("source %r: %s: %s (%.1f s)", generation.source, finding.what, did, seconds)
    return f"{did} ({seconds:.1f} s)"


def _rows(conn: Connection, generation: Generation) -> tuple[int, int]:
    """Live and dead rows, as Postgres counts them."""
    relation = [generation_table(generation.id).as_string(conn)]
    query = """
        SELECT n_live_tup, n_dead_tup, coalesce(last_analyze, last_autoanalyze, last_vacuum, last_autovacuum) IS NULL
        FROM pg_stat_all_tables WHERE relid = to_regclass(%s)
    """
    row = conn.execute(query, relation).fetchone()
    if row is None or row[2]:
        # A crash of the server loses the counts: every generation is analysed before it is published.
        conn.execute(sql.SQL("ANALYZE {}").format(generation_table(generation.id)))
        row = conn.execute(query, relation).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def _index_state(conn: Connection, generation: Generation, slot: Slot, live_rows: int, target: float) -> IndexState:
    hnsw = parameters_of(conn, generation, slot)
    measurement = None
    if hnsw is not None:
        measurement = stored_measurement(conn, generation, slot)
        if (
            measurement is None
            or not answers(measurement.curve, target)
            or generation.rows_changed - measurement.changes_at_measurement > CHANGED_SHARE * live_rows
        ):
            measurement = measure(conn, generation, slot, target)
    return IndexState(
        slot, column_type(conn, generation, slot)[1], hnsw, index_bytes(conn, generation, slot), measurement
    )


def _of_index(state: State, index: IndexState, hnsw: Hnsw, target: float, seconds: float) -> Finding | None:
    """The gravest thing about an index: what mends it mends the lesser ones."""
    name, now = f"index {index.slot}", index.measurement
    if index.hnsw is None or now is None:
        return Finding(f"{name} is missing or invalid", "build", index.slot)
    if index.hnsw not in graphs_for(hnsw):
        built, wanted = (f"m {of.m} and ef_construction {of.ef_construction}" for of in (index.hnsw, hnsw))
        return Finding(f"{name} was built with {built}, the settings have {wanted}", "build", index.slot)
    larger = next_larger(index.hnsw, hnsw)
    if larger is not None and index_seconds(now.vectors, index.dimensions, larger) > seconds:
        larger = None  # it would be under way when the quiet hours are over
    if below := shortfall(index.slot, now.recall, now.ef_search, target, larger):
        if state.generation.rows_changed - now.changes_at_build > CHANGED_SHARE * state.live_rows:
            return Finding(below, "reindex", index.slot)
        # Hardly anything has changed since it was built: the same build would come to the same.
        return Finding(below, None if larger is None else "enlarge", index.slot)
    if (bloat := _bloat(state, index, now)) > BLOAT and index.size_bytes > SMALL_INDEX:
        return Finding(f"{name} has {bloat:.1f} × the bytes a vector that it was built with", "reindex", index.slot)
    if now.ef_search > state.ef_search[index.slot]:
        low = f"searches use ef_search {state.ef_search[index.slot]}, {name} needs {now.ef_search} for {target}"
        return Finding(low, "ef_search", index.slot)
    return None


def _bloat(state: State, index: IndexState, measurement: Measurement) -> float:
    return index.size_bytes / max(state.live_rows, 1) / max(measurement.built_bytes_per_vector, 1)


def _rebuilt(report: IndexReport) -> str:
    recall = "" if report.recall is None else f", recall@10 {report.recall:.3f} at ef_search {report.ef_search}"
    return f"rebuilt {report.name}: {report.vectors:,} vectors, {report.size_bytes:,} bytes{recall}"


def _vacuum(conn: Connection, generation: Generation) -> str:
    conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(generation_table(generation.id)))
    _, dead_rows = _rows(conn, generation)
    if not dead_rows:
        return "vacuumed"
    return (
        f"vacuumed, {dead_rows:,} dead rows stay: a transaction that is older than their end may still read them. Look "
        "for one left open, by xact_start in pg_stat_activity"
    )


def _describe(index: IndexState) -> str:
    if index.measurement is None:
        return f"{index.slot} without a valid index"
    recall = index.measurement.recall
    measured = "" if recall is None else f", recall@10 {recall:.3f} at ef_search {index.measurement.ef_search}"
    return f"{index.slot} {index.size_bytes:,} bytes{measured}"
