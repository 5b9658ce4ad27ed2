"""The engine through every fault of a real server: what it delivers is right, and no fault costs more than it must.

`HASTY` shortens the waits, not the rules.
"""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_assets.embedding.engine.engine import UNLIMITED, Budget, Usage, embed
from embedding_assets.embedding.engine.errors import ProviderDown
from embedding_assets.embedding.engine.gate import Patience
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.rejections import ERROR_CLASSES
from embedding_assets.telemetry.events import BreakerClosed, BreakerOpened, Event, Tell, unheard
from embedding_assets_tests.embedding.conftest import HASTY, Delivered, texts_of
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.standin import KEY, Standin

TEXTS = texts_of([f"text number {i}" for i in range(60)])


def run(
    standin: Standin,
    delivered: Delivered,
    texts: Any = TEXTS,
    patience: Patience = HASTY,
    budget: Budget = UNLIMITED,
    tell: Tell = unheard,
    **options: Any,
) -> Usage:
    binding = standin.binding(**{"max_items": 8, **options})
    return embed(binding, texts, delivered, patience=patience, budget=budget, tell=tell)


def poisoned(n: int, poison: set[int]) -> list[Any]:
    return texts_of([f"virus {i}" if i in poison else f"text {i}" for i in range(n)])


# Faults that pass


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "status", "status": 500},
        {"fault": "status", "status": 503, "headers": {"retry-after": "0"}},
        {"fault": "status", "status": 408},
        {"fault": "html"},
        {"fault": "html", "status": 502},
        {"fault": "hang up"},
        {"fault": "reset"},
        {"fault": "truncated"},
        {"fault": "huge", "bytes": 10_000_000},
        {"fault": "missing"},
        {"fault": "renumbered"},
        {"fault": "doubled"},
        {"fault": "extra"},
        {"fault": "out of range"},
        {"fault": "nan"},
        {"fault": "inf"},
        {"fault": "zero"},
        {"fault": "null"},
        {"fault": "throttle"},
        {"fault": "throttle", "retry_after": "0.05"},
    ],
    ids=lambda fault: " ".join(str(value) for value in fault.values() if not isinstance(value, dict)),
)
def test_a_passing_fault_costs_a_retry_and_no_vector_is_wrong_or_missing(
    standin: Standin, delivered: Delivered, fault: dict[str, Any]
) -> None:
    standin.faults({**fault, "times": 3, "skip": 1})
    usage = run(standin, delivered)
    delivered.assert_right(TEXTS)
    assert len(standin.log()) == usage.requests <= 8 + 3 + 1
    assert usage.retries == 3
    assert usage.tokens - usage.discarded_tokens == sum(text.tokens for text in TEXTS)


@pytest.mark.parametrize("fault", ["hang", "slow"])
def test_an_answer_that_does_not_come_is_given_up_in_time(standin: Standin, delivered: Delivered, fault: str) -> None:
    standin.faults({"fault": fault, "times": 2, "for": 20})
    began = time.monotonic()
    run(standin, delivered, timeout_seconds=0.3)
    delivered.assert_right(TEXTS)
    assert time.monotonic() - began < 3


def test_items_in_another_order_are_placed_by_their_index(standin: Standin, delivered: Delivered) -> None:
    standin.faults({"fault": "reordered"})
    assert run(standin, delivered).retries == 0
    delivered.assert_right(TEXTS)


@pytest.mark.parametrize("fault", ["no index", "string index"])
def test_items_are_placed_by_their_order_or_by_an_index_in_quotes(
    standin: Standin, delivered: Delivered, fault: str
) -> None:
    standin.faults({"fault": fault})
    assert run(standin, delivered).retries == 0
    delivered.assert_right(TEXTS)


@pytest.mark.parametrize("fault", ["nan", "inf", "zero", "null", "short"])
def test_a_bad_vector_does_not_hold_up_its_neighbours(standin: Standin, delivered: Delivered, fault: str) -> None:
    standin.faults({"fault": fault, "match": "number 7$", "times": 1})
    usage = run(standin, delivered)
    delivered.assert_right(TEXTS)
    assert usage.retries == 1
    assert sum(entry["items"] for entry in standin.log()) == 61  # it alone was asked again


# Endpoints that lack something


