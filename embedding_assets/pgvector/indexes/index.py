"""The indexes of a generation: primary key and inverted ones, and an HNSW index for each model version.

Built after the load, on the detached table: inserting under a live HNSW index takes several times longer
(docs/decisions/0006). What a published generation lacks is built while readers go on, and never takes a lock that keeps
them waiting.
"""

import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

import psycopg
from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.indexes.hnsw import (
    SERVERS,
    Built,
    Means,
    build,
    drop_leftovers,
    graphs_for,
    next_larger,
    parameters_of,
    patience,
)
from embedding_assets.pgvector.indexes.inverted import ensure_metadata_index
from embedding_assets.pgvector.indexes.measurement import Measured, is_below, put_to_use, shortfall, stored_measurement
from embedding_assets.pgvector.indexes.recall import index_bytes, measure, settled
from embedding_assets.pgvector.loading.costs import index_seconds
from embedding_assets.pgvector.locks import short_transaction, source_lock
from embedding_assets.pgvector.options import TARGET_RECALL, USUAL, Hnsw
from embedding_assets.pgvector.schema import language, words
from embedding_assets.pgvector.schema.generations import (
    Generation,
    column_type,
    find_generation,
    published_generation,
)
from embedding_assets.pgvector.schema.models import bound_models, live_slot
from embedding_assets.pgvector.schema.names import generation_index, generation_table
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.slots import Slot, column_of
from embedding_assets.telemetry.events import RecallMeasured, Tell, unheard

_log = logging.getLogger(__name__)

_AT_ONCE_SECONDS: Final = 300.0
"""That a first publication waits for a graph that finds more. A large source is searched sooner by the one it has."""


class IndexReport(NamedTuple):
    """An HNSW index: how it was built (None where it was there already), and what was measured on it, now or before.

    `larger` is the graph to be built next, should it find less than it should. `curve` is empty where fewer than two
    vectors leave nothing to measure.
    """

    slot: Slot
    name: str
    hnsw: Hnsw
    larger: Hnsw | None
    vectors: int
    built: Built | None
    measured_now: bool
    size_bytes: int
    ef_search: int
    recall: float | None
    curve: tuple[Measured, ...]

    def degraded(self, target: float) -> str | None:
        """What is wrong with it if it finds less than it should, and the cure."""
        return shortfall(self.slot, self.recall, self.ef_search, target, self.larger)


def build_indexes(
    conn: Connection,
    source: str,
    target_root: str,
    hnsw: Mapping[Slot, Hnsw] = USUAL,
    target_recall: float = TARGET_RECALL,
    tell: Tell = unheard,
    means: Means = SERVERS,
) -> dict[Slot, IndexReport]:
    """Build and measure what a loaded generation lacks: primary key, an HNSW index for each slot, statistics, recall.

    Returns a report for each slot. A build that was killed is made anew; a finished one stays, unless its parameters
    are none of `graphs_for` those that `hnsw` has for its slot. On a published generation readers go on meanwhile. The
    smallest `ef_search` that reaches `target_recall` is stored (the largest measured, where none does); publishing puts
    it to use. The server is asked for a build's progress where somebody listens.

    Raises PermanentError where no generation was loaded from `target_root`, or a chunk is in it twice.
    """
    with (
        pipeline_errors(f"building the indexes of source {source!r}"),
        source_lock(conn, source, tell=tell),
        patience(conn),
    ):
        generation = require_generation(conn, source, target_root)
        drop_leftovers(conn, generation)
        _add_primary_key(conn, generation)
        _add_digests_index(conn, generation)
        ensure_metadata_index(conn, generation)
        words.ensure_words(conn, generation)
        reports = {
            slot: ensure_index(conn, generation, slot, hnsw[slot], target_recall, tell, means)
            for slot in bound_models(conn)
        }
        if generation.state == "published":
            put_to_use(conn)
        else:
            # The visibility map besides the statistics: asking a shard for its digests then reads the index alone.
            conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(generation_table(generation.id)))
        return reports


def require_generation(conn: Connection, source: str, target_root: str) -> Generation:
    """The generation loaded from this root. Raises PermanentError where there is none."""
    generation = find_generation(conn, source, target_root)
    if generation is None:
        raise PermanentError(
            f"source {source!r} has no generation loaded from {target_root}: it was never loaded, or a later load has "
            "dropped it. Cure: embedding-assets materialize, or, in Dagster: Materialize pgvector_table for this "
            "partition again"
        )
    return generation


