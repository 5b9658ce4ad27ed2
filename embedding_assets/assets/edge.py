"""What every asset has in common: where it runs, how it is retried, and how a domain error reaches Dagster."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.snapshot import Snapshot

PATIENT: Final = dg.RetryPolicy(
    # 2, 6 and 14 seconds at most: longer trouble is the run's, the schedule's or the sensor's to try again.
    max_retries=3,
    delay=2,
    backoff=dg.Backoff.EXPONENTIAL,
    jitter=dg.Jitter.FULL,
)

SNAPSHOT: Final = dg.PythonObjectDagsterType(Snapshot, name="Snapshot")
"""What a snapshot asset hands on. Said to Dagster by name: with checks on the asset it reads a return annotation of
`MaterializeResult` as "nothing"."""


@contextmanager
def domain_errors(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Tell Dagster what an error of the pipeline means: wait as told, try again, or stop and call somebody."""
    try:
        yield
    except PermanentError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"error": type(error).__name__, "asset": context.asset_key.to_user_string()},
            allow_retries=False,
        ) from error
    except TransientError as error:
        wait = getattr(error, "retry_after_seconds", None)
        if wait is None:
            raise
        context.log.warning(f"{error} Trying again in {wait:.0f} s, as told.")
        raise dg.RetryRequested(max_retries=PATIENT.max_retries, seconds_to_wait=wait) from error


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
