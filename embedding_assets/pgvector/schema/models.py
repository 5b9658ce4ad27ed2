"""What the slots are bound to: the models' columns, and the view of the live one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.locks import schema_lock, short_transaction
from embedding_assets.pgvector.rows.vector_types import EMPTY, VectorType, VectorTypes, vector_type
from embedding_assets.pgvector.schema import roles
from embedding_assets.pgvector.schema.generations import drop_tables
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.slots import SLOTS, Slot, column_of, other


class Model(NamedTuple):
    """What a slot is bound to; `name` and `dimensions` identify it.

    `halfvec` keeps 2-byte floats where 4-byte ones could be indexed as well; larger vectors are always kept so.
    `other_names` are of the same model: it may be recorded by one of them. `endpoint` is handed to applications, which
    embed their questions there: no secret may be in it.
    """

    name: str
    dimensions: int
    provider: str
    halfvec: bool = False
    other_names: tuple[str, ...] = ()
    endpoint: Mapping[str, Any] | None = None

    @property
    def recorded(self) -> "Model":
        """As the database records it."""
        return self._replace(other_names=())

    @property
    def bound(self) -> "Model":
        """What decides whose vectors they are, and how they are kept. Runs may reach one model by several addresses."""
        return self._replace(other_names=(), endpoint=None)

    @property
    def type(self) -> VectorType:
        return vector_type(self.dimensions, halfvec=self.halfvec)


class BoundModel(NamedTuple):
    """A slot's model as the database records it, with the `ef_search` that search uses."""

    slot: Slot
    model: Model
    live: bool
    ef_search: int


def ensure_models(conn: Connection, models: Mapping[Slot, Model], live: Slot) -> None:
    """Have the columns of both slots, their recorded binding, and the search surface of the live one.

    A slot without a model is empty: its column has NULL alone. A slot that is not live may be bound to another model,
    or be emptied: its column is made anew, empty, and every source's next generation is loaded with it. `live` may name
    the other slot once every published generation has its index: that is one transaction. Raises PermanentError, before
    anything is changed, where a model has too many dimensions, where the slot that is live would be bound to another
    model, or where the slot to become live is not filled everywhere.
    """
    if live not in models:
        raise PermanentError(
            f"the models bound are {', '.join(sorted(models)) or 'none'}, the live one is {live}. Cure: bind a model "
            f"to {live} under models, or name one that is bound as live_model"
        )
    for model in models.values():
        vector_type(model.dimensions)
    with roles.with_way_out(conn, "binding the models in the region's database"):
        present = bound_models(conn)
        wanted = {slot: model.recorded for slot, model in models.items()}
        if {slot: bound.model for slot, bound in present.items()} == wanted and present[live].live:
            return
        short_transaction(conn, "binding the models", lambda: _bind(conn, models, live))
        failpoint(Failpoint.MODELS_BOUND)


def bound_models(conn: Connection) -> dict[Slot, BoundModel]:
    """The slots' models as recorded, by slot; empty before the first load."""
    rows = conn.execute(
        "SELECT slot, live, ef_search, name, dimensions, provider, halfvec, endpoint "
        "FROM embedding_assets.models ORDER BY slot"
    )
    return {
        slot: BoundModel(slot, Model(name, dimensions, provider, halfvec, endpoint=endpoint), live, ef_search)
        for slot, live, ef_search, name, dimensions, provider, halfvec, endpoint in rows
    }


def is_bound(conn: Connection, models: Mapping[Slot, Model]) -> bool:
    """Whether the slots are bound to these models, whichever is live; asks only."""
    recorded = {slot: bound.model.bound for slot, bound in bound_models(conn).items()}
    return recorded == {slot: model.bound for slot, model in models.items()}


def live_slot(conn: Connection) -> Slot | None:
    """The slot whose model searches read; None before the first load."""
    return next((slot for slot, model in bound_models(conn).items() if model.live), None)


def bound_types(conn: Connection) -> VectorTypes:
    """The types of both slots' columns. Raises PermanentError before `ensure_models`."""
    models = bound_models(conn)
    if not models:
        raise PermanentError("no models are bound in this database yet. Cure: embedding-assets materialize")
    return tuple(models[slot].model.type if slot in models else EMPTY for slot in SLOTS)


def _describe(model: Model) -> str:
    return f"{model.name} ({model.type.name}({model.type.dimensions}))"


