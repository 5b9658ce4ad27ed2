"""The engine: texts to checked unit vectors through a provider, at its quota and through its faults.

The caller's thread pulls texts and delivers; `requests` has a thread with the event loop. Between them are two queues,
bounded because no more than a window of texts is ever outstanding: a slow `deliver` stops the sending, a slow provider
stops the reading.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

from embedding_assets.embedding.engine import errors
from embedding_assets.embedding.engine.batching import batches
from embedding_assets.embedding.engine.figures import Usage
from embedding_assets.embedding.engine.gate import PATIENCE, Patience
from embedding_assets.embedding.engine.items import Dead, Embedded, Text, tokens_of
from embedding_assets.embedding.engine.limits import BURST_SECONDS
from embedding_assets.embedding.engine.requests import Requests, Settled
from embedding_assets.embedding.engine.takes import ANYTHING, Takes
from embedding_assets.embedding.engine.waiting import Waiting
from embedding_assets.embedding.ledger import Account, Ledger, Used, open_ledger
from embedding_assets.embedding.options import Binding, RunBudget
from embedding_assets.embedding.providers.opening import open_provider
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.telemetry.events import EngineProgress, Tell, unheard

__all__ = ["UNLIMITED", "Budget", "BudgetSpent", "Dead", "Embedded", "Stopped", "Text", "Usage", "embed"]

DRAIN_SECONDS: Final = 20.0
"""How long a run that is told to stop waits for what is in flight: Kubernetes kills 30 s after it has asked."""

_WINDOW_BYTES: Final = 128 << 20  # of vectors outstanding: 2,048 texts × 1,536 d a request are 12.6 MB each
_PROGRESS_SECONDS: Final = 1.0


class Budget(RunBudget):
    """The settings' limits of one run, and with whom it shares them.

    Kept before sending: by our count of tokens for what is ahead, by the provider's for what is done.
    """

    account: Account | None = None
    """All that have the same account share what it has; without one it is for one call."""

    @property
    def limited(self) -> bool:
        """Whether anything has a limit."""
        return (self.max_cost_usd, self.max_tokens, self.max_seconds) != (None, None, None)


UNLIMITED: Final = Budget()


_GO_ON: Final = "run it again, which goes on from here, or raise run_budget in the settings"


class BudgetSpent(PermanentError):
    """The run's budget is used up: what was sent is delivered, the rest is left for a run with more."""


class Stopped(TransientError):
    """The run was told to stop: what was in flight is delivered, the rest is left for the next run."""


def embed(
    binding: Binding,
    texts: Iterable[Text],
    deliver: Callable[[Embedded | Dead], None],
    *,
    tell: Tell = unheard,
    budget: Budget = UNLIMITED,
    stop: threading.Event | None = None,
    patience: Patience = PATIENCE,
    answered_as: str | None = None,
    takes: Takes = ANYTHING,
    on_takes: Callable[[Takes], None] = lambda takes: None,
) -> Usage:
    """Embeds `texts` by the binding's model, and delivers each exactly once, as a vector or as a dead letter.

    `texts` is pulled, and `deliver` and `tell` are called, on the calling thread, one at a time. No more than a bounded
    window of texts is pulled ahead of what is delivered. An exception of `deliver` stops the run at once; one of
    `texts` is raised after what was sent is delivered. Setting `stop` drains: nothing more is sent, and what is in
    flight is waited for, `DRAIN_SECONDS` at most.

    `answered_as`: how the endpoint named the model in its answers before; another name is an error.

    `takes`: what the endpoint is known to take in one request; `on_takes` is told at the end what is known then.

    Where there is no text, there is no need of a key or a model either.

    Raises `PermanentError` where no request can succeed until somebody acts, `BudgetSpent` at the end of the budget,
    `Stopped` after a drain, and `ProviderDown` (a `TransientError` with `retry_after_seconds`) where the provider
    fails for everyone. What was delivered before is sound.
    """
    source = iter(texts)
    first = next(source, None)
    if first is None:
        return Usage()
    with open_ledger(budget.account if budget.limited else None) as ledger:
        requests = Requests(open_provider(binding, answered_as), binding, patience, takes)
        waiting = Waiting(requests, binding.timeout_seconds, patience, tell)
        run = _Run(requests, binding, deliver, tell, budget, ledger, stop, waiting)
        try:
            return run.run(chain([first], source))
        finally:
            on_takes(requests.takes)


