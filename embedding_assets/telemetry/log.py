"""The log as a sink: a line now and then of what is waited for, since when, and until when."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from embedding_assets.telemetry.events import AnswerAwaited, Event, LockAwaited, RecoveryAwaited, RetryAwaited, Tell

_log = logging.getLogger(__name__)

Wait = LockAwaited | AnswerAwaited | RecoveryAwaited | RetryAwaited

EVERY_SECONDS: Final = 10.0
"""Of waiting, after which there is a line, and another one."""


def waits_logged(warn: Callable[[str], None] = _log.warning) -> Tell:
    """A sink that writes a line for each ten seconds that something was waited for, and none for a shorter wait."""
    logged_at: dict[str, float] = {}
    """By what is waited for: seconds of its wait at which the last line was written."""

    def log(event: Event) -> None:
        if not isinstance(event, Wait):
            return
        last = logged_at.get(event.what, 0.0)
        if event.seconds < last:  # another wait for the same
            last = 0.0
        is_due = event.seconds - last >= EVERY_SECONDS
        logged_at[event.what] = event.seconds if is_due else last
        if is_due:
            warn(line_of(event))

    return log


def line_of(event: Wait) -> str:
    """What is waited for, since when, and until when, as times of the day."""
    since = _clock(-event.seconds)
    match event:
        case LockAwaited():
            return f"{event.what}: waiting for another run since {since}: {event.holder}"
        case AnswerAwaited():
            return f"{event.what}: no answer since {since}; a request is given up after {event.timeout_seconds:g} s"
        case RecoveryAwaited():
            next_at = f"the next request goes at {_clock(event.pause_seconds)}"
            again = next_at if event.pause_seconds > 0 else "it is asked again"
            end = _clock(event.left_seconds)
            return f"{event.what}: no sound answer since {since} ({event.trouble}); {again}, until {end} at the latest"
        case RetryAwaited():
            until = _clock(event.left_seconds)
            return f"{event.what} waits since {since} until {until}, then tries again: {event.trouble}"


def _clock(seconds: float) -> str:
    """The time of day in so many seconds."""
    return f"{datetime.now() + timedelta(seconds=seconds):%H:%M:%S}"