def invalid_indexes(conn: Connection, generation: Generation) -> list[str]:
    """Names of the indexes that a generation must have, and does not have in a valid state."""
    names = [f"generation_{generation.id}_{name}" for name in ("pkey", "shard", *bound_models(conn))]
    invalid = [name for name in names if not _is_valid(conn, name)]
    if language.language_of(conn, generation) is not None and not words.in_step(conn, generation):
        invalid.append(f"generation_{generation.id}_words")
    return invalid


def ensure_index(
    conn: Connection,
    generation: Generation,
    slot: Slot,
    hnsw: Hnsw,
    target: float,
    tell: Tell = unheard,
    means: Means = SERVERS,
) -> IndexReport:
    """Have a slot's index, valid and built with one of the graphs for `hnsw`, and measured.

    Where the source is not served yet, and the live model's index finds less than it should, a larger graph is built at
    once if that is a matter of minutes. Where it is served that is left to upkeep. For whoever holds the source's lock.
    """
    graphs = graphs_for(hnsw)
    parameters, built = parameters_of(conn, generation, slot), None
    served = published_generation(conn, generation.source)
    if parameters not in graphs:
        # What helped the rows before these helps them: a graph is not found too small twice.
        proven = parameters_of(conn, served, slot) if served is not None else None
        parameters = proven if proven in graphs else hnsw
        create = _create_beside if generation.state == "published" else _create
        built = create(conn, generation, slot, parameters, tell, means)
    report = _report(conn, generation, slot, parameters, hnsw, target, built, tell)
    # The model that nobody searches by holds up no publication.
    waits = served is None and live_slot(conn) == slot
    while (
        waits
        and report.larger is not None
        and is_below(report.recall, target)
        and index_seconds(report.vectors, column_type(conn, generation, slot)[1], report.larger) <= _AT_ONCE_SECONDS
    ):
        _log.warning(
            "%s has recall@10 %.3f at ef_search %d, the target is %g: m %d and ef_construction %d are tried before it "
            "is published",
            report.name, report.recall, report.ef_search, target, report.larger.m, report.larger.ef_construction,
        )  # fmt: skip
        built = _create(conn, generation, slot, report.larger, tell, means)
        report = _report(conn, generation, slot, report.larger, hnsw, target, built, tell)
    return report


def enlarge(
    conn: Connection,
    generation: Generation,
    slot: Slot,
    hnsw: Hnsw,
    target: float,
    tell: Tell = unheard,
    means: Means = SERVERS,
) -> IndexReport:
    """Build the next larger of the graphs for `hnsw` beside a published generation's, put it in its place, measure it.

    For whoever holds the source's lock. Readers go on with the old one until the new one is there.
    """
    parameters = parameters_of(conn, generation, slot)
    larger = next_larger(parameters, hnsw) if parameters is not None else None
    if larger is None:
        return ensure_index(conn, generation, slot, hnsw, target, tell, means)
    built = _create_beside(conn, generation, slot, larger, tell, means)
    return _report(conn, generation, slot, larger, hnsw, target, built, tell)


def reindex(
    conn: Connection,
    generation: Generation,
    slot: Slot,
    hnsw: Hnsw,
    target: float,
    tell: Tell = unheard,
    means: Means = SERVERS,
) -> IndexReport:
    """Build a slot's index of a published generation anew from the rows as they are, and measure it.

    Its parameters stay. For whoever holds the source's lock. Readers go on with the old one until the new one is there.
    """
    parameters = parameters_of(conn, generation, slot) or hnsw
    statement = sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(generation_index(generation.id, slot))
    built = build(conn, generation, slot, parameters, statement, tell, means)
    return _report(conn, generation, slot, parameters, hnsw, target, built, tell)


def _add_primary_key(conn: Connection, generation: Generation) -> None:
    name, table = f"generation_{generation.id}_pkey", generation_table(generation.id)
    if _is_valid(conn, name):
        return
    try:
        if generation.state != "published":
            conn.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (chunk_id)").format(table))
        else:  # its index first, while readers go on; the constraint then takes a moment
            key = sql.Identifier(name)
            conn.execute(sql.SQL("CREATE UNIQUE INDEX CONCURRENTLY {} ON {} (chunk_id)").format(key, table))
            constrain = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY USING INDEX {}").format(table, key, key)
            short_transaction(conn, f"adding {name}", lambda: conn.execute(constrain))
    except psycopg.errors.UniqueViolation as error:
        raise PermanentError(
            f"source {generation.source!r} has a chunk twice: {error.diag.message_detail}. Cure: embedding-assets "
            "verify --repair, then embedding-assets materialize"
        ) from error
    failpoint(Failpoint.INDEX_PRIMARY_KEY)


