"""What the options of every package have in common. Each has its own `options.py`, and the settings compose them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Frozen, and refuses what it does not know. No error repeats an input, which may be a DSN with a password."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


Share = Annotated[float, Field(ge=0, le=1, strict=True)]
"""From none of it, 0, to all of it, 1."""
