"""The gate every request passes: quotas, concurrency, the pauses a provider asks for, and the circuit breaker.

All state lives on the event loop's thread. Requests leave in the order in which they came. The clock is the system's:
uvloop's own stands still while a callback runs.
"""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import Final, NamedTuple

from embedding_assets.embedding.engine.errors import WAIT, ProviderDown
from embedding_assets.embedding.engine.limits import LONGEST_RESET_SECONDS, Bucket, Quota
from embedding_assets.errors import PermanentError, PipelineError


@dataclass(frozen=True)
class Patience:
    """How often the engine tries, and how long it waits, before it gives a text or a provider up."""

    attempts: int = 5  # of a request, or of a text without a sound vector
    backoff_seconds: float = 0.5  # full jitter: uniform(0, min(longest, backoff · 2ⁿ))
    longest_backoff_seconds: float = 30.0
    longest_asked_seconds: float = 60.0  # a longer Retry-After is handed to the caller …
    absurd_asked_seconds: float = 3_600.0  # … unless it is over this (an epoch taken for seconds): then obeyed to 60 s
    storm_seconds: float = 600.0  # throttled without one success for so long: handed to the caller
    breaker_failures: int = 5  # in a row, without a success
    breaker_seconds: float = 1.0  # before the first probe, doubled before each next one
    breaker_probes: int = 4  # 1 + 2 + 4 + 8 s; then the wait is handed to the caller
    hand_over_seconds: float = 60.0  # the wait that it is asked for

    def backoff(self, tries: int) -> float:
        """Seconds before the try after the `tries`-th."""
        longest = min(self.longest_backoff_seconds, self.backoff_seconds * 2.0 ** min(tries, 30))
        return random.uniform(0.0, longest)  # noqa: S311 - spreads load, hides nothing


PATIENCE: Final = Patience()

_NEVER: Final = float("-inf")


class Ticket(NamedTuple):
    """A request that has left: how many requests and tokens had left with it, and when."""

    number: int
    tokens: int
    tokens_before: int
    at: float


