"""Where the events of a step go: to whoever shows progress, and to the step's own hooks."""

import logging
import time
from typing import Final, NamedTuple, Protocol

import dagster as dg

from embedding_assets.telemetry.events import (
    EmbeddingProgress,
    EngineProgress,
    Event,
    IndexProgress,
    ItemRead,
    LoadProgress,
    LockAwaited,
    SnapshotCommitted,
    TaskSettled,
    Tell,
)
from embedding_assets.telemetry.log import waits_logged

_EVERY_SECONDS: Final = 5.0


class Progress(NamedTuple):
    """`done` of `total` (None: unknown) of a phase, with a word on what is counted, on rates or what is waited for."""

    phase: str
    done: int
    total: int | None
    detail: str


class ProgressDisplay(Protocol):
    """Where progress is shown."""

    def show(self, progress: Progress) -> None:
        """Show how far a phase is by now; it is at its end where all is done."""


class Telemetry:
    """Makes the sink of each step of a run.

    A display that fails fails no step: the log says so, and the run goes on without it.
    """

    def __init__(self, display: ProgressDisplay | None = None) -> None:
        """Without a display, progress is lines of the run's log."""
        self._display = display
        self._is_broken = False

    def of(self, context: dg.AssetExecutionContext, *hooks: Tell) -> Tell:
        """What the step tells its events: the display, the log of waits, and its own hooks."""
        display = self._display or LoggedProgress(context.log)
        hooks = (waits_logged(), *hooks)
        asset, partition = context.asset_key.to_user_string(), context.partition_key

        def tell(event: Event) -> None:
            for hook in hooks:
                hook(event)
            progress = progress_of(event, asset, partition)
            if progress is None or self._is_broken:
                return
            try:
                display.show(progress)
            except Exception as error:
                self._is_broken = True
                context.log.warning(f"No more progress is shown, the run goes on: {type(error).__name__}: {error}")

        return tell


def progress_of(event: Event, asset: str, partition: str) -> Progress | None:
    """What an event of this asset and partition says to whoever watches; None where it is not for them."""
    phase = f"{asset} of {partition}"
    match event:
        case LockAwaited():
            return Progress(phase, round(event.seconds), None, f"s waited for another run: {event.holder}")
        case ItemRead():
            return Progress(phase, event.items, None, "items read")
        case TaskSettled():
            return Progress(phase, event.settled, event.tasks, "shards")
        case EmbeddingProgress():
            return Progress(phase, event.rows, event.all_rows, _rates(event.engine))
        case SnapshotCommitted():
            return Progress(phase, event.rows, event.rows, "rows committed")
        case LoadProgress():
            return Progress(phase, event.rows, event.all_rows, "rows")
        case IndexProgress():
            phase = f"{asset} {event.slot} of {partition}"
            return Progress(phase, event.vectors, event.all_vectors, f"vectors, {event.phase}")
        case _:
            return None


def _rates(now: EngineProgress) -> str:
    """What somebody who watches wants to know besides how far it is."""
    seconds = max(now.seconds, 1e-9)
    cost = f", {now.cost_usd:.2f} USD" if now.cost_usd else ""
    waits = f", {now.throttled} × 429, {now.retries} retries" if now.throttled or now.retries else ""
    breaker = ", provider down: waiting" if now.breaker_open else ""
    return f"{now.texts / seconds:,.0f} vectors/s, {now.tokens / seconds:,.0f} tokens/s{cost}{waits}{breaker}"


class LoggedProgress:
    """Progress as lines of a step's log, at most one every few seconds a phase, with the time that is left."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._shown_at: dict[str, float] = {}
        self._first: dict[str, tuple[float, Progress]] = {}

    def show(self, progress: Progress) -> None:
        """See `ProgressDisplay`."""
        now, (phase, done, total, detail) = time.monotonic(), progress
        began, first = self._first.setdefault(phase, (now, progress))
        if first.total != total:  # something else is counted from now on
            began, first = self._first[phase] = now, progress
        if now - self._shown_at.get(phase, 0.0) < _EVERY_SECONDS and done != total:
            return
        self._shown_at[phase] = now
        gained = done - first.done
        left = f", {_minutes((total - done) * (now - began) / gained)} left" if total and 0 < gained < total else ""
        self._log.info(f"{phase}: {done:,}{f' of {total:,}' if total else ''} {detail}{left if done != total else ''}")


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )
