"""What every asset has in common: how it is retried, stopped and timed, and how a domain error reaches Dagster."""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import dagster as dg

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.healing import heal
from embedding_assets.operations.outcomes import noted
from embedding_assets.orchestration.assets.waits import tell_of_wait
from embedding_assets.orchestration.checks import inline
from embedding_assets.snapshots import log
from embedding_assets.snapshots.draft import Draft
from embedding_assets.snapshots.layers import LayerDamaged
from embedding_assets.snapshots.names import SOURCE_ASSETS
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.telemetry.events import Tell, committed
from embedding_assets.telemetry.log import waits_logged

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


Declared = Callable[[Callable[..., Any]], dg.AssetsDefinition]


def stage_asset(
    name: str,
    partitions: dg.PartitionsDefinition[str],
    kinds: set[str],
    checks: Sequence[dg.AssetCheckSpec],
    **more: Any,
) -> Declared:
    """Declares an asset of the flow: what all seven have alike, once."""
    declared: Declared = dg.asset(
        name=name,
        partitions_def=partitions,
        group_name="documents_to_search",
        kinds=kinds,
        retry_policy=PATIENT,
        check_specs=checks,
        **more,
    )
    return declared


def snapshot_asset(
    name: str,
    partitions: dg.PartitionsDefinition[str],
    kinds: set[str],
    checks: Sequence[dg.AssetCheckSpec],
    **more: Any,
) -> Declared:
    """Declares an asset whose value is a snapshot: the next one finds it in its log."""
    return stage_asset(name, partitions, kinds, checks, io_manager_key="snapshots", dagster_type=SNAPSHOT, **more)


WAITS_INSIDE: Final = "embedding-assets/waits_inside"
"""The tag of a run that waits within the step for what a provider asks. Dagster's own wait between two attempts would
leave the pool to others, and hear no signal until it is over: at a terminal that is Ctrl-C without an answer."""

_stopped: Final[set[str]] = set()
"""Runs that were told to stop. Dagster would retry the step that a signal interrupts, and then go on to the next."""


def was_stopped(run_id: str) -> bool:
    """Whether a signal ended this run of this process."""
    return run_id in _stopped


@contextmanager
def at_work(context: dg.AssetExecutionContext, deployment: Deployment, tell: Tell) -> Iterator[None]:
    """What every asset does its work in: no other process of this machine writes the partition, how a source's stage
    ends is noted, and an error of the pipeline means something to Dagster."""
    asset, partition = context.asset_key.to_user_string(), context.partition_key
    ends = noted(deployment.home, partition, asset) if asset in SOURCE_ASSETS else nullcontext()
    with domain_errors(context, deployment), ends, deployment.sole_writer(asset, *partition.split("|"), tell=tell):
        yield


def commit(
    store: Store, draft: Draft, checks: Sequence[dg.AssetCheckResult], tell: Tell, *, derived_in: Store | None = None
) -> Generator[dg.AssetCheckResult, None, Snapshot]:
    """Append to its log a draft that no check refuses; else tell the verdicts, and raise CheckFailed."""
    yield from inline.judged(draft, checks)
    snapshot = log.append(store, draft, derived_in=derived_in)
    tell(committed(snapshot))
    return snapshot


def handed_on(
    snapshot: Snapshot, metadata: Mapping[str, Any], checks: Sequence[dg.AssetCheckResult]
) -> dg.MaterializeResult:
    """What a snapshot asset hands on, and what it tells of it."""
    version = dg.DataVersion(snapshot.root)
    return dg.MaterializeResult(value=snapshot, data_version=version, metadata=metadata, check_results=checks)


@contextmanager
def domain_errors(context: dg.AssetExecutionContext, deployment: Deployment) -> Iterator[None]:
    """Tell Dagster what an error of the pipeline means: wait as asked, try again, or stop and call somebody.

    A part that is lost or damaged is healed, if any store has it; then the step is tried again.
    """
    if was_stopped(context.run.run_id):
        raise _stop(context)
    try:
        yield
    except dg.DagsterExecutionInterruptedError as signalled:
        raise _stop(context) from signalled
    except PermanentError as error:
        if isinstance(error, LayerDamaged) and heal(deployment, error):
            raise TransientError(f"{error.what} It was put back. Cure: run again.") from error
        raise dg.Failure(
            description=str(error),
            metadata={"error": type(error).__name__, "asset": context.asset_key.to_user_string()},
            allow_retries=False,
        ) from error
    except TransientError as error:
        wait = getattr(error, "retry_after_seconds", None)
        if wait is None:
            raise
        context.log.warning(f"{error} Trying again in {wait:.0f} s, as it asked.")
        if context.retry_number < PATIENT.max_retries:
            tell_of_wait(
                f"{context.asset_key.to_user_string()} of {context.partition_key}", str(error), wait, waits_logged()
            )
        if context.run.tags.get(WAITS_INSIDE) and context.retry_number < PATIENT.max_retries:
            wait = _waited(context, wait)
        raise dg.RetryRequested(max_retries=PATIENT.max_retries, seconds_to_wait=wait) from error


def _waited(context: dg.AssetExecutionContext, seconds: float) -> float:
    """Wait here, where a signal is heard; what is left to wait."""
    try:
        time.sleep(seconds)
    except dg.DagsterExecutionInterruptedError as signalled:
        raise _stop(context) from signalled
    return 0.0


def _stop(context: dg.AssetExecutionContext) -> dg.Failure:
    _stopped.add(context.run.run_id)
    return dg.Failure(
        description="Told to stop (SIGTERM or SIGINT). What was done stays; run again to go on from there.",
        allow_retries=False,
    )


@contextmanager
def drained_on_signal(context: dg.AssetExecutionContext) -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets, so that the asset ends what is in flight before the run stops.

    A second signal has the effect that it has anywhere, at once. Outside the main thread Python delivers no signal, and
    nothing is set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: object) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        restore()
        if stop.is_set():
            raise _stop(context)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
