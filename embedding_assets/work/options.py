"""Options of the work on shards: who does it."""

import os
import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from embedding_assets.errors import PermanentError, Problem
from embedding_assets.options import Options

_BROKER: Final = re.compile(r"(amqps?|rediss?)://\S+")


def _variable(value: str) -> str:
    if not re.fullmatch(r"env:[A-Za-z_]\w*", value):
        raise Problem("not a variable", "write env:NAME, and put the broker's URL with its password there")
    return value


class WorkOptions(Options):
    """Who works on the shards inside a step: this machine, or workers behind a broker."""

    backend: Literal["local", "celery"] = "local"
    broker: Annotated[str, AfterValidator(_variable)] | None = None
    """`env:NAME`: the variable that holds the broker's URL, for `celery`."""
    overdue_seconds: Annotated[float, Field(gt=0)] = 960
    """A step that hears nothing for so long sends again what it waits for. A task may take 900 s (`work/celery.py`)."""
    patience_seconds: Annotated[float, Field(gt=0)] = 3600
    """A step that hears nothing for so long gives up."""

    @model_validator(mode="after")
    def _has_a_broker(self) -> Self:
        if self.backend == "celery" and self.broker is None:
            raise Problem("workers need a broker", "add `broker: env:NAME`, where that variable holds its URL")
        return self

    def broker_url(self) -> str:
        """The broker's URL. Raises PermanentError where its variable has none, without repeating what it has."""
        name = (self.broker or "").removeprefix("env:")
        found = os.environ.get(name, "")
        if not _BROKER.fullmatch(found):
            raise PermanentError(
                f"the broker is env:{name}, and that variable {'holds no broker' if found else 'is not set'}. "
                f"Cure: set {name} to amqp://user:password@host:5672/vhost, amqps://…, redis://… or rediss://…"
            )
        return found