class Gate:
    """Lets requests out: at most `window` at once, within the quotas, and none while paused or broken.

    The window opens from one as TCP's does: one more for each answer until the first cut, then one more each round; it
    is halved by a throttled or failed request, once for all those in flight together. So a wrong setting costs one
    request, and the provider learns alone what its endpoint can do.
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, max_in_flight: int, patience: Patience
    ) -> None:
        self._patience = patience
        now = time.monotonic()
        self._requests = Bucket(requests_per_minute, now) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, now) if tokens_per_minute else None
        self._max_in_flight = max_in_flight
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()  # something changed that the request at the head waits for
        self.window = 1.0
        self._slow_start = True
        self._cut_at = 0  # requests sent before the last cut
        self.in_flight = 0
        self._sent = 0
        self._sent_tokens = 0
        self._paused_until = 0.0
        self._pauses = 0  # since the last success: while there are any, one request goes alone
        self._paused_at = 0  # requests sent before the last pause
        self._storm_since: float | None = None
        self._failures = 0  # in a row
        self.broken = False
        self._held = False
        self.got_through = _NEVER  # when the latest request that got a sound answer had left
        self.stopped: PipelineError | None = None
        self._stopping = asyncio.Event()

    @property
    def trusted(self) -> bool:
        """Whether the provider has given a sound answer."""
        return self.got_through > _NEVER

    def stop(self, error: PipelineError) -> None:
        """Nothing leaves any more: who waits at the gate, and who comes to it, is met by the error."""
        if self.stopped is None or isinstance(error, PermanentError):  # the one that says most
            self.stopped = error
        self._stopping.set()
        self._moved.set()

    def hold(self) -> None:
        """Nothing leaves until `release`: what was just paid is not yet counted against the budget."""
        self._held = True

    def release(self) -> None:
        """The end of `hold`."""
        self._held = False
        self._moved.set()

    async def sleep(self, seconds: float) -> None:
        """Sleeps unless, and until, the gate is stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        if self.stopped is not None:
            raise self.stopped

    async def enter(self, tokens: int) -> Ticket:
        """Waits until a request of `tokens` may leave. Raises the error that stopped the gate."""
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                self._moved.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait if wait < float("inf") else None):
                        await self._moved.wait()
            return self._leave(tokens)

    def probe(self) -> Ticket:
        """A ticket for a probe of a broken provider: it leaves whatever the gate says."""
        return self._leave(0)

    def pause(self) -> float:
        """Seconds left of the time the provider asked for; not above 0 where there are none."""
        return self._paused_until - time.monotonic()

    def _wait(self, tokens: int) -> float:
        if self.stopped is not None:
            raise self.stopped
        if self._held or self.broken or self.in_flight >= (1 if self._pauses else int(self.window)):
            return float("inf")
        now = time.monotonic()
        return max(
            self.pause(),
            self._requests.wait(1, now) if self._requests else 0.0,
            self._tokens.wait(tokens, now) if self._tokens else 0.0,
        )

    def _leave(self, tokens: int) -> Ticket:
        now = time.monotonic()
        if self._requests:
            self._requests.take(1, now)
        if self._tokens:
            self._tokens.take(tokens, now)
        self.in_flight += 1
        self._sent += 1
        self._sent_tokens += tokens
        return Ticket(self._sent, tokens, self._sent_tokens, now)

    def returned(self, ticket: Ticket, quota: Quota | None) -> None:
        """Every request that left comes back here, whatever became of it."""
        self.in_flight -= 1
        self._moved.set()
        if quota is None:
            return
        now = time.monotonic()
        # What left after this request may not be counted in its answer yet.
        left_requests = (quota.requests, quota.requests_reset_seconds, self._sent - ticket.number, self._requests)
        left_tokens = (quota.tokens, quota.tokens_reset_seconds, self._sent_tokens - ticket.tokens_before, self._tokens)
        for left, reset, later, bucket in (left_requests, left_tokens):
            if left is not None and bucket is not None:
                bucket.at_most(left - later, now)
            if left == 0 and reset is not None:
                self._paused_until = max(self._paused_until, now + min(reset, LONGEST_RESET_SECONDS))

    def succeeded(self, ticket: Ticket, tokens: int) -> None:
        """A sound answer that cost `tokens` by the provider's own count (0: it does not say)."""
        now = time.monotonic()
        self.got_through = max(self.got_through, ticket.at)
        self._failures = 0
        self._storm_since = None
        if ticket.number > self._paused_at:
            self._pauses = 0
        if tokens and self._tokens:
            self._tokens.take(tokens - ticket.tokens, now)
        grown = self.window + (1.0 if self._slow_start else 1.0 / self.window)
        self.window = min(float(self._max_in_flight), grown)

    def refused(self) -> None:
        """The provider answered, if only to turn a request away: it is there."""
        self._failures = 0

    def throttled(self, ticket: Ticket, wait_asked: float | None) -> None:
        """Nothing leaves for the seconds asked. Raises `ProviderDown` where waiting is not this process's to do."""
        now = time.monotonic()
        patience = self._patience
        self._cut(ticket)
        if wait_asked is not None and wait_asked > patience.longest_asked_seconds:
            if wait_asked <= patience.absurd_asked_seconds:
                raise ProviderDown(
                    f"the provider asks to wait {wait_asked:.0f} s before the next request. {WAIT}", wait_asked
                )
            wait_asked = patience.longest_asked_seconds
        if self._storm_since is None:
            self._storm_since = now
        elif now - self._storm_since > patience.storm_seconds:
            raise ProviderDown(
                f"the provider throttled every request for {now - self._storm_since:.0f} s. Cure: set "
                "requests_per_minute and tokens_per_minute to what this run has of the quota, which others may share",
                wait_asked or patience.hand_over_seconds,
            )
        if ticket.number > self._paused_at:  # one pause for all that were in flight together
            self._pauses += 1
            self._paused_at = self._sent
            if wait_asked is None:
                self._paused_until = max(self._paused_until, now + patience.backoff(self._pauses))
        if wait_asked is not None:
            self._paused_until = max(self._paused_until, now + wait_asked)

    def failed(self, ticket: Ticket, wait_asked: float | None) -> bool:
        """Counts a failure of the provider; True when this one opened the breaker."""
        self._cut(ticket)
        self._failures += 1
        if wait_asked is not None:
            wait = min(wait_asked, self._patience.longest_asked_seconds)
            self._paused_until = max(self._paused_until, time.monotonic() + wait)
        if self._failures >= self._patience.breaker_failures and not self.broken:
            self.broken = True
            return True
        return False

    def mended(self) -> None:
        """The breaker closes: a probe got through."""
        self.broken = False
        self._failures = 0
        self._moved.set()

    def _cut(self, ticket: Ticket) -> None:
        self._slow_start = False
        if ticket.number > self._cut_at:
            self.window = max(1.0, self.window / 2)
            self._cut_at = self._sent