def test_an_endpoint_that_refuses_base64_is_asked_once_and_for_floats_from_then_on(
    standin: Standin, delivered: Delivered
) -> None:
    standin.faults({"fault": "no base64"})
    usage = run(standin, delivered)
    delivered.assert_right(TEXTS)
    assert [entry["status"] for entry in standin.log()].count(400) == 1
    assert [entry["encoding_format"] for entry in standin.log()].count("base64") == 1
    assert usage.retries == 0


def test_an_endpoint_that_answers_floats_is_asked_for_floats_from_then_on(
    standin: Standin, delivered: Delivered
) -> None:
    standin.faults({"fault": "floats"})
    run(standin, delivered)
    delivered.assert_right(TEXTS)
    assert [entry["encoding_format"] for entry in standin.log()].count("base64") == 1


# Poison


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 80))
def test_poison_is_found_within_the_bound_and_the_rest_goes_on(standin: Standin, data: st.DataObject, n: int) -> None:
    poison = data.draw(st.sets(st.integers(0, n - 1), max_size=6))
    texts = poisoned(n, poison)
    standin.reset()
    standin.faults({"fault": "poison", "match": "virus"})
    delivered = Delivered()
    run(standin, delivered, texts, max_items=n)
    delivered.assert_right(texts, dead=len(poison))
    assert {letter.error_class for letter in delivered.dead.values()} <= {"refused"}
    assert len(standin.log()) <= 2 * len(poison) * math.log2(n) + 4


def test_a_batch_of_nothing_but_poison_is_buried_whole(standin: Standin, delivered: Delivered) -> None:
    texts = poisoned(8, set(range(8)))
    standin.faults({"fault": "poison", "match": "virus"})
    run(standin, delivered, texts)
    delivered.assert_right(texts, dead=8)


def test_the_canary_is_a_text_that_was_accepted_before(standin: Standin, delivered: Delivered) -> None:
    """Not every provider takes any text of ours: this one would refuse an "ok"."""
    texts = poisoned(16, {8, 9, 10, 11, 12, 13, 14, 15})
    standin.faults({"fault": "poison", "match": "virus|^ok$"})
    run(standin, delivered, texts)
    delivered.assert_right(texts, dead=8)


def test_a_dead_letter_says_what_the_provider_said_and_the_cure(standin: Standin, delivered: Delivered) -> None:
    texts = poisoned(8, {3})
    standin.faults({"fault": "poison", "match": "virus"})
    run(standin, delivered, texts)
    (letter,) = delivered.dead.values()
    assert letter.text_hash == texts[3].text_hash
    assert letter.error_class == "refused"
    assert "'$.input' is invalid" in letter.reason
    assert ERROR_CLASSES["refused"].cure == "mend the text at its source, or leave it out"
    assert ERROR_CLASSES["refused"].cure not in letter.reason
    assert letter.attempts == 1


def test_a_text_that_crashes_the_server_is_found_though_it_looks_like_a_failing_provider(
    standin: Standin, delivered: Delivered
) -> None:
    texts = poisoned(24, {13})
    standin.faults({"fault": "status", "status": 500, "match": "virus"})
    run(standin, delivered, texts)
    delivered.assert_right(texts, dead=1)
    (letter,) = delivered.dead.values()
    assert (letter.text_hash, letter.error_class) == (texts[13].text_hash, "server-error")


@pytest.mark.parametrize("fault", ["nan", "zero", "null"])
def test_a_text_without_a_vector_is_a_dead_letter_after_its_attempts(
    standin: Standin, delivered: Delivered, fault: str
) -> None:
    texts = poisoned(24, {5, 6})
    standin.faults({"fault": fault, "match": "virus"})
    run(standin, delivered, texts)
    delivered.assert_right(texts, dead=2)
    assert {letter.error_class for letter in delivered.dead.values()} == {"bad-vector"}
    assert all(letter.attempts >= HASTY.attempts for letter in delivered.dead.values())


# Fatal


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"fault": "revoked"}, "credentials.*check the key in the variable named by api_key_env"),
        ({"fault": "status", "status": 404}, "not-found.*check name, and base_url"),
        ({"fault": "status", "status": 429, "body": "insufficient_quota"}, "no-credit.*top up the account"),
        ({"fault": "other model"}, "other-model.*the answer is of another-model, not of standin-model.*set answers_as"),
        ({"fault": "dimension"}, "wrong-dimension.*63 dimensions, not 64"),
        ({"fault": "poison"}, "refuses every text, so one of its settings must be wrong"),
        ({"fault": "status", "status": 302}, "unexpected-status.*check base_url"),
    ],
    ids=lambda value: value["fault"] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("healthy_first", [0, 3])
