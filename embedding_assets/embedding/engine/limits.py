"""Quotas: the buckets kept before sending, and what an answer's headers say about the provider's own.

Pure: every function takes the time. Times are seconds of a monotonic clock, but for HTTP dates.
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

BURST_SECONDS: Final = 1.0
"""Of quota that may leave at once. The provider's own bucket may hold as little as 2 s; the other second takes up
what the network makes of our spacing, so that no 429 follows from it."""

LONGEST_RESET_SECONDS: Final = 2.0
"""How long an empty quota is waited for on the word of `x-ratelimit-reset-*`. OpenAI's is the time until the bucket
is *full* again, up to a minute, while it fills all along: past 2 s we ask, and a 429 says better."""

_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


class Bucket:
    """A token bucket, kept as the time at which it is full again (GCRA).

    In any time t it lets out at most `rate · t` plus one burst, or one amount where that is more than a burst.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._rate = per_minute / 60.0
        self._full_at = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0 is now. More than a burst waits for a full bucket."""
        room = max(0.0, BURST_SECONDS - amount / self._rate)
        return max(0.0, self._full_at - now - room)

    def take(self, amount: float, now: float) -> None:
        """Takes `amount`; a negative amount gives back what was taken too much."""
        self._full_at = max(self._full_at, now) + amount / self._rate

    def at_most(self, left: float, now: float) -> None:
        """Corrects the bucket where the provider says that only `left` is left of the quota (< 0: as 0)."""
        self._full_at = max(self._full_at, now + BURST_SECONDS - max(0.0, left) / self._rate)


class Quota(NamedTuple):
    """What `x-ratelimit-*` say is left, and the seconds until it is whole; None where a header is not there."""

    requests: float | None = None
    tokens: float | None = None
    requests_reset_seconds: float | None = None
    tokens_reset_seconds: float | None = None


def quota(headers: Mapping[str, str]) -> Quota | None:
    """Reads `x-ratelimit-remaining-*` and `-reset-*`; headers that make no sense count as not there."""
    remaining = [_number(headers.get(f"x-ratelimit-remaining-{what}")) for what in ("requests", "tokens")]
    resets = [_duration(headers.get(f"x-ratelimit-reset-{what}")) for what in ("requests", "tokens")]
    return Quota(*remaining, *resets) if remaining != [None, None] else None


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """The seconds an answer asks us to wait: `retry-after-ms`, or `Retry-After` in seconds or as an HTTP date.

    None where it asks for nothing, or nothing that makes sense. How much of it is obeyed is the gate's to say.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    header = headers.get("retry-after")
    if header is None:
        return None
    seconds = _number(header)
    if seconds is not None:
        return seconds
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _duration(value: str | None) -> float | None:
    """`6m0s`, `20ms`, `1s`, `1h2m3.5s`, or plain seconds."""
    seconds = _number(value)
    if seconds is not None or not value:
        return seconds
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        return None
    parts = [float(part or 0) for part in match.groups()]
    return sum(part * unit for part, unit in zip(parts, (86_400, 3_600, 60, 1, 0.001), strict=True))
