"""Errors as they travel from a worker: what decides the next step comes back as the class that it was."""

import traceback
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.layers import LayerDamaged
from embedding_assets.snapshots.snapshot import Layer
from embedding_assets.snapshots.stores import opened
from embedding_assets.sources.parts import CatalogStale


class WorkerLost(TransientError):
    """Each worker that was given a task died of it."""


_CLASSES: Final[dict[str, type[TransientError] | type[PermanentError]]] = {
    "stale": CatalogStale,
    "lost": WorkerLost,
    "transient": TransientError,
    "permanent": PermanentError,
}


class Damage(BaseModel):
    """Of a layer: whoever can heal it needs to know where it lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    """Its URL."""
    source: str
    layer: Layer
    words: str
    """What is wrong with it."""


class Failure(BaseModel):
    """An error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["damaged", "stale", "lost", "transient", "permanent", "fault"]
    """A fault is one of the code."""
    message: str
    damage: Damage | None = None
    retry_after_seconds: float | None = None


class WorkerFault(Exception):
    """Work failed by an error that nobody has named: the message is its traceback."""


def failure_of(error: Exception) -> Failure:
    """The error as it travels."""
    if isinstance(error, LayerDamaged):
        damage = Damage(store=error.store.url, source=error.source, layer=error.layer, words=error.words)
        return Failure(kind="damaged", message=str(error), damage=damage)
    for kind, named in _CLASSES.items():
        if isinstance(error, named):
            wait = getattr(error, "retry_after_seconds", None)
            return Failure.model_validate({"kind": kind, "message": str(error), "retry_after_seconds": wait})
    return Failure(kind="fault", message="".join(traceback.format_exception(error)))


def raised(failure: Failure) -> Exception:
    """What is to be raised for it."""
    if failure.damage is not None:
        damage = failure.damage
        return LayerDamaged(opened(damage.store), damage.source, damage.layer, damage.words)
    if failure.kind not in _CLASSES:
        return WorkerFault(failure.message)
    error = _CLASSES[failure.kind](failure.message)
    if failure.retry_after_seconds is not None:
        error.retry_after_seconds = failure.retry_after_seconds  # type: ignore[union-attr]
    return error
