"""Who waits for a provider reads what for, since when and until when, whatever the terminal."""

import re
import threading
from dataclasses import replace
from typing import Any

import pytest

from embedding_assets.embedding.engine import engine
from embedding_assets.embedding.engine.errors import ProviderDown
from embedding_assets.embedding.engine.gate import Patience
from embedding_assets.orchestration.assets import waits
from embedding_assets.telemetry import log
from embedding_assets.telemetry.log import waits_logged
from embedding_assets_tests.embedding.conftest import Delivered, texts_of
from embedding_assets_tests.embedding.test_faults import TEXTS, run
from embedding_assets_tests.support.standin import Standin

CLOCK = r"\d\d:\d\d:\d\d"
PATIENT = Patience(backoff_seconds=0.05, longest_backoff_seconds=0.1, breaker_seconds=0.05, breaker_probes=100)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(waits, "_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(engine, "_PROGRESS_SECONDS", 0.02)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"fault": "status", "status": 503}, "unavailable: 503: error"),
        ({"fault": "status", "status": 500}, "server-error: 500: error"),
        ({"fault": "html"}, "not-json: "),
        ({"fault": "throttle"}, "throttled: 429: .*Rate limit reached"),
    ],
    ids=["unavailable", "failing", "a gateway", "throttled"],
)
def test_a_provider_that_fails_is_told_of_time_and_again(
    standin: Standin, delivered: Delivered, caplog: pytest.LogCaptureFixture, fault: dict[str, Any], words: str
) -> None:
    run(standin, delivered, TEXTS[:1])  # what is imported once takes its time
    caplog.clear()
    standin.faults({**fault, "seconds": 1.0})
    run(standin, delivered, TEXTS[1:], patience=PATIENT, tell=waits_logged())
    delivered.assert_right(TEXTS)
    lines = [record.message for record in caplog.records if "no sound answer" in record.message]
    assert 2 <= len(lines) <= 12
    line = rf"standin-model of openai at http.*: no sound answer since {CLOCK} \({words}.*, until {CLOCK} at the latest"
    assert all(re.search(line, told) for told in lines)


def test_a_wait_that_the_provider_told_has_its_end(
    standin: Standin, delivered: Delivered, caplog: pytest.LogCaptureFixture
) -> None:
    standin.faults({"fault": "throttle", "retry_after": "0.5", "times": 1, "skip": 2})
    run(standin, delivered, tell=waits_logged())
    assert any(re.search(f"the next request goes at {CLOCK}, until", record.message) for record in caplog.records)


def test_an_answer_that_does_not_come_is_told_of(
    standin: Standin, delivered: Delivered, caplog: pytest.LogCaptureFixture
) -> None:
    standin.faults({"fault": "hang", "for": 0.5, "times": 1})
    run(standin, delivered, TEXTS[:8], tell=waits_logged())
    line = rf"no answer since {CLOCK}; a request is given up after 60 s"
    assert 2 <= sum(bool(re.search(line, record.message)) for record in caplog.records) <= 6


def test_a_provider_that_answers_is_not_told_of(
    standin: Standin, delivered: Delivered, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "EVERY_SECONDS", 2.0)
    standin.reset(latency_seconds=0.05)
    run(standin, delivered, texts_of([f"text {i}" for i in range(100)]), max_in_flight=2, tell=waits_logged())
    assert not caplog.records


def test_one_that_stays_away_is_told_of_until_it_is_handed_over(
    standin: Standin, delivered: Delivered, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ProviderDown):
        run(
            standin,
            delivered,
            patience=replace(PATIENT, breaker_probes=4),
            tell=waits_logged(),
            base_url="http://127.0.0.1:9/v1",  # nobody listens there
        )
    assert "unreachable" in caplog.text


def test_a_wait_of_dagsters_is_told_of_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    waits.tell_of_wait("embeddings_v1 of handbook", "the provider is away", 0.35, waits_logged())
    (teller,) = [thread for thread in threading.enumerate() if thread.name == "tell-of-wait"]
    teller.join(timeout=10)
    lines = [record.message for record in caplog.records]
    assert 2 <= len(lines) <= 4
    line = rf"embeddings_v1 of handbook waits since {CLOCK} until {CLOCK}, then tries again: the provider is away"
    assert all(re.fullmatch(line, told) for told in lines)
