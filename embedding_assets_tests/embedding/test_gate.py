"""The gate by itself: what opens and closes it, on the event loop, without a provider."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from embedding_assets.embedding.engine.errors import ProviderDown
from embedding_assets.embedding.engine.gate import Gate, Patience, Ticket
from embedding_assets.embedding.engine.limits import Quota
from embedding_assets.errors import PermanentError, TransientError

PATIENCE = Patience(backoff_seconds=0.02, longest_backoff_seconds=0.02)


def on_a_gate(
    behaviour: Callable[[Gate], Awaitable[None]], requests: int | None = None, patience: Patience = PATIENCE
) -> None:
    async def run() -> None:
        async with asyncio.timeout(5):
            await behaviour(Gate(requests, None, 16, patience))

    asyncio.run(run())


async def opened(gate: Gate, window: int) -> None:
    """Answers come until the window is that wide."""
    while gate.window < window:
        succeed(gate, await enter(gate, 1))


async def enter(gate: Gate, n: int) -> list[Ticket]:
    return [await gate.enter(1) for _ in range(n)]


def succeed(gate: Gate, tickets: list[Ticket]) -> None:
    for ticket in tickets:
        gate.returned(ticket, None)
        gate.succeeded(ticket, 0)


async def is_closed(gate: Gate) -> bool:
    """Whether the next request has to wait."""
    try:
        async with asyncio.timeout(0.005):
            ticket = await gate.enter(1)
    except TimeoutError:
        return True
    gate.returned(ticket, None)
    return False


def test_the_window_doubles_each_round_up_to_its_most() -> None:
    async def behaviour(gate: Gate) -> None:
        for window in (1, 2, 4, 8, 16, 16):
            assert gate.window == window
            succeed(gate, await enter(gate, window))

    on_a_gate(behaviour)


def test_the_window_is_halved_once_for_all_in_flight_together_and_opens_by_one_a_round() -> None:
    async def behaviour(gate: Gate) -> None:
        await opened(gate, 8)
        for ticket in await enter(gate, 8):
            gate.throttled(ticket, 0.01)
            gate.returned(ticket, None)
        assert gate.window == 4
        succeed(gate, await enter(gate, 1))
        succeed(gate, await enter(gate, 4))
        assert gate.window == pytest.approx(5.2, abs=0.1)

    on_a_gate(behaviour)


def test_after_a_429_one_request_goes_alone_until_it_gets_through() -> None:
    async def behaviour(gate: Gate) -> None:
        await opened(gate, 4)
        first, *others = await enter(gate, 4)
        gate.throttled(first, 0.02)
        gate.returned(first, None)
        succeed(gate, others)  # sent before: they say nothing of the time after
        assert await is_closed(gate)
        (trial,) = await enter(gate, 1)
        assert await is_closed(gate)
        succeed(gate, [trial])
        assert not await is_closed(gate)

    on_a_gate(behaviour)


def test_failures_in_a_row_open_the_breaker_and_a_success_between_does_not() -> None:
    async def behaviour(gate: Gate) -> None:
        await opened(gate, 8)
        tickets = await enter(gate, 8)
        assert [gate.failed(ticket, None) for ticket in tickets[:4]] == [False] * 4
        succeed(gate, tickets[4:5])
        assert [gate.failed(tickets[5], None) for _ in range(5)] == [False] * 4 + [True]
        assert not gate.failed(tickets[6], None)  # it is open already
        for ticket in tickets:
            gate.returned(ticket, None)
        assert gate.broken
        assert await is_closed(gate)
        gate.mended()
        assert not await is_closed(gate)

    on_a_gate(behaviour)


def test_a_refused_text_shows_that_the_provider_is_there() -> None:
    async def behaviour(gate: Gate) -> None:
        (ticket,) = await enter(gate, 1)
        for _ in range(20):
            gate.failed(ticket, None)
            gate.refused()
        assert not gate.broken

    on_a_gate(behaviour)


def test_an_empty_quota_in_the_headers_holds_the_next_request_back() -> None:
    async def behaviour(gate: Gate) -> None:
        (ticket,) = await enter(gate, 1)
        gate.succeeded(ticket, 0)
        gate.returned(ticket, Quota(requests=0, requests_reset_seconds=0.03))
        assert await is_closed(gate)
        await enter(gate, 1)

    on_a_gate(behaviour)


def test_what_left_after_an_answer_was_counted_is_not_in_its_headers() -> None:
    async def behaviour(gate: Gate) -> None:
        await opened(gate, 5)
        first, *_ = await enter(gate, 5)
        gate.returned(first, Quota(requests=4))  # and four have left since
        assert await is_closed(gate)

    on_a_gate(behaviour, requests=600)


def test_a_stopped_gate_meets_everyone_with_its_error_and_the_permanent_one_first() -> None:
    async def behaviour(gate: Gate) -> None:
        await enter(gate, 1)
        waiting = [asyncio.create_task(gate.enter(1)) for _ in range(3)]
        sleeping = asyncio.create_task(gate.sleep(60))
        await asyncio.sleep(0)
        gate.stop(TransientError("later"))
        gate.stop(PermanentError("never"))
        gate.stop(TransientError("later"))
        for task in (*waiting, sleeping):
            with pytest.raises(PermanentError, match="never"):
                await task

    on_a_gate(behaviour)


def test_waits_are_obeyed_handed_over_or_bounded_by_their_length() -> None:
    async def behaviour(gate: Gate) -> None:
        (ticket,) = await enter(gate, 1)
        with pytest.raises(ProviderDown) as caught:
            gate.throttled(ticket, 0.2)
        assert caught.value.retry_after_seconds == 0.2
        gate.throttled(ticket, 1e12)  # nobody means that
        gate.returned(ticket, None)
        await enter(gate, 1)

    on_a_gate(behaviour, patience=Patience(longest_asked_seconds=0.05, absurd_asked_seconds=100))
