"""How a run tells what it is doing while it does it."""

import time
from typing import Final, Protocol

import dagster as dg

_EVERY_SECONDS: Final = 5.0


class ProgressDisplay(Protocol):
    """Where progress is shown."""

    def show(self, context: dg.AssetExecutionContext, phase: str, done: int, total: int | None, detail: str) -> None:
        """`done` of `total` (None: unknown) of a phase, with a word on rates or what is waited for."""


class LoggedProgress:
    """Progress as lines of the run's log, at most one every few seconds a phase, with the time that is left."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}

    def show(self, context: dg.AssetExecutionContext, phase: str, done: int, total: int | None, detail: str) -> None:
        now = time.monotonic()
        began, done_then = self._first.setdefault(phase, (now, done))
        if now - self._last.get(phase, 0.0) < _EVERY_SECONDS and done != total:
            return
        self._last[phase] = now
        gained = done - done_then
        left = f", {_minutes((total - done) * (now - began) / gained)} left" if total and 0 < gained < total else ""
        context.log.info(
            f"{phase}: {done:,}{f' of {total:,}' if total else ''} {detail}{left if done != total else ''}"
        )


class HarmlessProgress:
    """Another display, which fails no step: when it raises the log says so, and the run goes on without it."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display: ProgressDisplay | None = display

    def show(self, context: dg.AssetExecutionContext, phase: str, done: int, total: int | None, detail: str) -> None:
        if self._display is None:
            return
        try:
            self._display.show(context, phase, done, total, detail)
        except Exception as error:
            self._display = None
            context.log.warning(f"No more progress is shown, the run goes on: {type(error).__name__}: {error}")


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )
