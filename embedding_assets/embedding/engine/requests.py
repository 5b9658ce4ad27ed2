"""The requests of a run: batches in, each settled text by text, on an event loop of their own thread.

Each batch is one task that ends when each of its texts is delivered or buried. What an error means stands in
`errors`, when a request may leave in `gate`.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Coroutine
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

import numpy as np
import uvloop
from numpy.typing import NDArray

from embedding_assets.embedding.engine import errors
from embedding_assets.embedding.engine.batching import batches
from embedding_assets.embedding.engine.errors import WAIT, Kind, ProviderDown, RequestError
from embedding_assets.embedding.engine.figures import Counts
from embedding_assets.embedding.engine.gate import Gate, Patience, Ticket
from embedding_assets.embedding.engine.items import Dead, Embedded, Text, believed, tokens_of
from embedding_assets.embedding.engine.takes import ANYTHING, Learning, Takes, hinted
from embedding_assets.embedding.engine.vectors import normalise
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.provider import Caps, Provider
from embedding_assets.errors import PermanentError, PipelineError
from embedding_assets.telemetry.events import BreakerClosed, BreakerOpened, RequestSettled

_log = logging.getLogger(__name__)

_CANARY: Final = Text(b"", "ok", 1)
"""A text that any provider accepts, for as long as none of the run's own is known to be accepted."""

# What passes between the threads goes in parcels: a wake-up for each small request would cost as much as the request.
_PARCEL_SECONDS: Final = 0.002


class Settled(NamedTuple):
    """Every text of a batch has been delivered or buried."""

    batch: list[Text]


Arrival = Embedded | Dead | Settled | RequestSettled | BreakerOpened | BreakerClosed
"""The events go the way of what they are about, and so are told on the caller's thread."""


class Trouble(NamedTuple):
    """The provider has failed or throttled, and no request that left afterwards has got through. Times are
    time.monotonic's."""

    since: float
    last: float
    words: str


