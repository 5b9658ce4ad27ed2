"""The engine with a healthy provider: every text once, in bounded memory, on the caller's thread."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_assets.embedding.engine import engine
from embedding_assets.embedding.engine.engine import (
    Budget,
    BudgetSpent,
    Dead,
    Embedded,
    Stopped,
    Text,
    embed,
)
from embedding_assets.embedding.options import Binding
from embedding_assets.telemetry.events import EngineProgress, Event, RequestSettled
from embedding_assets_tests.embedding.conftest import Delivered, texts_of
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.standin import Standin

LOCAL = Binding.model_validate({"slot": "v1", "provider": "local", "name": "wordllama-64", "dimensions": 64})


def test_every_text_gets_its_own_unit_vector_once(standin: Standin, delivered: Delivered) -> None:
    texts = texts_of([f"text number {i}" for i in range(1_000)])
    usage = embed(standin.binding(max_items=64), texts, delivered)
    delivered.assert_right(texts)
    log = standin.log()
    assert [entry["items"] for entry in log].count(64) == 15
    assert sum(entry["items"] for entry in log) == 1_000  # nothing was asked twice
    assert (usage.texts, usage.dead, usage.requests) == (1_000, 0, 16)
    assert usage.tokens == sum(entry["tokens"] for entry in log)
    assert 0 < usage.latency_p50 <= usage.latency_p95 <= usage.latency_p99 < usage.seconds


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=40), st.integers(1, 9), st.integers(1, 9))
def test_any_texts_in_any_batches_at_any_concurrency_come_back_right(
    standin: Standin, words: list[str], max_items: int, max_in_flight: int
) -> None:
    texts = texts_of([word.encode("utf-8", "replace").decode() for word in words])
    texts = list({text.text_hash: text for text in texts}.values())
    delivered = Delivered()
    embed(standin.binding(max_items=max_items, max_in_flight=max_in_flight), texts, delivered)
    delivered.assert_right(texts)


def test_a_local_model_runs_through_the_same_engine(delivered: Delivered) -> None:
    texts = texts_of([f"text number {i}" for i in range(200)])
    usage = embed(LOCAL, texts, delivered)
    assert len(delivered.vectors) == usage.texts == 200
    norms = np.linalg.norm(np.stack(list(delivered.vectors.values())), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_nothing_to_embed_costs_no_request_and_needs_no_key(standin: Standin, delivered: Delivered) -> None:
    assert embed(standin.binding(api_key_env="NOBODY_SET_THIS"), [], delivered).requests == 0
    assert standin.log() == []


def test_a_stopped_run_delivers_what_is_in_flight_and_sends_no_more(standin: Standin, delivered: Delivered) -> None:
    stop = threading.Event()
    texts = texts_of([f"text {i}" for i in range(100)])

    def deliver(item: Embedded | Dead) -> None:
        delivered(item)
        stop.set()

    with pytest.raises(Stopped):
        embed(standin.binding(max_items=1, max_in_flight=4), texts, deliver, stop=stop)

    sent = sum(entry["items"] for entry in standin.log())
    assert len(delivered.vectors) == sent < 20


def test_a_drain_that_takes_too_long_is_given_up(
    standin: Standin, delivered: Delivered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DRAIN_SECONDS", 0.1)
    standin.faults({"fault": "hang"})
    stop = threading.Event()
    stop_soon = threading.Timer(0.05, stop.set)
    stop_soon.start()
    with pytest.raises(Stopped):
        embed(standin.binding(max_items=1), texts_of(["one", "two"]), delivered, stop=stop)
    assert delivered.count == 0


def test_texts_are_pulled_and_delivered_on_the_callers_thread_even_beside_a_running_loop() -> None:
    threads = set()

    def source() -> Iterator[Text]:
        for text in texts_of(["a", "b"]):
            threads.add(threading.current_thread())
            yield text

    def deliver(item: Embedded | Dead) -> None:
        threads.add(threading.current_thread())

    async def beside() -> threading.Thread:
        def work() -> threading.Thread:
            embed(LOCAL, source(), deliver)
            return threading.current_thread()

        embed(LOCAL, texts_of(["straight from a coroutine"]), lambda item: None)
        return await asyncio.to_thread(work)

    assert threads == {asyncio.run(beside())}


def test_no_more_than_a_window_is_ever_pulled_ahead_of_a_slow_deliverer(standin: Standin) -> None:
    pulled, settled, most = 0, 0, 0

    def source() -> Iterator[Text]:
        nonlocal pulled, most
        for text in texts_of([f"text {i}" for i in range(2_000)]):
            pulled += 1
            most = max(most, pulled - settled)
            yield text

    def deliver(item: Embedded | Dead) -> None:
        nonlocal settled
        assert isinstance(item, Embedded)
        settled += len(item.text_hashes)

    embed(standin.binding(max_items=10, max_in_flight=4), source(), deliver)
    assert settled == 2_000
    assert most <= (4 + 2 + 2) * 10  # in flight, ready behind them, being filled and being delivered


def test_an_exception_of_deliver_stops_the_run_and_leaves_no_thread(standin: Standin) -> None:
    class DiskFullError(Exception):
        pass

    def deliver(item: Embedded | Dead) -> None:
        raise DiskFullError

    before = threading.active_count()
    with pytest.raises(DiskFullError):
        embed(standin.binding(max_items=1), texts_of([str(i) for i in range(10_000)]), deliver)
    assert threading.active_count() == before
    assert len(standin.log()) < 200


def test_an_exception_of_the_source_comes_after_what_was_sent_is_delivered(
    standin: Standin, delivered: Delivered
) -> None:
    texts = texts_of([f"text {i}" for i in range(100)])

    def source() -> Iterator[Text]:
        yield from texts
        raise LookupError("the part is gone")

    with pytest.raises(LookupError, match="the part is gone"):
        embed(standin.binding(max_items=10), source(), delivered)
    delivered.assert_right(texts[: delivered.count])
    assert delivered.count == sum(entry["items"] for entry in standin.log()) >= 90


def test_a_text_longer_than_the_provider_takes_is_a_dead_letter_without_a_request(
    standin: Standin, delivered: Delivered
) -> None:
    texts = [*texts_of(["a"]), Text(b"long", "word " * 9_000, 9_000), *texts_of(["b"])]
    usage = embed(standin.binding(), texts, delivered)
    delivered.assert_right(texts, dead=1)
    assert delivered.dead[b"long"].error_class == "too-long"
    assert usage.dead == 1
    assert sum(entry["items"] for entry in standin.log()) == 2


def test_progress_is_told_to_the_end(standin: Standin, delivered: Delivered) -> None:
    events: list[Event] = []
    texts = texts_of([f"text {i}" for i in range(300)])
    standin.reset(latency_seconds=0.05)
    embed(standin.binding(max_items=10, max_in_flight=1), texts, delivered, tell=events.append)
    progress = of_kind(events, EngineProgress)
    assert len(progress) >= 2
    assert all(a.texts <= b.texts for a, b in itertools.pairwise(progress))
    assert progress[-1].texts == 300
    assert (progress[-1].in_flight, progress[-1].breaker_open) == (0, False)


def test_each_request_is_told_of_with_what_became_of_it(standin: Standin, delivered: Delivered) -> None:
    events: list[Event] = []
    threads: set[int] = set()
    texts = texts_of([f"text {i}" for i in range(40)])
    standin.reset(latency_seconds=0.02)
    standin.faults({"fault": "status", "status": 429, "headers": {"retry-after": "0.1"}, "times": 1})
    began = time.time()

    def tell(event: Event) -> None:
        events.append(event)
        threads.add(threading.get_ident())

    usage = embed(standin.binding(max_items=10, max_in_flight=1), texts, delivered, tell=tell)

    settled = of_kind(events, RequestSettled)
    assert [(one.outcome, one.texts) for one in settled] == [("throttled", 10)] + 4 * [("ok", 10)]
    assert [one.asked_to_wait_seconds for one in settled] == [0.1] + 4 * [None]
    assert sum(one.tokens for one in settled if one.outcome == "ok") == usage.tokens
    assert all(0.02 <= one.seconds < 5 for one in settled if one.outcome == "ok")
    times = [began, *(one.sent_at for one in settled), time.time()]
    assert times == sorted(times)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(max_tokens=100), "max_tokens of 100"),
        (Budget(max_cost_usd=0.0001), "max_cost_usd of 0.0001"),
    ],
)
def test_a_budget_is_never_exceeded_and_what_was_bought_is_delivered(
    standin: Standin, delivered: Delivered, budget: Budget, words: str
) -> None:
    texts = texts_of([f"word{i}" for i in range(400)])  # of 2 or 3 tokens to the provider, of 1 to us
    binding = standin.binding(max_items=10, max_in_flight=2, price_per_million_tokens=1.0)
    with pytest.raises(BudgetSpent, match=words):
        embed(binding, [text._replace(tokens=3) for text in texts], delivered, budget=budget)
    log = standin.log()
    assert 60 <= sum(entry["tokens"] for entry in log) <= 100
    delivered.assert_right([text for text in texts if text.text_hash in delivered.vectors])
    assert delivered.count == sum(entry["items"] for entry in log)


def test_a_run_out_of_time_stops_cleanly(standin: Standin, delivered: Delivered) -> None:
    standin.reset(latency_seconds=0.02)
    endless = (text for i in itertools.count() for text in texts_of([f"text {i}"]))
    began = time.monotonic()
    with pytest.raises(BudgetSpent, match="max_seconds"):
        embed(standin.binding(max_items=5), endless, delivered, budget=Budget(max_seconds=0.3))
    assert time.monotonic() - began < 2
    assert delivered.count == sum(entry["items"] for entry in standin.log()) > 0