class _Run:
    """The caller's side: pulls, sends, delivers, and keeps the window and the budget."""

    def __init__(
        self,
        requests: Requests,
        binding: Binding,
        deliver: Callable[[Embedded | Dead], None],
        tell: Tell,
        budget: Budget,
        ledger: Ledger,
        stop: threading.Event | None,
        waiting: Waiting,
    ) -> None:
        self._requests = requests
        self._binding = binding
        self._deliver = deliver
        self._tell = tell
        self._budget = budget
        self._ledger = ledger
        self._stop = stop
        self._waiting = waiting
        self._began = time.monotonic()
        self._progress_at = self._began
        caps = requests.provider.caps
        if binding.tokens_per_minute is not None:  # no request larger than what may leave at once
            burst = max(1, int(binding.tokens_per_minute / 60 * BURST_SECONDS))
            caps = caps._replace(max_tokens_per_request=min(caps.max_tokens_per_request, burst))
        self._caps = caps
        self._ready = max(2, binding.max_in_flight // 8)  # batches waiting at the gate; more would only delay an end
        self._sent = 0  # batches, ever
        self._ahead = 0  # batches sent and not settled, their texts and their tokens
        self._texts_ahead = 0
        self._tokens_ahead = 0
        self._discarded = 0  # tokens, as counted against the budget

    def run(self, texts: Iterable[Text]) -> Usage:
        self._requests.start()
        try:
            self._feed(batches(texts, lambda: self._requests.takes.within(self._caps)))
        finally:
            self._requests.stop()
            self._tokens_ahead = 0  # nothing of it comes any more
            self._settle()
            self._tell_progress()
        return self._usage()

    def _feed(self, source: Iterator[list[Text]]) -> None:
        ended: Exception | bool = False  # the source: at its end, or by an error that is raised when all is settled
        held: list[Text] | None = None  # pulled and not sent: it may be more than the budget has left
        patient_until = float("inf")
        while time.monotonic() < patient_until:
            parcel: list[list[Text]] = []
            if self._stop is not None and self._stop.is_set() and not isinstance(ended, Stopped):
                ended = Stopped("told to stop: what was sent is delivered, the rest is left. Cure: run again")
                patient_until = time.monotonic() + DRAIN_SECONDS
            while not ended and self._has_room():
                try:
                    held = held or next(source, None)
                except Exception as error:
                    ended = error
                    break
                if held is None:
                    ended = True
                elif held[0].tokens > self._caps.max_tokens_per_item:
                    self._bury_too_long(held[0])
                    held = None
                elif (reached := self._reserve(held)) is None:
                    self._count_ahead(held, 1)
                    parcel.append(held)
                    held = None
                elif self._ahead:  # when that is settled, it may have cost less
                    break
                else:
                    left = "what was sent is delivered, the rest is left" if self._sent else "nothing was sent"
                    what, cure = reached
                    ended = BudgetSpent(f"{what}; {left}. Cure: {cure}")
            if parcel:
                self._requests.send(parcel)
            elif ended and not self._ahead:
                break
            ahead = self._ahead
            arrived = self._requests.arrived(_PROGRESS_SECONDS)
            self._waiting.look(bool(arrived))
            for item in arrived:
                match item:
                    case Settled():
                        self._count_ahead(item.batch, -1)
                    case Embedded() | Dead():
                        self._deliver(item)
                    case event:
                        self._tell(event)
            if self._ahead < ahead:
                self._settle()
            if (discarded := self._requests.counts.discarded_tokens) != self._discarded:
                self._discarded = discarded
                if not isinstance(ended, BudgetSpent) and (spent := self._overspent()) is not None:
                    ended = spent
                    self._requests.end(spent)
                self._requests.go_on(discarded)
            if time.monotonic() - self._progress_at >= _PROGRESS_SECONDS:
                self._tell_progress()
        if isinstance(ended, Exception):
            raise ended

    def _has_room(self) -> bool:
        """Whether another batch may be pulled and sent."""
        waiting = self._sent - self._requests.left
        window = self._binding.max_in_flight + self._ready
        most = _WINDOW_BYTES // (4 * self._binding.dimensions)
        return waiting < self._ready and self._ahead < window and (not self._ahead or self._texts_ahead < most)

    def _count_ahead(self, batch: list[Text], sign: int) -> None:
        self._sent += sign > 0
        self._ahead += sign
        self._texts_ahead += sign * len(batch)
        self._tokens_ahead += sign * tokens_of(batch)

    def _bury_too_long(self, text: Text) -> None:
        self._requests.counts.dead += 1
        reason = f"{text.tokens} tokens, and the provider takes {self._caps.max_tokens_per_item}"
        self._deliver(Dead(text.text_hash, errors.TOO_LONG.error_class, reason, 0))

    def _reserve(self, batch: list[Text]) -> tuple[str, str] | None:
        """Reserve the batch's share of the budget; what of it is reached, and the cure, where it has too little."""
        budget, tokens = self._budget, tokens_of(batch)
        if not budget.limited:
            return None
        fewer = ", or lower max_items of the model" if len(batch) > 1 else ""
        if budget.max_tokens is not None and tokens > budget.max_tokens:
            what = f"one request has {tokens} tokens, and max_tokens of {budget.max_tokens} is less than that"
            return what, f"set max_tokens of run_budget to {tokens} or more in the settings{fewer}"
        if budget.max_cost_usd is not None:
            cost = self._cost(tokens)
            if not self._binding.price_per_million_tokens and self._binding.provider != "local":
                return "max_cost_usd cannot be kept without a price", "set price_per_million_tokens of the model"
            if cost > budget.max_cost_usd:
                what = f"one request costs {cost:.6f} USD, and max_cost_usd of {budget.max_cost_usd} is less than that"
                return what, f"set max_cost_usd of run_budget to {cost + 1e-6:.6f} or more in the settings{fewer}"
        used = self._requests.counts.tokens + self._tokens_ahead + tokens
        refusal = self._ledger.reserve(used, self._cost(used), self._refuses)
        return None if refusal is None else (refusal, _GO_ON)

    def _refuses(self, now: Used, then: Used) -> str | None:
        """What of the budget is reached, if the run uses so much now, and would use so much then."""
        budget = self._budget
        if budget.max_tokens is not None and then.tokens > budget.max_tokens:
            return f"{now.tokens} tokens used: max_tokens of {budget.max_tokens} is reached"
        if budget.max_cost_usd is not None and then.cost_usd > budget.max_cost_usd:
            return f"{now.cost_usd:.4f} USD used: max_cost_usd of {budget.max_cost_usd} is reached"
        if budget.max_seconds is not None and then.seconds > budget.max_seconds:
            return f"max_seconds of {budget.max_seconds} is reached"
        return None

    def _settle(self) -> None:
        """Tell the ledger what is used, and what of it is still to come."""
        if self._budget.limited:
            used = self._requests.counts.tokens + self._tokens_ahead
            self._ledger.settle(used, self._cost(used))

    def _overspent(self) -> BudgetSpent | None:
        """The end of the budget where answers that were of no use have used it up: nothing is sent again."""
        if not self._budget.limited:
            return None
        used = self._requests.counts.tokens + self._tokens_ahead
        refusal = self._ledger.reserve(used, self._cost(used), self._refuses)
        if refusal is None:
            return None
        wasted = f"{self._discarded} tokens went for answers of no use, and what they were for is asked again"
        return BudgetSpent(f"{refusal}: {wasted}; what was bought is delivered, the rest is left. Cure: {_GO_ON}")

    def _cost(self, tokens: int) -> float:
        return tokens * self._binding.price_per_million_tokens / 1e6

    def _tell_progress(self) -> None:
        self._progress_at = time.monotonic()
        counts, gate = self._requests.counts, self._requests.gate
        self._tell(
            EngineProgress(
                texts=counts.texts,
                dead=counts.dead,
                tokens=counts.tokens,
                cost_usd=self._cost(counts.tokens),
                requests=counts.requests,
                retries=counts.retries,
                throttled=counts.throttled,
                in_flight=gate.in_flight,
                window=int(gate.window),
                breaker_open=gate.broken,
                seconds=self._progress_at - self._began,
            )
        )

    def _usage(self) -> Usage:
        counts, binding = self._requests.counts, self._binding
        seconds = time.monotonic() - self._began
        quotas = ((counts.requests, binding.requests_per_minute), (counts.tokens, binding.tokens_per_minute))
        return Usage(
            requests=counts.requests,
            texts=counts.texts,
            dead=counts.dead,
            truncated=counts.truncated,
            tokens=counts.tokens,
            discarded_tokens=counts.discarded_tokens,
            cost_usd=self._cost(counts.tokens),
            seconds=seconds,
            retries=counts.retries,
            throttled=counts.throttled,
            quota_share=max((60 * used / seconds / quota for used, quota in quotas if quota), default=None),
            latency_p50=counts.latencies.quantile(0.50),
            latency_p95=counts.latencies.quantile(0.95),
            latency_p99=counts.latencies.quantile(0.99),
        )
