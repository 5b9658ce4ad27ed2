"""What the slots are bound to: the models' columns, and the view of the live one."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.locks import schema_lock, short_transaction
from embedding_assets.pgvector.options import VALIDATION_DAYS
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
    chunking: Mapping[str, Any]
    """By source, how the texts are cut that its vectors are of."""
    superseded_at: datetime | None
    """When another model was promoted in its place."""


def ensure_models(
    conn: Connection,
    models: Mapping[Slot, Model],
    first: Slot,
    chunking: Mapping[str, Any] | None = None,
    validation_days: float = VALIDATION_DAYS,
) -> None:
    """Have the columns of both slots, their recorded binding, and the search surface of the live one.

    A slot without a model is empty: its column has NULL alone. A slot that is not live may be bound to another model,
    or be emptied: its column is made anew, empty, and every source's next generation is loaded with it. Where no slot
    is live yet, `first` is from now on; which one is live is the registry's fact else, and `promote` and `roll_back`
    alone change it. `chunking` is how each source's texts are cut. Raises PermanentError, before anything is changed,
    where a model has too many dimensions, where the slot that is live would be emptied or bound to another model, or
    where a slot would be that was live within the last `validation_days`.
    """
    if first not in models:
        raise PermanentError(
            f"the models bound are {', '.join(sorted(models)) or 'none'}, the first one to be live is {first}. Cure: "
            f"bind a model to {first} under models, or name one that is bound as live_model"
        )
    for model in models.values():
        vector_type(model.dimensions)
    with roles.with_way_out(conn, "binding the models in the region's database"):
        if _is_as(conn, models, chunking):
            return
        short_transaction(conn, "binding the models", lambda: _bind(conn, models, first, chunking, validation_days))
        failpoint(Failpoint.MODELS_BOUND)


def _is_as(conn: Connection, models: Mapping[Slot, Model], chunking: Mapping[str, Any] | None) -> bool:
    present = bound_models(conn)
    return (
        {slot: bound.model for slot, bound in present.items()} == {slot: m.recorded for slot, m in models.items()}
        and any(bound.live for bound in present.values())
        and (chunking is None or all(bound.chunking == chunking for bound in present.values()))
    )


def bound_models(conn: Connection) -> dict[Slot, BoundModel]:
    """The slots' models as recorded, by slot; empty before the first load."""
    rows = conn.execute(
        "SELECT slot, live, ef_search, chunking, superseded_at, name, dimensions, provider, halfvec, endpoint "
        "FROM embedding_assets.models ORDER BY slot"
    )
    return {
        slot: BoundModel(
            slot, Model(name, dimensions, provider, halfvec, (), endpoint), live, ef_search, chunking, superseded_at
        )
        for slot, live, ef_search, chunking, superseded_at, name, dimensions, provider, halfvec, endpoint in rows
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


def describe(model: Model) -> str:
    """The model as messages name it."""
    return f"{model.name} ({model.type.name}({model.type.dimensions}))"


def note_change(
    conn: Connection,
    change: str,
    slot: Slot,
    model: Model,
    *,
    reason: str | None = None,
    evidence: Any = None,
    forced: bool = False,
) -> None:
    """Record a change of the registry, in the transaction that makes it."""
    about = {
        "name": model.name,
        "dimensions": model.dimensions,
        "provider": model.provider,
        "type": f"{model.type.name}({model.type.dimensions})",
    }
    conn.execute(
        "INSERT INTO embedding_assets.model_changes (change, slot, model, reason, evidence, forced) "
        "VALUES (%s, %s, %s, %s, %s, %s)",
        [change, slot, Jsonb(about), reason, None if evidence is None else Jsonb(evidence), forced],
    )


def _bind(
    conn: Connection,
    models: Mapping[Slot, Model],
    first: Slot,
    chunking: Mapping[str, Any] | None,
    validation_days: float,
) -> None:
    schema_lock(conn)
    recorded = bound_models(conn)
    published = is_published(conn)
    for slot, before in recorded.items():
        if not _is_another(models.get(slot), before.model):
            continue
        becomes = f"become {describe(models[slot])}" if slot in models else "be emptied"
        if before.live and published:
            raise PermanentError(
                f"slot {slot} is live with model {describe(before.model)} and cannot {becomes}: searches would find "
                f"nothing until every source is loaded again. Cure: leave models.{slot} as it was. Bind the new model "
                f"to {other(slot)}, run embedding-assets materialize, then embedding-assets migration promote --to "
                f"{other(slot)}"
            )
        _refuse_in_validation(conn, before, becomes, validation_days)
        if before.live:  # nothing is published: nobody misses a row of the view
            conn.execute("UPDATE embedding_assets.models SET live = false WHERE live")
            conn.execute("SELECT embedding_assets.show_live_model()")
    for slot, model in models.items():
        known = recorded.get(slot)
        if known is None or _is_another(model, known.model):
            _renew_column(conn, slot, model.type)
            conn.execute("DELETE FROM embedding_assets.models WHERE slot = %s", [slot])
            note_change(conn, "bound", slot, model)
        elif chunking is not None and any(known.chunking.get(name, cut) != cut for name, cut in chunking.items()):
            note_change(conn, "rechunked", slot, model, evidence={"before": known.chunking, "after": chunking})
        conn.execute(
            """
            INSERT INTO embedding_assets.models (slot, name, dimensions, provider, halfvec, endpoint, chunking, live)
            VALUES (%s, %s, %s, %s, %s, %s, coalesce(%s, '{}'::jsonb), false)
            ON CONFLICT (slot) DO UPDATE
            SET name = excluded.name, dimensions = excluded.dimensions, provider = excluded.provider,
                halfvec = excluded.halfvec, endpoint = excluded.endpoint,
                chunking = CASE WHEN %s THEN excluded.chunking ELSE models.chunking END
            """,
            [
                slot,
                model.name,
                model.dimensions,
                model.provider,
                model.halfvec,
                None if model.endpoint is None else Jsonb(dict(model.endpoint)),
                None if chunking is None else Jsonb(dict(chunking)),
                chunking is not None,
            ],
        )
    for slot in SLOTS:  # the view shows none of these
        if slot not in models:
            empty_slot(conn, slot, "emptied")
    begins = live_slot(conn) is None
    if begins:
        conn.execute("UPDATE embedding_assets.models SET live = true, live_since = now() WHERE slot = %s", [first])
        note_change(conn, "promoted", first, models[first], reason="the first one")
    before_this = {slot: known.model for slot, known in recorded.items()}
    if begins or before_this != {slot: model.recorded for slot, model in models.items()}:
        conn.execute("SELECT embedding_assets.show_live_model()")


def _is_another(model: Model | None, recorded: Model) -> bool:
    """Whether vectors of the recorded model are none of this one, or of another type."""
    return model is None or recorded.name not in (model.name, *model.other_names) or recorded.type != model.type


def _refuse_in_validation(conn: Connection, before: BoundModel, becomes: str, days: float) -> None:
    """A model that was live until a moment ago is what one rolls back to: no edit of the settings alone takes it."""
    until = kept_until(conn, before.slot, days)
    if until is not None:
        raise PermanentError(
            f"slot {before.slot} was live until {before.superseded_at:%Y-%m-%d %H:%M} UTC with model "
            f"{describe(before.model)} and cannot {becomes} before {until:%Y-%m-%d %H:%M} UTC: it is what embedding-"
            f"assets migration rollback goes back to. Cure: leave models.{before.slot} as it was until then, or say "
            f"embedding-assets migration retire {before.slot} --force"
        )


def kept_until(conn: Connection, slot: Slot, validation_days: float) -> datetime | None:
    """When the validation window of a slot's model ends; None where it has ended, or the model was not live before."""
    row = conn.execute(
        "SELECT superseded_at + make_interval(secs => %(seconds)s) FROM embedding_assets.models "
        "WHERE slot = %(slot)s AND superseded_at + make_interval(secs => %(seconds)s) > now()",
        {"slot": slot, "seconds": validation_days * 86_400},
    ).fetchone()
    return row[0] if row else None


def is_published(conn: Connection) -> bool:
    """Whether readers find a generation of any source."""
    return conn.execute(
        "SELECT EXISTS (SELECT FROM embedding_assets.generations WHERE state = 'published')"
    ).fetchone() == (True,)


def empty_slot(conn: Connection, slot: Slot, change: str, *, reason: str | None = None, forced: bool = False) -> None:
    """Have a slot without a model and without vectors, and record it as this change where it had one."""
    bound = bound_models(conn).get(slot)
    column = conn.execute(
        "SELECT FROM pg_attribute WHERE attrelid = 'embedding_assets.chunks'::regclass AND attname = %s",
        [column_of(slot)],
    ).fetchone()
    if bound is not None:
        conn.execute("DELETE FROM embedding_assets.models WHERE slot = %s", [slot])
        note_change(conn, change, slot, bound.model, reason=reason, forced=forced)
    if bound is not None or column is None:
        _renew_column(conn, slot, EMPTY)


def unfilled(conn: Connection) -> list[str]:
    """The published sources that wait to be loaded with the models that are bound now."""
    rows = conn.execute(
        "SELECT source FROM embedding_assets.generations WHERE state = 'published' AND target_root = '' ORDER BY source"
    )
    return [source for (source,) in rows]


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
