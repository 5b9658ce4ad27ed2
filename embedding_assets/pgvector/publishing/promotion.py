"""From one model to the other: which slot searches read, switched in one short transaction.

The view, the functions and the registry switch together, for they all read the registry; only the view has to be made
anew. Readers wait for that alone. The model that was live before stays filled, and is what one rolls back to, until it
is retired.
"""

import time
from typing import Any, Literal, NamedTuple

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.locks import schema_lock, short_transaction
from embedding_assets.pgvector.schema import roles
from embedding_assets.pgvector.schema.models import (
    BoundModel,
    bound_models,
    describe,
    empty_slot,
    kept_until,
    live_slot,
    note_change,
    unfilled,
)
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.slots import Slot, other

Direction = Literal["promoted", "rolled back"]


class Switch(NamedTuple):
    """A switch of the live model; `before` is None where none was live. `milliseconds` is the most that a reader of the
    view waited: from asking for its lock to the commit."""

    before: Slot | None
    after: Slot
    milliseconds: float


def promote(
    conn: Connection,
    slot: Slot,
    direction: Direction = "promoted",
    *,
    reason: str | None = None,
    evidence: Any = None,
    forced: bool = False,
) -> Switch | None:
    """Make a slot's model the live one; None where it is already.

    Raises PermanentError where the slot is empty, or not every source has vectors of it, which no force overrules:
    searches would lack documents. Raises TransientError where readers would not let go of the view.
    """

    def switch() -> tuple[Slot | None, float] | None:
        schema_lock(conn)
        models = bound_models(conn)
        if slot in models and models[slot].live:
            return None
        model = _filled(conn, models.get(slot), slot)
        before = live_slot(conn)
        # Cleared first: two rows must not be live for a moment.
        conn.execute("UPDATE embedding_assets.models SET live = false, superseded_at = now() WHERE live")
        conn.execute(
            "UPDATE embedding_assets.models SET live = true, live_since = now(), superseded_at = NULL WHERE slot = %s",
            [slot],
        )
        note_change(conn, direction, slot, model.model, reason=reason, evidence=evidence, forced=forced)
        failpoint(Failpoint.SWITCH_RECORDED)
        began = time.perf_counter()
        conn.execute("SELECT embedding_assets.show_live_model()")
        failpoint(Failpoint.SWITCH_SHOWN)
        return before, began

    if live_slot(conn) == slot:  # asked without a lock
        return None
    with roles.with_way_out(conn, "switching the live model"):
        switched = short_transaction(conn, f"making {slot} the live model", switch)
    if switched is None:
        return None
    before, began = switched
    milliseconds = (time.perf_counter() - began) * 1000
    failpoint(Failpoint.SWITCH_COMMITTED)
    return Switch(before, slot, milliseconds)


def retire(conn: Connection, slot: Slot, *, validation_days: float, reason: str | None = None, forced: bool) -> bool:
    """Empty a slot that was live before the present one; False where it is empty already.

    Its column is made anew in the catalog alone and its indexes go with it: readers wait for milliseconds. Every
    source's next load is without it. Raises PermanentError where it is live, or was within the last `validation_days`
    and this is not forced.
    """

    def empty() -> bool:
        schema_lock(conn)
        bound = bound_models(conn).get(slot)
        if bound is None:
            return False
        if bound.live:
            raise PermanentError(
                f"slot {slot} is live with model {describe(bound.model)}: retired, nothing would be found. Cure: "
                f"embedding-assets migration promote --to {other(slot)} first"
            )
        until = kept_until(conn, slot, validation_days)
        if until is not None and not forced:
            raise PermanentError(
                f"slot {slot} was live until {bound.superseded_at:%Y-%m-%d %H:%M} UTC, and is kept to roll back to "
                f"until {until:%Y-%m-%d %H:%M} UTC. Cure: wait until then, set migration: {{validation_days: …}}, "
                "or add --force"
            )
        empty_slot(conn, slot, "retired", reason=reason, forced=forced and until is not None)
        failpoint(Failpoint.RETIRE_EMPTIED)
        return True

    with roles.with_way_out(conn, "retiring a model"):
        emptied = short_transaction(conn, f"retiring {slot}", empty)
    failpoint(Failpoint.RETIRE_COMMITTED)
    return emptied


def _filled(conn: Connection, model: BoundModel | None, slot: Slot) -> BoundModel:
    if model is None:
        raise PermanentError(
            f"slot {slot} is empty, no model is bound to it. Cure: bind one under models.{slot}, run embedding-assets "
            f"materialize, then embedding-assets migration promote --to {slot}"
        )
    missing = unfilled(conn)
    if missing:
        raise PermanentError(
            f"slot {slot} cannot become live: it has no vectors yet for source "
            f"{', '.join(repr(source) for source in missing)}. Cure: embedding-assets materialize, then "
            f"embedding-assets migration promote --to {slot}"
        )
    return model
