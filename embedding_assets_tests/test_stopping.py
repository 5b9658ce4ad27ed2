"""Runs that are stopped on the way, by a signal, a kill or their budget: what was paid for stays, the rest is next."""

import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import dagster as dg
import numpy as np
import pytest
from numpy.typing import NDArray

from embedding_assets.embedding import task
from embedding_assets.embedding.engine.engine import embed
from embedding_assets.embedding.engine.gate import Patience
from embedding_assets.embedding.journal import Journal
from embedding_assets.errors import TransientError
from embedding_assets.orchestration.assets import boundary
from embedding_assets.orchestration.automation.failures import reason
from embedding_assets.orchestration.automation.jobs import SOURCE_JOB
from embedding_assets.snapshots import log
from embedding_assets.snapshots.failpoints import Failpoint
from embedding_assets_tests.support.harness import SOURCE, Sandbox, killed
from embedding_assets_tests.support.standin import Standin

TEXTS = 60
IN_FLIGHT = 4
READY = 2  # batches that wait at the gate


@pytest.fixture
def box(sandbox: Sandbox, standin: Standin) -> Sandbox:
    """Sixty documents of one chunk each, and a provider that takes its time for every one."""
    sandbox.write(**{f"page_{i:02}": f"# Page {i}\n\nNumber {i}." for i in range(TEXTS)})
    standin.reset(latency_seconds=0.02)
    local = {**sandbox.models["v1"], "max_items": TEXTS}
    # No key: the server that forks the children may be older than the variable.
    remote = standin.model(max_items=1, max_in_flight=IN_FLIGHT, api_key_env=None)
    return replace(sandbox, models={"v1": local, "v2": remote})


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def sent(standin: Standin) -> Counter[str]:
    """How often each text was sent."""
    return Counter(text for entry in standin.log() for text in entry["texts"])


def complete(box: Sandbox) -> bool:
    head = log.head(box.deployment.primary, "embeddings_v2", SOURCE)
    return head is not None and sum(part.rows for part in head.parts) == TEXTS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_so_that_no_text_is_ever_sent_twice(
    box: Sandbox,
    standin: Standin,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    add, calls = Journal.add, 0

    def interrupted(self: Journal, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        nonlocal calls
        calls += len(hashes) == 1  # v1 sends all in one
        if calls == 5:
            os.kill(os.getpid(), number)
        add(self, hashes, vectors)

    monkeypatch.setattr(Journal, "add", interrupted)
    result = box.execute(SOURCE_JOB, SOURCE, instance)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert reason(failure).startswith("embeddings_v2: Told to stop (SIGTERM or SIGINT). What was done stays")
    assert 5 <= sent(standin).total() < TEXTS
    assert not complete(box)

    assert box.execute(SOURCE_JOB, SOURCE, instance).success

    assert complete(box)
    assert set(sent(standin).values()) == {1}


@pytest.mark.parametrize("moment", [1, *(pytest.param(late, marks=pytest.mark.slow) for late in (7, 30, 59))])
def test_a_kill_costs_at_most_the_requests_in_flight(box: Sandbox, standin: Standin, moment: int) -> None:
    assert killed(box.in_another_process(f"{Failpoint.AFTER_JOURNAL}:{moment + 1}"))  # v1 wrote the first
    paid = sent(standin).total()
    assert moment <= paid <= moment + IN_FLIGHT + READY

    assert not killed(box.in_another_process())

    assert complete(box)
    assert len(sent(standin)) == TEXTS
    assert sent(standin).total() - TEXTS <= paid - moment  # what had left, and was not in the journal yet


def test_a_run_stops_at_its_budget_and_the_next_goes_on_where_it_stopped(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    local = {**box.models["v1"], "max_items": 4}
    box = replace(box, models={**box.models, "v1": local}, more={"run_budget": {"max_tokens": 200}})
    runs = 0
    while not complete(box):
        result = box.execute(SOURCE_JOB, SOURCE, instance)
        runs += 1
        assert sum(entry["tokens"] for entry in standin.log()) <= 200 * runs
        if not result.success:
            failures = [reason(event) for event in result.all_events if event.is_step_failure]
            assert all("max_tokens of 200 is reached" in failure for failure in failures)
    assert runs > 1
    assert set(sent(standin).values()) == {1}


def test_one_run_has_one_budget_for_both_models_and_all_retries(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = Journal.add, 0

    def failing(self: Journal, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        nonlocal calls
        calls += 1
        add(self, hashes, vectors)
        if calls % 5 == 0:
            raise TransientError("away for a moment")

    monkeypatch.setattr(Journal, "add", failing)
    models = {slot: standin.model(max_items=1, max_in_flight=1, api_key_env=None) for slot in ("v1", "v2")}
    models["v2"]["name"] = "another-standin-model"
    box = replace(box, models=models, more={"run_budget": {"max_tokens": 150}})

    result = box.execute(SOURCE_JOB, SOURCE, instance)

    assert any(event.is_step_up_for_retry for event in result.all_events)
    failures = [reason(event) for event in result.all_events if event.is_step_failure]
    assert len(failures) == 2
    assert all("max_tokens of 150 is reached" in failure for failure in failures)
    assert 100 <= sum(entry["tokens"] for entry in standin.log()) <= 150


def test_runs_with_a_budget_below_a_shard_and_a_new_home_each_buy_each_text_once(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    box = replace(box, more={"run_budget": {"max_tokens": 900}})
    runs = 0
    while not complete(box):
        for lost in ("journals", "catalogs", "budgets", "outcomes"):
            shutil.rmtree(box.deployment.home / lost, ignore_errors=True)
        box.execute(SOURCE_JOB, SOURCE, instance)
        runs += 1
        assert runs < 10
    assert runs > 1
    assert set(sent(standin).values()) == {1}
    assert not list(box.deployment.primary.entries("journals"))


def test_a_signal_is_heard_while_a_run_waits_for_its_provider(
    box: Sandbox, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(boundary, "tell_of_wait", interrupt)
    monkeypatch.setattr(task, "embed", partial(embed, patience=Patience(longest_asked_seconds=0.05)))
    standin.faults({"fault": "throttle", "times": 1, "retry_after": "3600"})

    outcome = box.materialize()[-1]  # which would take an hour

    assert not outcome.succeeded
    assert any("Told to stop (SIGTERM or SIGINT)" in error for error in outcome.errors)