def test_a_fatal_fault_stops_at_once_and_keeps_what_was_delivered(
    standin: Standin, delivered: Delivered, fault: dict[str, Any], words: str, healthy_first: int
) -> None:
    standin.faults({**fault, "skip": healthy_first})
    many = texts_of([f"text {i}" for i in range(10_000)])
    with pytest.raises(PermanentError, match=words):
        run(standin, delivered, many, max_in_flight=4, answers_as="standin-model")
    assert delivered.count == len(delivered.vectors)
    delivered.assert_right(many[: delivered.count])
    assert healthy_first * 8 <= delivered.count
    # The six batches under way are each halved down to a pair that is refused; then the first canary tells.
    assert len(standin.log()) <= healthy_first + 6 * (math.log2(8) + 2) + 1


def test_the_requests_in_flight_at_a_fatal_fault_are_paid_for_and_kept(standin: Standin, delivered: Delivered) -> None:
    standin.reset(latency_seconds=0.3)
    standin.faults({"fault": "status", "status": 402, "times": 1, "skip": 3})
    with pytest.raises(PermanentError, match="no-credit"):
        run(standin, delivered)
    assert delivered.count == sum(entry["items"] for entry in standin.log() if entry["status"] == 200) >= 24


def test_a_key_is_in_no_message_even_when_the_provider_echoes_it(standin: Standin, delivered: Delivered) -> None:
    standin.faults({"fault": "revoked"})
    with pytest.raises(PermanentError, match=r"Incorrect API key provided: \*\*\*") as caught:
        run(standin, delivered)
    assert KEY not in "".join(map(str, (caught.value, caught.value.__cause__, repr(caught.value))))


# Throttling


def test_a_storm_of_429_never_multiplies_requests(standin: Standin, delivered: Delivered) -> None:
    standin.faults({"fault": "throttle", "seconds": 0.6, "retry_after": "0.1", "delay": 0.1, "skip": 10})
    texts = texts_of([f"text {i}" for i in range(400)])
    usage = run(standin, delivered, texts)
    delivered.assert_right(texts)
    # 8 were in flight when it began; then one at a time asks, at most each 0.1 s
    assert 2 <= usage.throttled <= 8 + 6
    assert len(standin.log()) == 50 + usage.throttled


def test_a_storm_without_a_word_of_when_is_waited_out_with_growing_pauses(
    standin: Standin, delivered: Delivered
) -> None:
    standin.faults({"fault": "throttle", "seconds": 0.5})
    usage = run(standin, delivered, patience=Patience(backoff_seconds=0.05))
    delivered.assert_right(TEXTS)
    assert usage.throttled <= 8 + 12


@pytest.mark.parametrize(("told", "handed"), [("61", 61), ("3600", 3600)])
def test_a_wait_too_long_to_sleep_is_handed_to_the_caller(
    standin: Standin, delivered: Delivered, told: str, handed: float
) -> None:
    standin.faults({"fault": "throttle", "retry_after": told, "skip": 2})
    with pytest.raises(TransientError) as caught:
        run(standin, delivered)
    assert isinstance(caught.value, ProviderDown)
    assert caught.value.retry_after_seconds == handed
    assert delivered.count == len(delivered.vectors) == 16


def test_an_absurd_wait_is_bounded(standin: Standin, delivered: Delivered) -> None:
    standin.faults({"fault": "throttle", "retry_after": "1790000000", "times": 1})
    began = time.monotonic()
    run(standin, delivered, patience=Patience(longest_asked_seconds=0.2))
    assert 0.2 <= time.monotonic() - began < 2
    delivered.assert_right(TEXTS)


def test_an_endless_storm_is_handed_to_the_caller(standin: Standin, delivered: Delivered) -> None:
    standin.faults({"fault": "throttle", "retry_after": "0.05"})
    with pytest.raises(ProviderDown, match="throttled every request"):
        run(standin, delivered, patience=Patience(storm_seconds=0.3))
    assert len(standin.log()) <= 8 + 8


