"""The engine: texts to checked unit vectors through a provider, at its quota and through its faults.

The caller's thread pulls texts and delivers; a thread of the run's own has the event loop with the requests. Between
them are two queues, bounded because no more than a window of texts is ever outstanding: a slow `deliver` stops the
sending, a slow provider stops the reading.

Each batch is one task (`_Run._settle`) that ends when each of its texts is delivered or buried. What an error means
stands in `errors`, when a request may leave in `gate`.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_assets.embedding import errors
from embedding_assets.embedding.batching import Text, batches
from embedding_assets.embedding.errors import Kind, ProviderDown, RequestError
from embedding_assets.embedding.figures import Counts, Progress, Usage
from embedding_assets.embedding.gate import PATIENCE, Gate, Patience, Ticket
from embedding_assets.embedding.limits import BURST_SECONDS
from embedding_assets.embedding.models import Binding, open_provider
from embedding_assets.embedding.providers import Provider
from embedding_assets.embedding.vectors import normalise
from embedding_assets.errors import PermanentError, PipelineError

__all__ = ["Budget", "BudgetSpent", "Dead", "Embedded", "Progress", "Text", "Usage", "embed"]

_CANARY: Final = Text(b"", "ok", 1)
"""A text that any provider accepts: whether it gets through tells a fault of the provider from one of a text."""

_WINDOW_BYTES: Final = 128 << 20  # of vectors outstanding: 2,048 texts × 1,536 d a request are 12.6 MB each
_PROGRESS_SECONDS: Final = 1.0

# What passes between the threads goes in parcels: a wake-up for each small request would cost as much as the request.
_PARCEL_SECONDS: Final = 0.002


class Embedded(NamedTuple):
    """Vectors of one request: (n, d) float32, finite, unit rows, row for row those of `text_hashes`."""

    text_hashes: list[bytes]
    vectors: NDArray[np.float32]


class Dead(NamedTuple):
    """A text that got no vector, and why; `error_class` is one of `errors`."""

    text_hash: bytes
    error_class: str
    message: str
    attempts: int


class Budget(NamedTuple):
    """What one run may use; None is unlimited. Kept before sending, by our count of tokens."""

    max_cost_usd: float | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None


UNLIMITED: Final = Budget()


class BudgetSpent(PermanentError):
    """The run's budget is used up: what was sent is delivered, the rest is left for a run with more."""


def embed(
    binding: Binding,
    texts: Iterable[Text],
    deliver: Callable[[Embedded | Dead], None],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    budget: Budget = UNLIMITED,
    patience: Patience = PATIENCE,
) -> Usage:
    """Embeds `texts` by the binding's model, and delivers each exactly once, as a vector or as a dead letter.

    `texts` is pulled, and `deliver` and `on_progress` (about once a second, and at the end) are called, on the
    calling thread, one at a time. No more than a bounded window of texts is pulled ahead of what is delivered. An
    exception of `deliver` stops the run at once; one of `texts` is raised after what was sent is delivered.

    Raises `PermanentError` where no request can succeed until somebody acts, `BudgetSpent` at the end of the budget,
    and `ProviderDown` (a `TransientError` with `retry_after_seconds`) where the provider fails for everyone. What
    was delivered before is sound.
    """
    return _Run(open_provider(binding), binding, deliver, on_progress, budget, patience).run(texts)


class _Settled(NamedTuple):
    """Every text of a batch has been delivered or buried."""

    batch: list[Text]


class _Ended(NamedTuple):
    """The event loop's thread is done; with an error, not all is settled."""

    error: BaseException | None