def _add_digests_index(conn: Connection, generation: Generation) -> None:
    """What a delta load asks of a shard, from the index alone: its rows' ids and digests."""
    name = f"generation_{generation.id}_shard"
    if _is_valid(conn, name):
        return
    conn.execute(
        sql.SQL("CREATE INDEX {} {} ON {} (shard) INCLUDE (chunk_id, digest)").format(
            sql.SQL("CONCURRENTLY" if generation.state == "published" else ""),
            sql.Identifier(name),
            generation_table(generation.id),
        )
    )


def _create(conn: Connection, generation: Generation, slot: Slot, hnsw: Hnsw, tell: Tell, means: Means) -> Built:
    name = f"generation_{generation.id}_{slot}"
    conn.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(generation_index(generation.id, slot)))
    built = build(conn, generation, slot, hnsw, _create_statement(conn, generation, slot, name, hnsw), tell, means)
    failpoint(Failpoint.INDEX_BUILT)
    return built


def _create_beside(conn: Connection, generation: Generation, slot: Slot, hnsw: Hnsw, tell: Tell, means: Means) -> Built:
    """Build an index under another name while readers use the one that there is, and give it that one's name then.

    REINDEX could not: it keeps the parameters, and needs an index.
    """
    name = f"generation_{generation.id}_{slot}"
    statement = _create_statement(conn, generation, slot, f"{name}_new", hnsw, concurrently=True)
    built = build(conn, generation, slot, hnsw, statement, tell, means)

    def rename() -> None:
        for old, new in ((name, f"{name}_old"), (f"{name}_new", name)):
            conn.execute(
                sql.SQL("ALTER INDEX IF EXISTS embedding_assets.{} RENAME TO {}").format(
                    sql.Identifier(old), sql.Identifier(new)
                )
            )

    short_transaction(conn, f"renaming index {name}", rename)
    drop_leftovers(conn, generation)
    return built


def _create_statement(
    conn: Connection, generation: Generation, slot: Slot, name: str, hnsw: Hnsw, *, concurrently: bool = False
) -> sql.Composed:
    kind, _ = column_type(conn, generation, slot)
    return sql.SQL("CREATE INDEX {} {} ON {} USING hnsw ({} {}) WITH (m = {}, ef_construction = {})").format(
        sql.SQL("CONCURRENTLY" if concurrently else ""),
        sql.Identifier(name),
        generation_table(generation.id),
        sql.Identifier(column_of(slot)),
        sql.SQL("vector_cosine_ops" if kind == "vector" else "halfvec_cosine_ops"),
        hnsw.m,
        hnsw.ef_construction,
    )


def _report(
    conn: Connection,
    generation: Generation,
    slot: Slot,
    parameters: Hnsw,
    hnsw: Hnsw,
    target: float,
    built: Built | None,
    tell: Tell,
) -> IndexReport:
    name = f"generation_{generation.id}_{slot}"
    size = index_bytes(conn, generation, slot)
    if built is not None:
        _log.info(
            "%s: %d vectors in %.1f s with up to %d workers; memory estimated %d MB, granted %d MB; index %d MB",
            name, built.vectors, built.seconds, built.workers, built.estimate >> 20, built.granted >> 20, size >> 20,
        )  # fmt: skip
    known = stored_measurement(conn, generation, slot)
    if known is None:
        stored = measure(conn, generation, slot, target)
        tell(RecallMeasured(slot, stored.recall, stored.ef_search, size))
        failpoint(Failpoint.RECALL_MEASURED)
    else:
        stored = settled(conn, generation, slot, known, target)
    return IndexReport(
        slot=slot,
        name=name,
        hnsw=parameters,
        larger=next_larger(parameters, hnsw),
        vectors=stored.vectors,
        built=built,
        measured_now=known is None,
        size_bytes=size,
        ef_search=stored.ef_search,
        recall=stored.recall,
        curve=stored.curve,
    )


def _is_valid(conn: Connection, name: str) -> bool:
    row = conn.execute(
        "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid", [f"embedding_assets.{name}"]
    ).fetchone()
    return row is not None