class Requests:
    """A provider, its gate, and the thread on which they run.

    `send`, `arrived`, `start` and `stop` are the caller's thread's; the rest runs on the event loop.
    """

    def __init__(self, provider: Provider, binding: Binding, patience: Patience, takes: Takes) -> None:
        self.provider = provider
        self.counts = Counts()
        self.left = 0  # batches that have passed the gate
        self.trouble: Trouble | None = None
        self._learning = Learning(takes)
        self.gate: Gate
        self._binding = binding
        self._patience = patience
        self._inbox: asyncio.Queue[list[list[Text]] | None] = asyncio.Queue()
        self._outbox: SimpleQueue[list[Arrival] | BaseException] = SimpleQueue()
        self._parcel: list[Arrival] = []  # the outbox's next
        self._posting = False
        # Whether it gets through tells a fault of the provider from one of a text.
        self._canary = _CANARY
        self._canary_turn = asyncio.Lock()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="embedding-requests", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._main: asyncio.Task[None]

    @property
    def takes(self) -> Takes:
        """What the endpoint takes in one request, as far as is known now."""
        return self._learning.takes

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def send(self, parcel: list[list[Text]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: its error is in the outbox
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, parcel)

    def arrived(self, seconds: float) -> list[Arrival]:
        """What has come since the last call, after waiting for it so many seconds at most.

        Raises the error that ended the requests, after all that came before it.
        """
        try:
            arrived = self._outbox.get(timeout=seconds)
        except Empty:
            return []
        if isinstance(arrived, BaseException):
            raise arrived
        return arrived

    def go_on(self, discarded_tokens: int) -> None:
        """The caller has counted so many discarded tokens against its budget: if that is all, requests leave again."""

        def release() -> None:
            if self.counts.discarded_tokens == discarded_tokens:
                self.gate.release()

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(release)

    def end(self, error: PipelineError) -> None:
        """Nothing more leaves, retries neither; `arrived` raises the error after what is in flight has come."""

        def stop() -> None:
            self.gate.stop(error)
            self._inbox.put_nowait(None)

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(stop)

    def stop(self) -> None:
        """Ends the thread, whatever is still in flight."""
        with contextlib.suppress(RuntimeError):  # it may have ended by itself
            self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._run())
        except BaseExceptionGroup as raised:
            self._outbox.put(raised.exceptions[0])
        except BaseException as raised:
            self._outbox.put(raised)
        finally:
            self._started.set()

    async def _run(self) -> None:
        binding = self._binding
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()  # type: ignore[assignment]
        self.gate = Gate(binding.requests_per_minute, binding.tokens_per_minute, binding.max_in_flight, self._patience)
        self._started.set()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while (parcel := await self._inbox.get()) is not None:
                    for batch in parcel:
                        self._start(self._work(batch))
            if self.gate.stopped is not None:
                raise self.gate.stopped
        finally:
            self._post()
            await self.provider.aclose()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` as a task; an error that stops the run lets the requests in flight come back: they are paid."""

        async def guarded() -> None:
            try:
                await work
            except PipelineError as error:
                self.gate.stop(error)
                self._inbox.put_nowait(None)

        self._tasks.create_task(guarded())

    async def _work(self, batch: list[Text]) -> None:
        ticket: Ticket | None = await self.gate.enter(tokens_of(batch))
        self.left += 1
        self._post_soon()  # the caller's thread may send the next
        for piece in self._cut(batch):  # one, unless a limit was learned since it was filled
            dead = await self._settle(piece, ticket=ticket)
            if dead is not None:
                await self._prove(ticket.at if ticket else time.monotonic(), dead.error_class)
                self._deliver_dead(dead)
            ticket = None
        self._put(Settled(batch))

    def _cut(self, texts: list[Text]) -> list[list[Text]]:
        """The requests that these texts take, by what is known of the endpoint: most often one."""
        takes = self.takes
        return [texts] if takes == ANYTHING else list(batches(texts, lambda: takes.within(self.provider.caps)))

    async def _settle(self, texts: list[Text], tries: int = 0, ticket: Ticket | None = None) -> Dead | None:
        """Delivers the vectors of `texts`, or buries those that stand alone in being refused.

        A single text that is refused is returned instead: it is the caller's to bury, once the provider is seen to
        accept others. At most `2·K·log2(N) + 4` requests for K poisonous texts of N, canaries included: both halves
        of a refused batch are sent, and a pair asks the canary only when both of it are refused. One text of N that
        always meets a verdict costs `2·attempts + 5·log2(N) + 2` at most: each half that holds it has two tries, and
        the canary goes with each try while nobody else gets through.
        """
        patience = self._patience
        began = time.monotonic()
        blamed = 0
        while True:
            try:
                vectors, sound, model = await self._request(texts, ticket)
            except RequestError as error:
                ticket = None
                sent = error.sent_at
                self.counts.retries += 1
                match error.row.kind:
                    case Kind.THROTTLED:
                        continue  # the gate waits
                    case Kind.POISON:
                        if not self.gate.trusted:  # it may refuse everything: a wrong setting
                            await self._prove(sent, error.row.error_class)
                        return await self._split(texts, error, sent, tries + 1)
                    case Kind.VERDICT:
                        await self._prove(sent, error.row.error_class)
                    case Kind.DOWN if sent - began > patience.storm_seconds:
                        raise ProviderDown(f"{_describe(error, texts)}. {WAIT}", patience.hand_over_seconds) from error
                tries += 1
                # The texts are at fault when, after all attempts, this happens twice: they fail, others get through.
                # Twice, for the first of them may have met the end of an outage.
                settles = error.row.kind in (Kind.TRANSIENT, Kind.VERDICT) and tries >= patience.attempts
                if settles and await self._answers(sent, error.row.error_class):
                    blamed += 1
                    if blamed == 2:
                        return await self._split(texts, error, sent, tries)
                await self.gate.sleep(patience.backoff(blamed or tries))
            else:
                ticket = None
                if sound.all():
                    self._hand_over(texts, vectors, model)
                    return None
                self._hand_over([text for text, ok in zip(texts, sound, strict=True) if ok], vectors[sound], model)
                texts = [text for text, ok in zip(texts, sound, strict=True) if not ok]
                self._discard(tokens_of(texts))
                tries += 1
                self.counts.retries += 1

    async def _split(self, texts: list[Text], error: RequestError, sent: float, tries: int) -> Dead | None:
        """Cuts a batch that is refused, or whose texts are at fault; the text that stands alone is returned as dead.

        The batch itself was at fault where none of its texts is.
        """
        if len(texts) == 1:
            return Dead(texts[0].text_hash, error.row.error_class, error.message, tries)
        buried = self.counts.dead
        # What failed after all its attempts has had them: its halves are only told apart.
        tries = 0 if error.row.kind is Kind.POISON else self._patience.attempts - 1
        named = hinted(error.message, texts) if error.row.kind is Kind.POISON else ANYTHING
        letters: list[Dead] = []
        for part in _parts(texts, named):
            for piece in self._cut(part):
                letter = await self._settle(piece, tries)
                letters += [letter] if letter is not None else []
        if letters:
            await self._prove(sent, error.row.error_class)
        for letter in letters:
            self._deliver_dead(letter)
        if error.row in (errors.REFUSED, errors.TOO_LARGE) and self.counts.dead == buried:
            self._learn(texts, named, error.row)
        return None

    def _learn(self, texts: list[Text], named: Takes, row: errors.Row) -> None:
        if self._learning.too_large(texts, named, by_size=row is errors.TOO_LARGE):
            items, tokens = self.takes
            settings = {"max_items": items, "max_tokens_per_request": tokens}
            known = ", ".join(f"{name}: {value}" for name, value in settings.items() if value)
            _log.warning("%s refuses larger requests; set %s to spare the attempts", self.where(), known)

    async def _prove(self, since: float, error_class: str) -> None:
        """Returns when the provider has accepted a text that left since then; raises where it has not, or is down.

        `error_class`: why it turned another away.
        """
        tries = 0
        while not await self._answers(since, error_class):
            tries += 1
            await self.gate.sleep(self._patience.backoff(tries))

    async def _answers(self, since: float, error_class: str) -> bool:
        """Whether a request that left since then has got through, or else the canary does now.

        Raises `PermanentError` where the canary is turned away for the same error, and so the endpoint is at fault. If
        it is turned away for another, that one is to be proved: the canary is sent again.
        """
        gate, attempts = self.gate, self._patience.attempts
        async with self._canary_turn:  # one canary answers all that ask
            for tries in range(1, attempts + 1):
                if gate.got_through > since:
                    break
                try:
                    await self._request([self._canary])
                except (RequestError, PipelineError) as error:
                    # What got through while the canary was on its way, or waited in vain for its turn, counts as well.
                    if gate.got_through > since:
                        break
                    if isinstance(error, PipelineError):
                        raise
                    if error.row.kind not in (Kind.POISON, Kind.VERDICT):
                        return False
                    if error.row.error_class == error_class or not gate.trusted or tries == attempts:
                        raise self._fatal(error, [self._canary]) from error
                    error_class = error.row.error_class
                    await gate.sleep(self._patience.backoff(tries))
            return True

    async def _probe(self) -> None:
        """Closes the breaker again when the canary gets through; hands the wait over when it does not."""
        patience, gate, opened = self._patience, self.gate, time.monotonic()
        failure: RequestError | None = None
        for probe in range(patience.breaker_probes):
            wait = min(patience.longest_backoff_seconds, patience.breaker_seconds * 2.0**probe)
            await gate.sleep(wait)
            while (pause := gate.pause()) > 0:  # it may grow meanwhile: the others' answers ask for it too
                await gate.sleep(pause)
            try:
                await self._request([self._canary], gate.probe())
            except RequestError as error:
                failure = error
                if error.row.kind in (Kind.TRANSIENT, Kind.DOWN):
                    continue
            gate.mended()  # it answers, if only to throttle or to refuse
            self._put(BreakerClosed(time.monotonic() - opened))
            return
        assert failure is not None
        raise ProviderDown(
            f"{self.where()} has failed for everyone, and {patience.breaker_probes} probes since: "
            f"{failure.row.error_class}: {failure.message}. {WAIT}",
            min(failure.wait_asked or patience.hand_over_seconds, patience.absurd_asked_seconds),
        )

    async def _request(
        self, texts: list[Text], ticket: Ticket | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], str | None]:
        """One request: (n, d) float32 rows scaled to unit length, which of them are sound (at least one), and the
        model's name.

        The gate learns what it tells of the provider. Raises `RequestError` where others may do better, and
        `PermanentError` or `ProviderDown` where the run has to stop.
        """
        gate, counts = self.gate, self.counts
        ours = tokens_of(texts)
        ticket = ticket or await gate.enter(ours)
        counts.requests += 1
        quota = None
        try:
            answer = await self.provider.embed([text.text for text in texts])
            quota = answer.quota
            if answer.vectors.shape != (len(texts), self.provider.dimensions):
                raise RequestError(
                    errors.DIMENSION,
                    f"vectors of shape {answer.vectors.shape} for {len(texts)} texts in "
                    f"{self.provider.dimensions} dimensions",
                    paid=True,
                    tokens=answer.tokens,
                )
            sound = normalise(answer.vectors)
            if not sound.any():
                what = "the vector is NaN, infinite, null, or of no length"
                raise RequestError(errors.BAD_VECTOR, what, paid=True, tokens=answer.tokens)
        except RequestError as error:
            error.sent_at = ticket.at
            tokens = believed(error.tokens, texts) or ours
            self._note(ticket, error.row.error_class, texts, tokens, error.wait_asked)
            if error.paid:
                counts.tokens += tokens
                self._discard(tokens)
            quota = error.quota or quota
            if error.row.kind in (Kind.THROTTLED, Kind.TRANSIENT, Kind.DOWN):
                since = self.trouble.since if self.trouble else ticket.at
                self.trouble = Trouble(since, time.monotonic(), f"{error.row.error_class}: {error.message}")
            match error.row.kind:
                case Kind.FATAL:
                    raise self._fatal(error, texts) from error
                case Kind.VERDICT if not gate.trusted:  # nothing speaks for the endpoint
                    raise self._fatal(error, texts) from error
                case Kind.THROTTLED:
                    counts.throttled += 1
                    gate.throttled(ticket, error.wait_asked)
                case Kind.POISON | Kind.VERDICT:
                    gate.refused()
                case _:
                    if gate.failed(ticket, error.wait_asked):
                        self._put(BreakerOpened(self._patience.breaker_failures))
                        self._start(self._probe())
            raise
        except asyncio.CancelledError:
            counts.tokens += ours  # it has left: whoever counts what is paid has to count it
            raise
        finally:
            gate.returned(ticket, quota)
        if not gate.trusted:
            self._canary = min(
                (text for text, ok in zip(texts, sound, strict=True) if ok), key=lambda text: text.tokens
            )
        if self.trouble is not None and ticket.at > self.trouble.last:
            self.trouble = None
        tokens = believed(answer.tokens, texts)
        gate.succeeded(ticket, tokens)
        self._learning.accepted(texts)
        counts.latencies.add(time.monotonic() - ticket.at)
        counts.tokens += tokens or ours
        counts.truncated += answer.truncated
        self._note(ticket, "ok", texts, tokens or ours, None)
        return answer.vectors, sound, answer.model

    def _note(self, ticket: Ticket, outcome: str, texts: list[Text], tokens: int, asked_to_wait: float | None) -> None:
        seconds = time.monotonic() - ticket.at
        self._put(RequestSettled(outcome, len(texts), tokens, time.time() - seconds, seconds, asked_to_wait))

    def _discard(self, tokens: int) -> None:
        """What is of no use in an answer is paid all the same: nothing leaves until the caller has counted it, who may
        find that the budget is spent."""
        self.gate.hold()
        self.counts.discarded_tokens += tokens
        self._post_soon()

    def _hand_over(self, texts: list[Text], vectors: NDArray[np.float32], model: str | None) -> None:
        self.counts.texts += len(texts)
        self._put(Embedded([text.text_hash for text in texts], vectors, model))

    def _deliver_dead(self, letter: Dead) -> None:
        self.counts.dead += 1
        self._put(letter)

    def _put(self, item: Arrival) -> None:
        """Into the outbox, with what else comes in the next 2 ms."""
        self._parcel.append(item)
        self._post_soon()

    def _post_soon(self) -> None:
        if not self._posting:
            self._posting = True
            self._loop.call_later(_PARCEL_SECONDS, self._post)

    def _post(self) -> None:
        self._posting = False
        parcel, self._parcel = self._parcel, []
        self._outbox.put(parcel)

    def _fatal(self, error: RequestError, texts: list[Text]) -> PermanentError:
        if error.row.kind is Kind.POISON:
            return PermanentError(
                f"{self.where()} refuses every text, so one of its settings must be wrong (name, dimensions, "
                f"base_url?): {error.message}. Cure: correct that setting"
            )
        before = ", which accepted the same text before" if texts == [self._canary] and self.gate.trusted else ""
        return PermanentError(f"{_describe(error, texts)} ({self.where()}{before}). Cure: {error.row.cure}")

    def where(self) -> str:
        """The model and its endpoint, for a message."""
        binding = self._binding
        return f"model {binding.name} of {binding.provider}" + (f" at {binding.base_url}" if binding.base_url else "")


def _describe(error: RequestError, texts: list[Text]) -> str:
    return f"a request with {len(texts)} texts failed: {error.row.error_class}: {error.message}"


def _parts(texts: list[Text], named: Takes) -> list[list[Text]]:
    """A refused batch by the limit that its refusal names, or in halves."""
    if named == ANYTHING:
        middle = (len(texts) + 1) // 2
        return [texts[:middle], texts[middle:]]
    everything = Caps(len(texts), 2**63, 2**63)
    return list(batches(texts, lambda: named.within(everything)))
