"""From one model to the next, region by region: promoted, rolled back to, retired."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, NamedTuple

from embedding_assets.errors import PermanentError, PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.gates import gates
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.publishing import promotion
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.pgvector.schema.models import bound_models, live_slot
from embedding_assets.snapshots.slots import SLOTS, Slot, other


class Step(NamedTuple):
    """What became of one region: `did` says it in words; `failed` where it is not as wanted, and nothing follows."""

    region: str
    did: str
    failed: bool
    milliseconds: float | None = None
    """The most that readers of the view waited for a switch."""


class Version(NamedTuple):
    """A slot of a region, as the registry has it."""

    region: str
    slot: Slot
    state: Literal["empty", "back-filling", "ready", "live", "retiring"]
    model: str | None
    dimensions: int | None
    provider: str | None
    type: str | None
    live_since: datetime | None
    superseded_at: datetime | None


class Change(NamedTuple):
    """A change of the registry."""

    region: str
    changed_at: datetime
    role: str
    change: str
    slot: Slot
    model: dict[str, Any]
    reason: str | None
    evidence: Any
    forced: bool


def versions(deployment: Deployment, region: str) -> list[Version]:
    """Both slots of a region and their states. Raises TransientError where it can't be asked."""
    with _asked(deployment, region) as conn:
        if not is_migrated(conn):
            return [Version(region, slot, "empty", *[None] * 6) for slot in SLOTS]
        rows = conn.execute(
            "SELECT slot, state, name, dimensions, provider, type, live_since, superseded_at "
            "FROM embedding_assets.model_versions ORDER BY slot"
        )
        return [Version(region, *row) for row in rows]


def changes(deployment: Deployment, region: str) -> list[Change]:
    """All that the registry of a region was changed by, oldest first."""
    with _asked(deployment, region) as conn:
        if not is_migrated(conn):
            return []
        rows = conn.execute(
            "SELECT changed_at, role, change, slot, model, reason, evidence, forced "
            "FROM embedding_assets.model_changes ORDER BY id"
        )
        return [Change(region, *row) for row in rows]


def candidate(deployment: Deployment, region: str, *, never_live: bool = False) -> Slot | None:
    """The slot that might be promoted in a region: the one that is not live, if a model is bound to it; if it was never
    live, where that is asked for."""
    with _asked(deployment, region) as conn:
        models = bound_models(conn) if is_migrated(conn) else {}
    waiting = (slot for slot, bound in models.items() if not (bound.live or (never_live and bound.superseded_at)))
    return next(waiting, None)


def promote(
    deployment: Deployment, to: Slot, regions: Sequence[str], *, reason: str | None = None, force: bool = False
) -> Iterator[Step]:
    """Make a slot's model the live one, region by region, and stop at the first that fails.

    Nothing is switched anywhere while a gate is red in any of these regions, unless it is forced, which is recorded. A
    region where it is live already is left alone: so the same call goes on where one was stopped.
    """
    asked = {region: [] if _is_live(deployment, region, to) else gates(deployment, region, to) for region in regions}
    refused = [gate for region in regions for gate in asked[region] if gate.state == "red"]
    if refused and not force:
        yield from (Step(gate.region, f"not promoted: {gate}", failed=True) for gate in refused)
        return
    for region in regions:
        evidence = [gate.as_json() for gate in asked[region]]
        forced = any(gate.state == "red" for gate in asked[region])

        def switch(conn: Connection, evidence: Any = evidence, forced: bool = forced) -> promotion.Switch | None:
            return promotion.promote(conn, to, reason=reason, evidence=evidence, forced=forced)

        step = _switched(deployment, region, to, "promoted", switch)
        yield step
        if step.failed:
            return


def roll_back(deployment: Deployment, regions: Sequence[str], *, reason: str | None = None) -> Iterator[Step]:
    """Undo the last promotion, region by region, and stop at the first that fails.

    The model before it is still filled and indexed, so no gate is asked. A region that was rolled back already is left
    alone.
    """
    for region in regions:
        try:
            to = _before_the_last_promotion(deployment, region)
        except PipelineError as error:
            yield Step(region, str(error), failed=True)
            return
        step = _switched(
            deployment,
            region,
            to,
            "rolled back to",
            lambda conn, to=to: promotion.promote(conn, to, "rolled back", reason=reason),  # type: ignore[misc]
        )
        yield step
        if step.failed:
            return


def retire(
    deployment: Deployment, slot: Slot, regions: Sequence[str], *, reason: str | None = None, force: bool = False
) -> Iterator[Step]:
    """Empty a slot that is not live any more, region by region, and stop at the first that fails.

    The settings must not bind a model to it: the next run would fill it again.
    """
    if slot in deployment.settings.models:
        yield Step(
            ", ".join(regions),
            f"not retired: the settings bind {deployment.settings.models[slot].model} to {slot}, so that the next run "
            f"would fill it again. Cure: take the line models.{slot} out of the settings (and say live_model: "
            f"{other(slot)}, if anything), then this again",
            failed=True,
        )
        return
    days = deployment.settings.migration.validation_days
    for region in regions:
        try:
            with _asked(deployment, region) as conn:
                did = promotion.retire(conn, slot, validation_days=days, reason=reason, forced=force)
        except PipelineError as error:
            yield Step(region, str(error), failed=True)
            return
        yield Step(region, f"{slot} is retired" if did else f"{slot} is empty already", failed=False)


def _switched(
    deployment: Deployment, region: str, to: Slot, verb: str, switch: Callable[[Connection], promotion.Switch | None]
) -> Step:
    try:
        with _asked(deployment, region) as conn:
            switched = switch(conn)
            name = bound_models(conn)[to].model.name
    except PipelineError as error:
        return Step(region, str(error), failed=True)
    if switched is None:
        return Step(region, f"{to} ({name}) is live already", failed=False)
    held = f"readers waited {switched.milliseconds:.1f} ms at most"
    return Step(region, f"{verb} {to} ({name}): {held}", failed=False, milliseconds=switched.milliseconds)


def _is_live(deployment: Deployment, region: str, slot: Slot) -> bool:
    try:
        with _asked(deployment, region) as conn:
            return is_migrated(conn) and live_slot(conn) == slot
    except PipelineError:  # its gates say so
        return False


def _before_the_last_promotion(deployment: Deployment, region: str) -> Slot:
    with _asked(deployment, region) as conn:
        row = (
            conn.execute(
                "SELECT slot FROM embedding_assets.model_changes WHERE change = 'promoted' ORDER BY id DESC LIMIT 1"
            ).fetchone()
            if is_migrated(conn)
            else None
        )
        models = bound_models(conn) if row else {}
    to = other(row[0]) if row else None
    if to is None or to not in models or not (models[to].live or models[to].superseded_at):
        raise PermanentError(
            "there is nothing to roll back to: no other model was live here, or it was retired. Cure: embedding-assets "
            "migration status says what is bound; migration promote --to it"
        )
    return to


@contextmanager
def _asked(deployment: Deployment, region: str) -> Iterator[Connection]:
    with deployment.connect(region) as conn, pipeline_errors(f"asking the registry of region {region}"):
        yield conn
