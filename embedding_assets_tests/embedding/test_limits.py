"""Quotas: never more than is allowed, all of it used, and the provider's headers believed only as far as they make
sense."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.embedding.engine.limits import BURST_SECONDS, Bucket, Quota, quota, wait_asked

amounts = st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 40)), min_size=1, max_size=60)  # idle seconds, amount


def leave(bucket: Bucket, amounts: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(time, amount) of each, sent as early as the bucket lets it."""
    now, left = 0.0, []
    for idle, amount in amounts:
        now += idle
        now += bucket.wait(amount, now)
        bucket.take(amount, now)
        left.append((now, amount))
    return left


@given(amounts)
def test_in_no_stretch_of_time_leaves_more_than_the_quota_and_one_burst(amounts: list[tuple[float, float]]) -> None:
    left = leave(Bucket(600, 0.0), amounts)  # 10 a second
    for first in range(len(left)):
        for last in range(first, len(left)):
            sent = sum(amount for _, amount in left[first : last + 1])
            burst = max(10 * BURST_SECONDS, max(amount for _, amount in left[first : last + 1]))
            assert sent <= 10 * (left[last][0] - left[first][0]) + burst + 1e-6


def test_a_sender_that_is_always_ready_gets_the_whole_quota() -> None:
    left = leave(Bucket(600, 0.0), [(0, 7)] * 1_000)
    assert sum(amount for _, amount in left) / left[-1][0] == pytest.approx(10, rel=0.01)


def test_an_amount_larger_than_a_burst_waits_for_a_full_bucket_and_is_paid_for_after() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(1, 0.0)
    assert bucket.wait(30, 0.0) == pytest.approx(1)
    bucket.take(30, 1.0)
    assert bucket.wait(1, 1.0) == pytest.approx(30)


def test_the_providers_word_can_only_lower_what_is_left() -> None:
    bucket = Bucket(600, 0.0)
    bucket.at_most(1_000, 0.0)
    assert bucket.wait(10, 0.0) == 0
    bucket.at_most(2, 0.0)
    assert bucket.wait(2, 0.0) == 0
    assert bucket.wait(10, 0.0) == pytest.approx(0.8)
    bucket.at_most(-5, 0.0)
    assert bucket.wait(10, 0.0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("7", 7), ("0", 0), ("soon", None), ("-1", None)],
)
def test_reset_headers_are_read_as_openai_and_others_write_them(reset: str, seconds: float | None) -> None:
    headers = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": reset}
    assert quota(headers) == Quota(requests=59, requests_reset_seconds=seconds)


def test_headers_without_a_quota_say_nothing() -> None:
    assert quota({"content-type": "application/json"}) is None
    assert quota({"x-ratelimit-remaining-tokens": "many"}) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "999999999"}, 999999999),  # the gate bounds it
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Thu, 99 Foo 2026 99:99:99 GMT"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_asked(headers) == seconds


def test_retry_after_as_a_date_is_the_time_until_then() -> None:
    then = datetime.now(UTC) + timedelta(seconds=30)
    assert wait_asked({"retry-after": format_datetime(then, usegmt=True)}) == pytest.approx(30, abs=1.5)
    assert wait_asked({"retry-after": format_datetime(then - timedelta(hours=1), usegmt=True)}) == 0


@given(st.text(max_size=30))
def test_no_header_can_break_the_reading(value: str) -> None:
    names = ("retry-after", "retry-after-ms", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")
    for name in names:
        wait = wait_asked({name: value})
        assert wait is None or 0 <= wait < float("inf")
        quota({"x-ratelimit-remaining-requests": "1", name: value})