class _Run:
    def __init__(
        self,
        provider: Provider,
        binding: Binding,
        deliver: Callable[[Embedded | Dead], None],
        on_progress: Callable[[Progress], None] | None,
        budget: Budget,
        patience: Patience,
    ) -> None:
        self._provider = provider
        self._binding = binding
        self._deliver = deliver
        self._on_progress = on_progress
        self._budget = budget
        self._patience = patience
        self._counts = Counts()
        self._began = time.monotonic()
        self._inbox: asyncio.Queue[list[list[Text]] | None] = asyncio.Queue()
        self._outbox: SimpleQueue[list[Embedded | Dead | _Settled] | _Ended] = SimpleQueue()
        self._arrived: list[Embedded | Dead | _Settled] = []  # the outbox's next parcel
        self._gate: Gate
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._main: asyncio.Task[None]
        self._canary_turn = asyncio.Lock()

    # The caller's thread: pulls, delivers, keeps the window and the budget.

    def run(self, texts: Iterable[Text]) -> Usage:
        thread = threading.Thread(target=self._serve, name="embedding-engine", daemon=True)
        thread.start()
        self._started.wait()
        try:
            self._feed(texts)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
                self._loop.call_soon_threadsafe(self._main.cancel)
            thread.join()
            self._tell()
        return self._usage()

    def _feed(self, texts: Iterable[Text]) -> None:
        caps = self._provider.caps
        if self._binding.tokens_per_minute is not None:  # no request larger than what may leave at once
            burst = max(1, int(self._binding.tokens_per_minute / 60 * BURST_SECONDS))
            caps = caps._replace(max_tokens_per_request=min(caps.max_tokens_per_request, burst))
        window = self._binding.max_in_flight + max(2, self._binding.max_in_flight // 4)
        ahead = _WINDOW_BYTES // (4 * self._provider.dimensions)

        source: Iterator[list[Text]] | None = batches(texts, caps)
        failure: Exception | None = None
        batch: list[Text] | None = None
        outstanding = outstanding_texts = outstanding_tokens = 0
        told_at = self._began
        while True:
            parcel: list[list[Text]] = []
            while source is not None and outstanding < window and (not outstanding or outstanding_texts < ahead):
                try:
                    batch = next(source, None)
                    if batch is not None:
                        self._keep_budget(outstanding_tokens + sum(text.tokens for text in batch))
                except Exception as error:
                    failure, batch = error, None
                if batch is None:
                    source = None
                elif batch[0].tokens > caps.max_tokens_per_item:
                    self._bury_too_long(batch[0], caps.max_tokens_per_item)
                else:
                    outstanding += 1
                    outstanding_texts += len(batch)
                    outstanding_tokens += sum(text.tokens for text in batch)
                    parcel.append(batch)
            if parcel:
                with contextlib.suppress(RuntimeError):  # the loop has ended: its error is in the outbox
                    self._loop.call_soon_threadsafe(self._inbox.put_nowait, parcel)
            elif source is None and not outstanding:
                break
            try:
                arrived = self._outbox.get(timeout=_PROGRESS_SECONDS)
            except Empty:
                arrived = []
            if isinstance(arrived, _Ended):
                assert arrived.error is not None
                raise arrived.error
            for item in arrived:
                if isinstance(item, _Settled):
                    outstanding -= 1
                    outstanding_texts -= len(item.batch)
                    outstanding_tokens -= sum(text.tokens for text in item.batch)
                else:
                    self._deliver(item)
            if time.monotonic() - told_at >= _PROGRESS_SECONDS:
                told_at = time.monotonic()
                self._tell()
        if failure is not None:
            raise failure

    def _bury_too_long(self, text: Text, most: int) -> None:
        self._counts.dead += 1
        row = errors.TOO_LONG
        message = f"{text.tokens} tokens, and the provider takes {most}: {row.cure}"
        self._deliver(Dead(text.text_hash, row.error_class, message, 0))

    def _keep_budget(self, tokens_ahead: int) -> None:
        """Raises `BudgetSpent` if `tokens_ahead` more tokens would exceed the budget."""
        budget = self._budget
        tokens = self._counts.tokens + tokens_ahead
        if budget.max_tokens is not None and tokens > budget.max_tokens:
            raise BudgetSpent(f"{self._counts.tokens} tokens used: max_tokens of {budget.max_tokens} is reached")
        if budget.max_cost_usd is not None and self._cost(tokens) > budget.max_cost_usd:
            raise BudgetSpent(
                f"{self._cost(self._counts.tokens):.2f} USD used: max_cost_usd of {budget.max_cost_usd} is reached"
            )
        if budget.max_seconds is not None and time.monotonic() - self._began > budget.max_seconds:
            raise BudgetSpent(f"max_seconds of {budget.max_seconds} is reached")

    def _cost(self, tokens: int) -> float:
        return tokens * self._binding.price_per_million_tokens / 1e6

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        counts, gate = self._counts, self._gate
        self._on_progress(
            Progress(
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
                seconds=time.monotonic() - self._began,
            )
        )

    def _usage(self) -> Usage:
        counts = self._counts
        return Usage(
            requests=counts.requests,
            texts=counts.texts,
            dead=counts.dead,
            truncated=counts.truncated,
            tokens=counts.tokens,
            cost_usd=self._cost(counts.tokens),
            seconds=time.monotonic() - self._began,
            retries=counts.retries,
            throttled=counts.throttled,
            latency_p50=counts.latencies.quantile(0.50),
            latency_p95=counts.latencies.quantile(0.95),
            latency_p99=counts.latencies.quantile(0.99),
        )

    # The event loop's thread: requests.

    def _serve(self) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(self._requests())
        except BaseExceptionGroup as raised:
            error = raised.exceptions[0]
        except BaseException as raised:
            error = raised
        finally:
            self._started.set()
            self._outbox.put(self._arrived)
            self._outbox.put(_Ended(error))

    async def _requests(self) -> None:
        binding = self._binding
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()  # type: ignore[assignment]
        self._gate = Gate(binding.requests_per_minute, binding.tokens_per_minute, binding.max_in_flight, self._patience)
        self._started.set()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while (parcel := await self._inbox.get()) is not None:
                    for batch in parcel:
                        self._start(self._work(batch))
            if self._gate.stopped is not None:
                raise self._gate.stopped
        finally:
            await self._provider.aclose()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` as a task; an error that stops the run lets the requests in flight come back: they are paid."""

        async def guarded() -> None:
            try:
                await work
            except PipelineError as error:
                self._gate.stop(error)
                self._inbox.put_nowait(None)

        self._tasks.create_task(guarded())

    async def _work(self, batch: list[Text]) -> None:
        began = self._loop.time()
        dead = await self._settle(batch)
        if dead is not None:
            await self._prove(began)
            self._bury(dead)
        self._put(_Settled(batch))

    async def _settle(self, texts: list[Text], tries: int = 0) -> Dead | None:
        """Delivers the vectors of `texts`, or buries those that stand alone in being refused.

        A single text that is refused is returned instead: it is the caller's to bury, once the provider is seen to
        accept others. At most `2·K·log2(N) + 4` requests for K poisonous texts of N, canaries included: both halves
        of a refused batch are sent, and a pair asks the canary only when both of it are refused.
        """
        patience = self._patience
        began = self._loop.time()
        blamed = 0
        while True:
            sent = self._loop.time()
            try:
                vectors, sound = await self._request(texts)
            except RequestError as error:
                self._counts.retries += 1
                match error.row.kind:
                    case Kind.THROTTLED:
                        continue  # the gate waits
                    case Kind.POISON:
                        if self._gate.succeeded_at == float("-inf"):  # it may refuse everything: a wrong setting
                            await self._prove(sent)
                        return await self._split(texts, error, sent, tries + 1)
                    case Kind.DOWN if sent - began > patience.storm_seconds:
                        raise ProviderDown(_told(error, texts), patience.hand_over_seconds) from error
                tries += 1
                # The texts are at fault when, after all attempts, this happens twice: they fail, others get through.
                # Twice, for the first of them may have met the end of an outage.
                if error.row.kind is Kind.TRANSIENT and tries >= patience.attempts and await self._answers(sent):
                    blamed += 1
                    if blamed == 2:
                        return await self._split(texts, error, sent, tries)
                await self._gate.sleep(patience.backoff(blamed or tries))
            else:
                if sound.all():
                    self._hand_over(texts, vectors)
                    return None
                self._hand_over([text for text, ok in zip(texts, sound, strict=True) if ok], vectors[sound])
                texts = [text for text, ok in zip(texts, sound, strict=True) if not ok]
                tries += 1
                self._counts.retries += 1

    async def _split(self, texts: list[Text], error: RequestError, sent: float, tries: int) -> Dead | None:
        """Halves a batch whose texts are at fault; the text that stands alone is returned as dead."""
        if len(texts) == 1:
            return Dead(texts[0].text_hash, error.row.error_class, error.message, tries)
        # What failed after all its attempts has had them: its halves are only told apart.
        tries = self._patience.attempts - 1 if error.row.kind is Kind.TRANSIENT else 0
        middle = (len(texts) + 1) // 2
        dead = [await self._settle(half, tries) for half in (texts[:middle], texts[middle:])]
        if any(dead):
            await self._prove(sent)
        for letter in dead:
            if letter is not None:
                self._bury(letter)
        return None

    async def _prove(self, since: float) -> None:
        """Returns when the provider has accepted a text since then; raises where it refuses any, or is down."""
        tries = 0
        while not await self._answers(since):
            tries += 1
            await self._gate.sleep(self._patience.backoff(tries))

    async def _answers(self, since: float) -> bool:
        """Whether a request has got through since then, or else the canary does now."""
        async with self._canary_turn:  # one canary answers all that ask
            if self._gate.succeeded_at > since:
                return True
            try:
                await self._request([_CANARY])
            except RequestError as error:
                if error.row.kind is Kind.POISON:
                    raise PermanentError(
                        f"{self._where()} refuses every text, so one of its settings must be wrong (name, dimensions, "
                        f"base_url?): {error.message}"
                    ) from error
                return False
            return True

    async def _probe(self) -> None:
        """Closes the breaker again when the canary gets through; hands the wait over when it does not."""
        patience, gate = self._patience, self._gate
        failure: RequestError | None = None
        for probe in range(patience.breaker_probes):
            await gate.sleep(min(patience.longest_backoff_seconds, patience.breaker_seconds * 2.0**probe))
            try:
                await self._request([_CANARY], gate.probe())
            except RequestError as error:
                failure = error
                if error.row.kind in (Kind.TRANSIENT, Kind.DOWN):
                    continue
            return gate.mended()  # it answers, if only to throttle or to refuse
        assert failure is not None
        raise ProviderDown(
            f"{self._where()} has failed for everyone, and {patience.breaker_probes} probes since: {failure.message}",
            failure.told_wait or patience.hand_over_seconds,
        )

    async def _request(
        self, texts: list[Text], ticket: Ticket | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """One request: (n, d) float32 rows scaled to unit length, and which of them are sound (at least one).

        The gate learns what it tells of the provider. Raises `RequestError` where others may do better, and
        `PermanentError` or `ProviderDown` where the run has to stop.
        """
        gate, counts = self._gate, self._counts
        ours = sum(text.tokens for text in texts)
        ticket = ticket or await gate.enter(ours)
        counts.requests += 1
        quota = None
        try:
            answer = await self._provider.embed([text.text for text in texts])
            quota = answer.quota
            if answer.vectors.shape != (len(texts), self._provider.dimensions):
                raise RequestError(
                    errors.DIMENSION,
                    f"vectors of shape {answer.vectors.shape} for {len(texts)} texts in "
                    f"{self._provider.dimensions} dimensions",
                )
            sound = normalise(answer.vectors)
            if not sound.any():
                raise RequestError(errors.BAD_VECTOR, "the vector is NaN, infinite, null, or of no length")
        except RequestError as error:
            quota = error.quota or quota
            match error.row.kind:
                case Kind.FATAL:
                    raise PermanentError(f"{_told(error, texts)} ({self._where()}); {error.row.cure}") from error
                case Kind.THROTTLED:
                    counts.throttled += 1
                    gate.throttled(ticket, error.told_wait)
                case Kind.POISON:
                    gate.refused()
                case _:
                    if gate.failed(ticket, error.told_wait):
                        self._start(self._probe())
            raise
        finally:
            gate.returned(ticket, quota)
        gate.succeeded(ticket, answer.tokens)
        counts.latencies.add(self._loop.time() - ticket.at)
        counts.tokens += answer.tokens or ours
        counts.truncated += answer.truncated
        return answer.vectors, sound

    def _hand_over(self, texts: list[Text], vectors: NDArray[np.float32]) -> None:
        self._counts.texts += len(texts)
        self._put(Embedded([text.text_hash for text in texts], vectors))

    def _bury(self, letter: Dead) -> None:
        self._counts.dead += 1
        self._put(letter)

    def _put(self, item: Embedded | Dead | _Settled) -> None:
        """Into the outbox, with what else comes in the next 2 ms."""
        if not self._arrived:
            self._loop.call_later(_PARCEL_SECONDS, self._post)
        self._arrived.append(item)

    def _post(self) -> None:
        parcel, self._arrived = self._arrived, []
        self._outbox.put(parcel)

    def _where(self) -> str:
        binding = self._binding
        return f"model {binding.name} of {binding.provider}" + (f" at {binding.base_url}" if binding.base_url else "")


def _told(error: RequestError, texts: list[Text]) -> str:
    return f"a request with {len(texts)} texts failed: {error.row.error_class}: {error.message}"


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: Any = uvloop.new_event_loop()
    return loop  # type: ignore[no-any-return]