# Outages


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "status", "status": 500},
        {"fault": "status", "status": 503},
        {"fault": "hang up"},
        {"fault": "html"},
        {"fault": "nan"},
        {"fault": "missing"},
    ],
    ids=lambda fault: f"{fault['fault']} {fault.get('status', '')}",
)
def test_an_outage_opens_the_breaker_and_hands_the_wait_to_the_caller(
    standin: Standin, delivered: Delivered, fault: dict[str, Any]
) -> None:
    standin.faults({**fault, "skip": 3})
    with pytest.raises(ProviderDown, match="has failed for everyone") as caught:
        run(standin, delivered)
    assert caught.value.retry_after_seconds == HASTY.hand_over_seconds
    delivered.assert_right([text for text in TEXTS if text.text_hash in delivered.vectors])
    log = standin.log()
    # What was in flight and the failures that open the breaker, then probes of one small text each.
    assert len(log) <= 3 + 8 + HASTY.breaker_failures + HASTY.breaker_probes
    assert {entry["items"] for entry in log} <= {8, 4, 1}


def test_an_outage_of_the_network_is_handed_over_too(delivered: Delivered, standin: Standin) -> None:
    with pytest.raises(ProviderDown, match="has failed for everyone"):
        run(standin, delivered, base_url="http://127.0.0.1:9/v1")  # nobody listens there


def test_an_outage_that_ends_is_ridden_out_and_never_bisected(standin: Standin, delivered: Delivered) -> None:
    events: list[Event] = []
    standin.faults({"fault": "status", "status": 500, "times": 7, "skip": 2})
    patience = Patience(backoff_seconds=0.02, breaker_seconds=0.1)
    texts = texts_of([f"text {i}" for i in range(200)])
    embed(standin.binding(max_items=8), texts, delivered, patience=patience, tell=events.append)
    delivered.assert_right(texts)
    assert of_kind(events, BreakerOpened) == [BreakerOpened(patience.breaker_failures)]
    (closed,) = of_kind(events, BreakerClosed)
    assert 0.1 <= closed.seconds < 10
    assert {entry["items"] for entry in standin.log()} <= {8, 1}  # whole batches, and canaries


@pytest.mark.parametrize("n", [1, 8])
def test_a_lone_batch_through_an_outage_is_not_blamed_for_it(standin: Standin, delivered: Delivered, n: int) -> None:
    """Nobody else's success tells a fault of the provider from the batch's own: the canary does."""
    standin.faults({"fault": "status", "status": 500, "times": 7})
    run(standin, delivered, TEXTS[:n])
    delivered.assert_right(TEXTS[:n])
    assert {entry["items"] for entry in standin.log()} <= {n, 1}


@pytest.mark.parametrize("in_flight", [1, 8])  # 8 failures open the breaker: its probes wait as well
def test_an_unavailable_provider_that_says_when_is_not_asked_before(
    standin: Standin, delivered: Delivered, in_flight: int
) -> None:
    fault = {"fault": "status", "status": 503, "headers": {"retry-after": "0.4"}, "delay": 0.2, "times": in_flight}
    standin.faults({**fault, "skip": 30})
    run(standin, delivered, texts_of([f"text {i}" for i in range(400)]), max_in_flight=in_flight)
    log = standin.log()
    first = [entry["status"] for entry in log].index(503)
    assert max(entry["at"] for entry in log[: first + in_flight]) + 0.2 + 0.39 <= log[first + in_flight]["at"]
    delivered.assert_right(texts_of([f"text {i}" for i in range(400)]))


# Everything at once

_ANY = st.fixed_dictionaries(
    {
        "fault": st.sampled_from(
            ["status", "throttle", "html", "hang up", "reset", "truncated", "missing", "renumbered", "doubled"]
        )
        | st.sampled_from(["extra", "out of range", "nan", "zero", "null", "reordered", "floats"]),
        "times": st.integers(1, 4),
        "skip": st.integers(0, 6),
    }
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_ANY, max_size=6), st.sets(st.integers(0, 59), max_size=3))
def test_whatever_happens_each_text_ends_once_and_no_vector_is_wrong(
    standin: Standin, faults: list[dict[str, Any]], poison: set[int]
) -> None:
    texts = poisoned(60, poison)
    standin.reset()
    standin.faults({"fault": "poison", "match": "virus"}, *faults)
    delivered = Delivered()
    run(standin, delivered, texts, patience=replace(HASTY, breaker_probes=40))
    delivered.assert_right(texts, dead=len(poison))
