"""At the quota, never over it: a real server with real token buckets, and not one 429."""

import pytest

from embedding_assets.embedding.engine.engine import embed
from embedding_assets_tests.embedding.conftest import HASTY, Delivered, texts_of
from embedding_assets_tests.support.standin import Standin


def test_a_quota_of_requests_is_used_whole_and_never_exceeded(standin: Standin, delivered: Delivered) -> None:
    standin.reset(requests_per_minute=3_000, latency_seconds=0.02)
    texts = texts_of([f"text {i}" for i in range(125)])
    usage = embed(standin.binding(max_items=1, requests_per_minute=3_000), texts, delivered)
    delivered.assert_right(texts)
    assert usage.throttled == 0
    assert 1.5 <= usage.seconds <= 1.9  # 125 requests at 50 a second, of which 50 may go at once


def test_a_quota_of_tokens_is_used_whole_and_never_exceeded(standin: Standin, delivered: Delivered) -> None:
    standin.reset(tokens_per_minute=60_000, latency_seconds=0.02)
    texts = texts_of([f"{i} " + "word " * 98 for i in range(30)])
    usage = embed(standin.binding(max_items=8, tokens_per_minute=60_000), texts, delivered)
    delivered.assert_right(texts)
    assert usage.throttled == 0
    assert usage.tokens / 1_000 - 1 <= usage.seconds <= usage.tokens / 1_000 + 0.6  # 1,000 a second, one second at once


def test_no_request_is_larger_than_what_may_leave_at_once(standin: Standin, delivered: Delivered) -> None:
    texts = texts_of([f"{i} " + "word " * 99 for i in range(40)])
    embed(standin.binding(tokens_per_minute=120_000), texts, delivered)
    assert max(entry["tokens"] for entry in standin.log()) <= 2_000


def test_a_provider_that_counts_more_tokens_than_we_do_is_believed(standin: Standin, delivered: Delivered) -> None:
    """Our count is a third of its: the pace follows what its answers say they cost (the first are a surprise)."""
    standin.reset(tokens_per_minute=30_000, latency_seconds=0.01)
    texts = [text._replace(tokens=7) for text in texts_of([f"{i:03} " + "word " * 19 for i in range(60)])]
    usage = embed(standin.binding(max_items=5, tokens_per_minute=30_000), texts, delivered, patience=HASTY)
    delivered.assert_right(texts)
    assert usage.tokens == 3 * sum(text.tokens for text in texts)
    assert usage.throttled <= 2
    assert usage.seconds <= usage.tokens / 500 + 1


def test_a_quota_shared_with_others_is_seen_in_the_headers(standin: Standin, delivered: Delivered) -> None:
    """The provider allows a fifth of what we were told: what its headers say is left keeps most of us from a 429."""
    standin.reset(requests_per_minute=1_200, latency_seconds=0.02)
    texts = texts_of([f"text {i}" for i in range(80)])
    usage = embed(standin.binding(max_items=1, requests_per_minute=6_000), texts, delivered)
    delivered.assert_right(texts)
    assert usage.throttled <= 20
    assert usage.seconds <= 4  # 80 requests at 20 a second, of which 40 may go at once: 2 s


def test_concurrency_opens_while_answers_come(standin: Standin, delivered: Delivered) -> None:
    standin.reset(latency_seconds=0.05)
    texts = texts_of([f"text {i}" for i in range(300)])
    embed(standin.binding(max_items=1, max_in_flight=64), texts, delivered)
    delivered.assert_right(texts)
    at_once = [entry["in_flight"] for entry in sorted(standin.log(), key=lambda entry: float(entry["at"]))]
    assert at_once[0] == at_once[1] == 1
    assert max(at_once) >= 32


def test_requests_never_exceed_the_concurrency_they_may_have(standin: Standin, delivered: Delivered) -> None:
    standin.reset(latency_seconds=0.02)
    texts = texts_of([f"text {i}" for i in range(50)])
    embed(standin.binding(max_items=1, max_in_flight=3), texts, delivered)
    assert max(entry["in_flight"] for entry in standin.log()) == 3


@pytest.mark.slow
def test_the_whole_quota_of_openai_is_served_for_a_minute_without_a_429(standin: Standin, delivered: Delivered) -> None:
    standin.reset(requests_per_minute=3_000, tokens_per_minute=1_000_000, latency_seconds=0.08)
    texts = (text for i in range(8_800) for text in texts_of([f"{i} " + "word " * 110]))
    usage = embed(standin.binding(requests_per_minute=3_000, tokens_per_minute=1_000_000), texts, delivered)
    assert usage.throttled == 0
    assert usage.tokens / usage.seconds >= 0.98 * 1_000_000 / 60
