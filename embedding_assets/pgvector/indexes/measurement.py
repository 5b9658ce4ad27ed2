"""What was measured of an HNSW index, as the database has it: its recall curve, and whether that is enough."""

from typing import NamedTuple

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.options import Hnsw
from embedding_assets.pgvector.schema.generations import Generation
from embedding_assets.pgvector.schema.names import generation_index
from embedding_assets.snapshots.slots import Slot


class Measured(NamedTuple):
    """One point of a recall curve: recall@10 against exact search, and a query's latency as the client sees it.

    Of fewer questions than the curve's others have where they showed already that the recall is below the target.
    """

    ef_search: int
    recall: float
    p50_ms: float
    p95_ms: float
    questions: int = 100  # as all had that were stored before it was told


class Measurement(NamedTuple):
    """What is stored of an index: its recall curve, and what it and its table were like, then and when it was built.

    `changes_…` are the generation's `rows_changed`. `curve` is empty where fewer than two vectors leave nothing to
    measure.
    """

    vectors: int
    ef_search: int
    curve: tuple[Measured, ...]
    built_bytes_per_vector: float
    changes_at_build: int
    changes_at_measurement: int

    @property
    def recall(self) -> float | None:
        """recall@10 at `ef_search`; None where nothing could be measured."""
        return next((point.recall for point in self.curve if point.ef_search == self.ef_search), None)


def stored_measurement(conn: Connection, generation: Generation, slot: Slot) -> Measurement | None:
    """The last measurement of a slot's index as it stands; None where it was built since, or never measured."""
    row = conn.execute(
        """
        SELECT vectors, ef_search, curve, built_bytes_per_vector, changes_at_build, changes_at_measurement
        FROM embedding_assets.recall WHERE generation = %s AND slot = %s AND index_id = to_regclass(%s)
        """,
        [generation.id, slot, generation_index(generation.id, slot).as_string(conn)],
    ).fetchone()
    return Measurement(*row)._replace(curve=tuple(Measured(*point) for point in row[2])) if row else None


def is_below(recall: float | None, target: float) -> bool:
    """Whether an index finds less than it should; one of fewer than two vectors does not."""
    return recall is not None and recall < target


def shortfall(slot: Slot, recall: float | None, ef_search: int, target: float, larger: Hnsw | None) -> str | None:
    """What is wrong with a slot's index that finds less than it should, and the cure; None where it finds enough.

    `larger` is the graph that upkeep builds next; None where it has built them all.
    """
    if recall is None or not is_below(recall, target):
        return None
    cure = "raise the model's hnsw.m or hnsw.ef_construction (the index is built again), or lower target_recall"
    if larger is not None:
        cure = (
            f"embedding-assets upkeep --now, or wait for the quiet hours: the index is built with m {larger.m} and "
            f"ef_construction {larger.ef_construction}. If that does not do, {cure}"
        )
    return f"index {slot} has recall@10 {recall:.3f} at ef_search {ef_search}, the target is {target}. Cure: {cure}"


def put_to_use(conn: Connection) -> None:
    """Have searches use the `ef_search` that the published generations need."""
    # One setting a model: a search over all sources needs the largest that any of them does.
    conn.execute(
        """
        UPDATE embedding_assets.models SET ef_search = needed.ef_search
        FROM (
            SELECT slot, max(ef_search) AS ef_search
            FROM embedding_assets.recall JOIN embedding_assets.generations ON id = generation
            WHERE state = 'published' GROUP BY slot
        ) AS needed
        WHERE needed.slot = models.slot AND needed.ef_search <> models.ef_search
        """
    )