def _bind(conn: Connection, models: Mapping[Slot, Model], live: Slot) -> None:
    schema_lock(conn)
    recorded = bound_models(conn)
    published = [
        row[0] for row in conn.execute("SELECT id FROM embedding_assets.generations WHERE state = 'published'")
    ]
    for slot, model in models.items():
        before = recorded.get(slot)
        names = (model.name, *model.other_names)
        if before is None or before.model.name not in names or before.model.type != model.type:
            if before is not None and before.live and published:
                raise PermanentError(
                    f"slot {slot} is live with model {_describe(before.model)} and cannot become {_describe(model)}: "
                    f"searches would find nothing until every source is loaded again. Cure: leave {slot} as it was. "
                    f"Bind the new model to {other(slot)}, materialize every source, then set live_model: {other(slot)}"
                )
            if before is not None and before.live:  # nothing is published: nobody misses a row of the view
                conn.execute("UPDATE embedding_assets.models SET live = false WHERE live")
                conn.execute("SELECT embedding_assets.show_live_model()")
            _renew_column(conn, slot, model.type)
        conn.execute(
            """
            INSERT INTO embedding_assets.models (slot, name, dimensions, provider, halfvec, endpoint, live)
            VALUES (%s, %s, %s, %s, %s, %s, false)
            ON CONFLICT (slot) DO UPDATE
            SET name = excluded.name, dimensions = excluded.dimensions, provider = excluded.provider,
                halfvec = excluded.halfvec, endpoint = excluded.endpoint
            """,
            [
                slot,
                model.name,
                model.dimensions,
                model.provider,
                model.halfvec,
                None if model.endpoint is None else Jsonb(dict(model.endpoint)),
            ],
        )
    if published and not (live in recorded and recorded[live].live):
        _refuse_unfilled(conn, live)
    # Cleared first: two rows must not be live for a moment.
    conn.execute("UPDATE embedding_assets.models SET live = false WHERE live AND slot <> %s", [live])
    conn.execute("UPDATE embedding_assets.models SET live = true WHERE slot = %s", [live])
    conn.execute("SELECT embedding_assets.show_live_model()")
    for slot in SLOTS:  # the view shows none of these any more
        if slot not in models:
            _empty(conn, slot)


def _empty(conn: Connection, slot: Slot) -> None:
    """Have a slot without a model and without vectors."""
    bound = conn.execute("DELETE FROM embedding_assets.models WHERE slot = %s RETURNING slot", [slot]).fetchone()
    column = conn.execute(
        "SELECT FROM pg_attribute WHERE attrelid = 'embedding_assets.chunks'::regclass AND attname = %s",
        [column_of(slot)],
    ).fetchone()
    if bound is not None or column is None:
        _renew_column(conn, slot, EMPTY)


def _renew_column(conn: Connection, slot: Slot, column_type: VectorType) -> None:
    """Make a slot's column anew and empty, in the catalog alone; its indexes go with it.

    Generations not yet published have the old column and could never be attached: they are dropped. Published ones no
    longer hold what their root names: they lose it, so that every source is loaded again.
    """
    conn.execute("UPDATE embedding_assets.generations SET target_root = '' WHERE state = 'published'")
    unfinished = conn.execute("DELETE FROM embedding_assets.generations WHERE state <> 'published' RETURNING id")
    for (generation,) in unfinished.fetchall():
        drop_tables(conn, generation)
    column = sql.Identifier(column_of(slot))
    conn.execute(sql.SQL("ALTER TABLE embedding_assets.chunks DROP COLUMN IF EXISTS {}").format(column))
    conn.execute(
        sql.SQL("ALTER TABLE embedding_assets.chunks ADD COLUMN {} {}({})").format(
            column, sql.SQL(column_type.name), sql.Literal(column_type.dimensions)
        )
    )


def _refuse_unfilled(conn: Connection, slot: Slot) -> None:
    """The column of a slot bound anew has no index until the source is loaded again: by that it is known."""
    missing = conn.execute(
        """
        SELECT source FROM embedding_assets.generations WHERE state = 'published' AND NOT EXISTS (
            SELECT FROM pg_index
            WHERE indexrelid = to_regclass(format('embedding_assets.generation_%%s_%%s', id, %s::text)) AND indisvalid
        ) ORDER BY source
        """,
        [slot],
    ).fetchall()
    if missing:
        raise PermanentError(
            f"slot {slot} cannot become live: it has no vectors yet for source "
            f"{', '.join(repr(source) for (source,) in missing)}. Cure: set models and live_model as "
            "they were, run embedding-assets materialize, then switch"
        )
