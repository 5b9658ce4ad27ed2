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
    """Progress as lines of the run's log, at most one every few seconds a phase."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def show(self, context: dg.AssetExecutionContext, phase: str, done: int, total: int | None, detail: str) -> None:
        now = time.monotonic()
        if now - self._last.get(phase, 0.0) < _EVERY_SECONDS and done != total:
            return
        self._last[phase] = now
        context.log.info(f"{phase}: {done:,}{f' of {total:,}' if total else ''} {detail}".rstrip())
