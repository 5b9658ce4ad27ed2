"""How the last attempt at each stage of a source ended on this machine: what `status` tells beside what is committed.

The logs say what was committed, and nothing of a run that committed nothing: a folder that cannot be read, a guard that
stopped the source, a budget that was spent. One small file a stage, below the home; losing it loses that sentence.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.folders import make_folder

SWEEP: Final = "sweep"
"""The sensor's look at names, sizes and times: no stage, and like one it may fail."""


class Ended(BaseModel):
    """How a stage last ended: when it last went well, and why not since."""

    succeeded_at: datetime | None = None
    failed_at: datetime | None = None
    error: str | None = None
    """None where the last attempt went well."""
    permanent: bool = False
    """Whether somebody has to act before another attempt can go well."""


@contextmanager
def noted(home: Path, source: str, stage: str) -> Iterator[None]:
    """Note how what is inside ends. That it can't be noted fails nothing."""
    try:
        yield
    except Exception as error:
        note(home, source, stage, error)
        raise
    note(home, source, stage)


def note(home: Path, source: str, stage: str, error: Exception | None = None) -> None:
    """Note that a stage has ended now, well or with this error."""
    now = datetime.now(UTC)
    if error is None:
        outcome = Ended(succeeded_at=now)
    else:
        before = last(home, source, stage) or Ended()
        outcome = Ended(
            succeeded_at=before.succeeded_at,
            failed_at=now,
            error=str(error) or type(error).__name__,
            permanent=isinstance(error, PermanentError),
        )
    file = _file(home, source, stage)
    # Two processes may note at once: each writes a file of its own, and the last one stays.
    partial = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        make_folder(file.parent)
        partial.write_text(outcome.model_dump_json())
        partial.replace(file)


def last(home: Path, source: str, stage: str) -> Ended | None:
    """How the stage last ended; None where that is not known."""
    try:
        return Ended.model_validate_json(_file(home, source, stage).read_bytes())
    except (OSError, ValidationError):
        return None


def folder(home: Path, source: str) -> Path:
    """Where a source's outcomes lie."""
    return home / "outcomes" / source


def _file(home: Path, source: str, stage: str) -> Path:
    return folder(home, source) / f"{stage}.json"
