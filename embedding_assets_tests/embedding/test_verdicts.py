"""What one answer says against the whole endpoint: believed at once of a stranger, on proof of one that did well."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_assets.embedding.engine.errors import ProviderDown
from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.rejections import ERROR_CLASSES
from embedding_assets_tests.embedding.conftest import HASTY, Delivered, texts_of
from embedding_assets_tests.embedding.test_faults import TEXTS, poisoned, run
from embedding_assets_tests.support.standin import Standin

MANY = texts_of([f"text {i}" for i in range(4_000)])

every_verdict = pytest.mark.parametrize(
    ("fault", "error_class"),
    [
        ({"fault": "dimension"}, "wrong-dimension"),
        ({"fault": "other model"}, "other-model"),
        ({"fault": "revoked"}, "credentials"),
        ({"fault": "status", "status": 404}, "not-found"),
        ({"fault": "status", "status": 418}, "unexpected-status"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)


# The endpoint is sound, one request is not


@every_verdict
def test_one_after_sound_answers_costs_a_retry_and_a_canary(
    standin: Standin, delivered: Delivered, fault: dict[str, Any], error_class: str
) -> None:
    standin.faults({**fault, "times": 1, "skip": 3})
    usage = run(standin, delivered)
    delivered.assert_right(TEXTS)
    assert usage.retries == 1
    assert len(standin.log()) == usage.requests <= 8 + 2


@every_verdict
def test_a_text_that_always_meets_one_is_a_dead_letter_found_within_the_bound(
    standin: Standin, delivered: Delivered, fault: dict[str, Any], error_class: str
) -> None:
    texts = poisoned(128, {77})  # in the second of two batches: no others get through beside it
    standin.faults({**fault, "match": "virus"})
    run(standin, delivered, texts, max_items=64)
    delivered.assert_right(texts, dead=1)
    (letter,) = delivered.dead.values()
    assert (letter.text_hash, letter.error_class) == (texts[77].text_hash, error_class)
    assert ERROR_CLASSES[error_class].cure.endswith("ask who runs the endpoint why not this one, or leave it out")
    assert letter.attempts >= HASTY.attempts
    assert len(standin.log()) <= 1 + 2 * HASTY.attempts + 5 * math.log2(64) + 2


def test_texts_that_always_meet_one_do_not_keep_others_from_their_vectors(
    standin: Standin, delivered: Delivered
) -> None:
    texts = poisoned(96, {20, 21, 50, 70})
    standin.faults({"fault": "dimension", "match": "virus .0"}, {"fault": "other model", "match": "virus"})
    run(standin, delivered, texts)
    delivered.assert_right(texts, dead=4)
    assert {letter.error_class for letter in delivered.dead.values()} == {"wrong-dimension", "other-model"}


def test_a_row_of_another_length_in_every_answer_is_its_texts_own_fault(standin: Standin, delivered: Delivered) -> None:
    texts = poisoned(24, {5, 6})  # in the first batch: its other rows are what speaks for the endpoint
    standin.faults({"fault": "short", "match": "virus"})
    run(standin, delivered, texts)
    delivered.assert_right(texts, dead=2)
    assert {letter.error_class for letter in delivered.dead.values()} == {"wrong-dimension"}


def test_a_canary_turned_away_for_another_reason_proves_nothing(standin: Standin, delivered: Delivered) -> None:
    standin.faults(*({"fault": fault, "times": 1, "skip": 1} for fault in ("dimension", "other model", "revoked")))
    run(standin, delivered, TEXTS[:16])
    delivered.assert_right(TEXTS[:16])
    assert [entry["items"] for entry in standin.log()] == [8, 8, 1, 1, 1, 8]


def test_a_canary_that_fails_alike_proves_nothing_while_others_get_through(
    standin: Standin, delivered: Delivered
) -> None:
    """As with one bad node of many: the request met it, and the canary did."""
    standin.faults(
        {"fault": "dimension", "match": "number 30$", "times": 1, "delay": 0.1},
        {"fault": "dimension", "match": "number 0$", "skip": 1, "delay": 0.3},
    )
    run(standin, delivered)
    delivered.assert_right(TEXTS)


# The same holds of every other way in which an answer can be wrong.

every_wrong_answer = pytest.mark.parametrize(
    ("fault", "error_class"),
    [
        ("missing", "bad-index"),
        ("extra", "bad-index"),
        ("renumbered", "bad-index"),
        ("out of range", "bad-index"),
        ("truncated", "not-json"),
        ("nan", "bad-vector"),
        ("inf", "bad-vector"),
        ("zero", "bad-vector"),
        ("null", "bad-vector"),
        ("short", "wrong-dimension"),
        ("dimension", "wrong-dimension"),
        ("other model", "other-model"),
    ],
)


@every_wrong_answer
def test_one_wrong_answer_after_many_right_ones_stops_nothing_and_buries_nothing(
    standin: Standin, delivered: Delivered, fault: str, error_class: str
) -> None:
    texts = MANY[:800]
    standin.faults({"fault": fault, "times": 1, "skip": 60})
    assert run(standin, delivered, texts).retries == 1
    delivered.assert_right(texts)


@every_wrong_answer
def test_a_text_whose_answers_are_always_wrong_is_a_dead_letter_and_no_other_is(
    standin: Standin, delivered: Delivered, fault: str, error_class: str
) -> None:
    texts = poisoned(64, {45})
    standin.faults({"fault": fault, "match": "virus"})
    run(standin, delivered, texts)
    delivered.assert_right(texts, dead=1)
    (letter,) = delivered.dead.values()
    assert (letter.text_hash, letter.error_class) == (texts[45].text_hash, error_class)


@every_wrong_answer
def test_wrong_answers_for_good_stop_the_run_and_none_of_them_is_delivered(
    standin: Standin, delivered: Delivered, fault: str, error_class: str
) -> None:
    standin.faults({"fault": fault, "skip": 20})
    with pytest.raises((PermanentError, ProviderDown), match=error_class):
        run(standin, delivered, MANY)
    delivered.assert_right([text for text in MANY if text.text_hash in delivered.vectors])
    assert delivered.count == 20 * 8


_PASSING = st.lists(
    st.fixed_dictionaries(
        {
            "fault": st.sampled_from(["dimension", "other model", "revoked", "status"]),
            "status": st.just(404),
            "times": st.just(1),
            "skip": st.integers(1, 8),
        }
    ),
    unique_by=lambda fault: str(fault["fault"]),  # two alike might meet the canary, and be believed
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_PASSING, st.sampled_from(["html", "nan", "throttle"]), st.sets(st.integers(0, 59), max_size=3))
def test_verdicts_that_pass_among_other_faults_bury_no_text_and_stop_no_run(
    standin: Standin, verdicts: list[dict[str, Any]], other: str, poison: set[int]
) -> None:
    texts = poisoned(60, poison)
    standin.reset()
    standin.faults({"fault": "poison", "match": "virus"}, {"fault": other, "skip": 2, "times": 3}, *verdicts)
    delivered = Delivered()
    run(standin, delivered, texts, patience=replace(HASTY, breaker_probes=40))
    delivered.assert_right(texts, dead=len(poison))


# The endpoint is not sound


@every_verdict
def test_from_the_first_answer_it_stops_at_once(
    standin: Standin, delivered: Delivered, fault: dict[str, Any], error_class: str
) -> None:
    standin.faults(fault)
    with pytest.raises(PermanentError, match=error_class):
        run(standin, delivered, MANY, answers_as="standin-model")
    assert (delivered.count, len(standin.log())) == (0, 1)


@every_verdict
def test_a_run_of_one_text_is_stopped_by_it(
    standin: Standin, delivered: Delivered, fault: dict[str, Any], error_class: str
) -> None:
    standin.faults(fault)
    with pytest.raises(PermanentError, match=error_class):
        run(standin, delivered, TEXTS[:1], answers_as="standin-model")
    assert (delivered.count, len(standin.log())) == (0, 1)


@every_verdict
def test_for_good_in_the_middle_one_canary_proves_it_and_what_was_delivered_is_kept(
    standin: Standin, delivered: Delivered, fault: dict[str, Any], error_class: str
) -> None:
    standin.faults({**fault, "skip": 40})
    with pytest.raises(PermanentError, match=f"{error_class}.*which accepted the same text before"):
        run(standin, delivered, MANY, max_in_flight=16)
    delivered.assert_right([text for text in MANY if text.text_hash in delivered.vectors])
    assert delivered.count == 40 * 8
    log = standin.log()
    # Each batch in flight or ready behind them meets it once; twice, if one that left later was answered before.
    assert len(log) <= 40 + 2 * (16 + 2) + 1
    assert [entry["items"] for entry in log].count(1) == 1


def test_what_is_in_flight_while_the_canary_proves_it_is_paid_for_and_kept(
    standin: Standin, delivered: Delivered
) -> None:
    standin.reset(latency_seconds=0.3)
    # The first request passes, and is one alone. Of the next two the second is the one; then the canary.
    standin.faults({"fault": "revoked", "match": "number (0|16)$", "skip": 1})
    with pytest.raises(PermanentError, match="credentials"):
        run(standin, delivered)
    assert delivered.count == sum(entry["items"] for entry in standin.log() if entry["status"] == 200) >= 16


def test_an_account_without_money_is_not_put_to_the_proof(standin: Standin, delivered: Delivered) -> None:
    """What is left of it may pay for a canary, and for no request."""
    standin.faults({"fault": "status", "status": 402, "match": "number 40$"})
    with pytest.raises(PermanentError, match=r"no-credit.*top up the account"):
        run(standin, delivered, max_in_flight=1)
    assert {entry["items"] for entry in standin.log()} == {8}
