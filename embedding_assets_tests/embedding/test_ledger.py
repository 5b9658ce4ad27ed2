"""One budget for all attempts of a run and for both model versions, wherever they run."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from embedding_assets.embedding.engine.engine import Budget, BudgetSpent, embed
from embedding_assets.embedding.ledger import Account, Used, open_ledger
from embedding_assets.errors import TransientError
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets_tests.embedding.conftest import HASTY, Delivered, texts_of
from embedding_assets_tests.support.standin import Standin


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path / "budgets" / "runs.sqlite", "this run")


def at_most(tokens: int) -> Callable[[Used, Used], str | None]:
    return lambda now, then: f"{now.tokens} used" if then.tokens > tokens else None


def used(account: Account) -> Used:
    """What the run has used, as another attempt sees it."""
    seen: list[Used] = []

    def look(now: Used, then: Used) -> None:
        seen.append(now)

    with open_ledger(account) as ledger:
        ledger.reserve(0, 0, look)
    return seen[0]


def test_attempts_of_a_run_share_its_sum_and_other_runs_do_not(account: Account) -> None:
    with open_ledger(account) as one, open_ledger(account) as other, open_ledger(replace(account, run="b")) as apart:
        assert one.reserve(60, 0.5, at_most(100)) is None
        assert other.reserve(50, 0.5, at_most(100)) == "60 used"
        assert apart.reserve(50, 0.5, at_most(100)) is None
        one.settle(40, 0.25)
        assert other.reserve(50, 0.5, at_most(100)) is None
        assert used(account)[:2] == (90, 0.75)


# Attempts that have another home


@pytest.fixture
def pods(tmp_path: Path) -> list[Account]:
    """Three homes of one run, and the store that they have in common."""
    store = open_store((tmp_path / "store").as_uri())
    return [Account(tmp_path / f"pod{n}" / "runs.sqlite", "this run", store) for n in range(3)]


def objects(account: Account) -> list[str]:
    assert account.store is not None
    return [found.path for found in account.store.entries("budgets")]


def test_an_attempt_with_another_home_has_what_those_before_it_left(pods: list[Account]) -> None:
    with open_ledger(pods[0]) as first:
        assert first.reserve(60, 0.5, at_most(100)) is None
        first.settle(40, 0.25)
    with open_ledger(pods[1]) as second:
        assert second.reserve(61, 0.5, at_most(100)) == "40 used"
        assert second.reserve(60, 0.5, at_most(100)) is None
    assert used(pods[2])[:2] == (100, 0.75)
    assert used(pods[0])[:2] == (100, 0.75)  # its own row is counted once
    assert used(replace(pods[0], run="another")).tokens == 0


def test_attempts_side_by_side_with_homes_of_their_own_never_exceed_it_together(pods: list[Account]) -> None:
    with open_ledger(pods[0]) as one, open_ledger(pods[1]) as other:
        mine = [0, 0]
        for _ in range(200):
            for n, ledger in enumerate((one, other)):
                if ledger.reserve(mine[n] + 1, 0.0, at_most(100)) is None:
                    mine[n] += 1
        assert 90 <= sum(mine) <= 100
        assert len(objects(pods[0])) == 2  # one an attempt, whatever they reserve


def test_an_attempt_that_was_killed_counts_for_a_tenth_too_much_at_most(pods: list[Account]) -> None:
    abandoned = open_ledger(pods[0])
    ledger = abandoned.__enter__()
    for tokens in range(100, 1001, 10):
        assert ledger.reserve(tokens, 0.0, at_most(10_000)) is None
    assert 1_000 <= used(pods[1]).tokens <= 1_100
    abandoned.__exit__(None, None, None)
    assert used(pods[1]).tokens == 1_000


def test_the_seconds_count_from_the_first_attempt_wherever_it_was(
    pods: list[Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    used(pods[0])
    began = time.time()
    monkeypatch.setattr("embedding_assets.embedding.ledger.time.time", lambda: began + 60)
    assert 59 <= used(pods[1]).seconds < 90


def test_a_store_that_is_away_stops_nothing(pods: list[Account], monkeypatch: pytest.MonkeyPatch) -> None:
    def away(store: Store, path: str, data: bytes) -> bool:
        raise TransientError("away")

    monkeypatch.setattr(Store, "put_if_absent", away)
    with open_ledger(pods[0]) as ledger:
        assert ledger.reserve(60, 0.5, at_most(100)) is None
    assert used(pods[0]).tokens == 60


def test_claims_of_runs_long_past_go_by_themselves(pods: list[Account], monkeypatch: pytest.MonkeyPatch) -> None:
    used(replace(pods[0], run="long ago"))
    assert len(objects(pods[0])) == 1
    monkeypatch.setattr("embedding_assets.embedding.ledger._KEPT_SECONDS", -1)
    used(pods[1])
    assert len(objects(pods[0])) == 1
    assert "long ago" not in str(objects(pods[0]))


def test_what_an_attempt_that_was_killed_had_reserved_stays_reserved(account: Account) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from embedding_assets.embedding.ledger import Account, open_ledger\n"
        "with open_ledger(Account(pathlib.Path(sys.argv[1]), sys.argv[2])) as ledger:\n"
        "    ledger.reserve(70, 0.0, lambda now, then: None)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, account.path, account.run], check=False).returncode == -9
    assert used(account).tokens == 70


def test_rows_of_runs_long_past_go_by_themselves(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_ledger(account) as ledger:
        ledger.settle(70, 0.0)
    assert used(account).tokens == 70
    monkeypatch.setattr("embedding_assets.embedding.ledger._KEPT_SECONDS", -1)
    assert used(account).tokens == 0


def test_reservations_of_many_at_once_never_exceed_the_budget(account: Account) -> None:
    granted: list[int] = []

    def spend() -> None:
        with open_ledger(account) as ledger:
            mine = 0
            while ledger.reserve(mine + 1, 0, at_most(200)) is None:
                mine += 1
            granted.append(mine)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 200


def test_attempts_that_end_with_a_provider_away_use_one_budget_together(
    standin: Standin, delivered: Delivered, account: Account
) -> None:
    texts = texts_of([f"word{i}" for i in range(400)])  # of 2 or 3 tokens to the provider
    binding = standin.binding(max_items=10, max_in_flight=1)
    budget = Budget(max_tokens=200, account=account)
    for attempt in range(3):
        standin.faults({"fault": "status", "status": 503, "skip": 4})
        left = [text for text in texts if text.text_hash not in delivered.vectors]
        with pytest.raises((TransientError, BudgetSpent)) as raised:
            embed(binding, left, delivered, budget=budget, patience=HASTY)
        assert isinstance(raised.value, BudgetSpent) == (attempt == 2)
    sold = sum(entry["tokens"] for entry in standin.log() if entry["status"] == 200)
    assert 150 <= sold <= 200
    assert used(account).tokens == sold  # what failed is free again


def test_both_model_versions_use_one_budget_together(standin: Standin, delivered: Delivered, account: Account) -> None:
    texts = texts_of([f"word{i}" for i in range(400)])
    budget = Budget(max_cost_usd=0.0002, account=account)
    for slot in ("v1", "v2"):
        binding = standin.binding(slot=slot, max_items=10, max_in_flight=2, price_per_million_tokens=1.0)
        with pytest.raises(BudgetSpent, match=r"max_cost_usd of 0\.0002 is reached"):
            embed(binding, texts, delivered, budget=budget)
    assert 150 <= sum(entry["tokens"] for entry in standin.log()) <= 200


def test_the_seconds_of_a_run_count_from_its_first_attempt(
    standin: Standin, delivered: Delivered, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_ledger(account):
        pass
    began = time.time()
    monkeypatch.setattr("embedding_assets.embedding.ledger.time.time", lambda: began + 60)
    assert 60 <= used(account).seconds < 90
    with pytest.raises(BudgetSpent, match="max_seconds of 30"):
        embed(standin.binding(), texts_of(["a"]), delivered, budget=Budget(max_seconds=30, account=account))
    assert not standin.log()


@pytest.mark.parametrize(
    ("too_little", "enough", "cure"),
    [
        (Budget(max_tokens=29), Budget(max_tokens=30), "set max_tokens of run_budget to 30 or more"),
        (Budget(max_cost_usd=2e-5), Budget(max_cost_usd=3.1e-5), "set max_cost_usd of run_budget to 0.000031 or more"),
    ],
)
def test_a_budget_below_one_request_says_so_before_anything_is_sent(
    standin: Standin, delivered: Delivered, too_little: Budget, enough: Budget, cure: str
) -> None:
    texts = [text._replace(tokens=3) for text in texts_of([f"word{i}" for i in range(10)])]
    binding = standin.binding(max_items=10, price_per_million_tokens=1.0)
    with pytest.raises(BudgetSpent, match=rf"is less than that; nothing was sent\. Cure: {cure}.*max_items"):
        embed(binding, texts, delivered, budget=too_little)
    assert not standin.log()
    # Either cure works.
    embed(binding, texts, delivered, budget=enough)
    assert delivered.count == 10
    with suppress(BudgetSpent):  # of the whole
        embed(binding.model_copy(update={"max_items": 5}), texts, delivered, budget=too_little)
    assert delivered.count > 10
