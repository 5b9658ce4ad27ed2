"""What an endpoint takes in one request is learned from what it refuses, and remembered."""

from typing import Any

import pytest

from embedding_assets.embedding.engine.engine import embed
from embedding_assets.embedding.engine.takes import ANYTHING, Learning, Takes, hinted
from embedding_assets_tests.embedding.conftest import HASTY, Delivered, texts_of
from embedding_assets_tests.embedding.test_faults import poisoned
from embedding_assets_tests.support.standin import Standin

MANY = texts_of([f"text number {i}" for i in range(600)])  # of 4 or 5 tokens


def run(
    standin: Standin, delivered: Delivered, texts: Any = MANY, takes: Takes = ANYTHING, **given: Any
) -> tuple[Takes, list[dict[str, Any]]]:
    """What is known at the end, and the refused requests."""
    told: list[Takes] = []
    binding = standin.binding(**{"max_items": 200, **given})
    embed(binding, texts, delivered, patience=HASTY, takes=takes, on_takes=told.append)
    return told[-1], [entry for entry in standin.log() if entry["status"] >= 400]


@pytest.mark.parametrize(
    ("fault", "known", "refused"),
    [
        ({"max_items": 30, "words": "Batch size 200 > maximum allowed batch size 30"}, Takes(items=30), 4),
        ({"max_items": 30, "words": "batch size is invalid, it should not be larger than 30."}, Takes(items=30), 4),
        ({"max_items": 30, "words": "at most 30 requests can be in one batch"}, Takes(items=30), 4),
        ({"max_items": 30, "words": "Too many inputs. The max number of inputs is 30."}, Takes(items=30), 4),
        ({"max_tokens": 300, "words": "max 300 tokens per request"}, Takes(tokens=300), 4),
        ({"max_tokens": 300, "words": "Requested 1000 tokens, maximum is 300"}, Takes(tokens=300), 4),
        ({"max_items": 30}, Takes(items=25), 12),
        ({"max_items": 30, "status": 422, "words": "too many"}, Takes(items=25), 12),
        ({"max_bytes": 2_000, "status": 413, "words": "<html>413 Request Entity Too Large</html>"}, None, 12),
    ],
    ids=lambda value: value.get("words", "no word") if isinstance(value, dict) else "",
)
def test_a_batch_that_is_too_large_teaches_what_is_taken(
    standin: Standin,
    delivered: Delivered,
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
    known: Takes | None,
    refused: int,
) -> None:
    standin.faults({"fault": "caps", **fault})
    takes, in_vain = run(standin, delivered)
    delivered.assert_right(MANY)
    assert takes.tokens if known is None else takes.items == known.items and (takes.tokens or 0) <= (known.tokens or 0)
    assert len(in_vain) <= refused  # of three batches
    assert "to spare the attempts" in caplog.text

    standin.reset()
    standin.faults({"fault": "caps", **fault})
    again, in_vain = run(standin, Delivered(), takes=takes)
    assert (again, in_vain) == (takes, [])


def test_a_limit_that_is_met_by_longer_texts_is_one_of_tokens_whatever_the_status(
    standin: Standin, delivered: Delivered
) -> None:
    short, long = [f"a {i}" for i in range(400)], [f"{'word ' * 20} {i}" for i in range(400)]
    standin.faults({"fault": "caps", "max_tokens": 1_000})
    takes, in_vain = run(standin, delivered, texts_of(short + long), max_in_flight=1)
    delivered.assert_right(texts_of(short + long))
    assert takes.items is None
    assert 500 < (takes.tokens or 0) <= 1_000
    assert len(in_vain) <= 8


def test_texts_that_are_refused_teach_nothing(standin: Standin, delivered: Delivered) -> None:
    texts = poisoned(200, {3, 77, 150})
    standin.faults({"fault": "status", "status": 400, "match": "virus", "body": "this item is over the limit of 30"})
    takes, _ = run(standin, delivered, texts)
    delivered.assert_right(texts, dead=3)
    assert takes == ANYTHING


def test_one_odd_refusal_teaches_nothing(standin: Standin, delivered: Delivered) -> None:
    standin.faults({"fault": "status", "status": 400, "times": 1})
    takes, _ = run(standin, delivered)
    delivered.assert_right(MANY)
    assert takes == ANYTHING
    assert 200 in {entry["items"] for entry in standin.log() if entry["status"] == 200}


def test_what_was_accepted_is_no_limit() -> None:
    texts = texts_of([f"text {i}" for i in range(8)])
    learning = Learning(ANYTHING)
    learning.accepted(texts)
    for _ in range(3):
        assert not learning.too_large(texts, ANYTHING, by_size=False)
        assert not learning.too_large(texts, Takes(items=4), by_size=False)
    assert learning.takes == ANYTHING


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ("Expected maximum length 2,048 of the input array", ANYTHING),  # more than there are
        ("The batch size limit is 10. Your batch size is 40.", Takes(items=10)),
        ("maximum context length is 100 tokens", Takes(tokens=100)),
        ("body exceeds 20 MB", ANYTHING),
        ("error 20: invalid input", ANYTHING),
        ("text number 7 is at most odd", ANYTHING),
        ("", ANYTHING),
    ],
)
def test_a_number_is_a_limit_where_words_of_one_stand_before_it(words: str, limit: Takes) -> None:
    assert hinted(words, texts_of([f"a longer text number {i}" for i in range(40)])) == limit


def test_a_number_that_a_text_may_have_brought_is_none() -> None:
    texts = texts_of(["batch limit is 2", "a", "b", "c"])
    assert hinted("refused: batch limit is 2", texts) == ANYTHING
    assert hinted("refused: batch limit is 2", texts[1:]) == Takes(items=2)
