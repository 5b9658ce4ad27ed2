"""What is paid: as the provider counts it where that can be, and of answers that are of no use as well."""

from typing import Any

import pytest

from embedding_assets.embedding.engine.engine import Budget, BudgetSpent
from embedding_assets.embedding.engine.items import believed
from embedding_assets.errors import TransientError
from embedding_assets_tests.embedding.conftest import Delivered, texts_of
from embedding_assets_tests.embedding.test_faults import TEXTS, run
from embedding_assets_tests.support.standin import Standin

OURS = sum(text.tokens for text in TEXTS)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"total_tokens": 10**8}, "ours"),
        ({"total_tokens": 1}, "ours"),
        ({"total_tokens": -(10**6)}, "ours"),
        ({"total_tokens": "12"}, "ours"),
        ({"total_tokens": None}, "ours"),
        ({"total_tokens": 20.0}, "theirs"),
        (None, "ours"),
    ],
)
def test_an_absurd_count_is_not_believed_and_holds_nothing_up(
    standin: Standin, delivered: Delivered, usage: Any, counted: str
) -> None:
    standin.faults({"fault": "usage", "usage": usage})
    used = run(standin, delivered, tokens_per_minute=60_000)
    delivered.assert_right(TEXTS)
    assert used.tokens == (OURS if counted == "ours" else 20 * used.requests)
    assert used.seconds < 2


@pytest.mark.parametrize(("tokens", "most"), [(0, 0), (5, 0), (6, 6), (100, 100), (4 * 100 + 16, 416), (417, 0)])
def test_a_count_is_believed_between_a_sixteenth_of_ours_and_four_a_character(tokens: int, most: int) -> None:
    (text,) = texts_of(["x" * 100])
    assert believed(tokens, [text._replace(tokens=90)]) == most


@pytest.mark.parametrize(
    "fault", ["missing", "doubled", "nan", "zero", "dimension", "other model", "truncated", "reset"]
)
def test_an_answer_that_is_thrown_away_is_paid_and_counted(standin: Standin, delivered: Delivered, fault: str) -> None:
    standin.faults({"fault": fault, "times": 1, "skip": 3})
    used = run(standin, delivered, price_per_million_tokens=1.0)
    delivered.assert_right(TEXTS)
    sold = sum(entry["tokens"] for entry in standin.log())
    assert used.tokens == sold
    assert used.discarded_tokens == sum(entry["tokens"] for entry in standin.log() if entry["fault"]) > 0
    assert used.cost_usd == pytest.approx(used.tokens / 1e6)


@pytest.mark.parametrize("fault", ["status", "html", "poison", "throttle", "hang up"])
def test_what_was_turned_away_is_not_paid(standin: Standin, delivered: Delivered, fault: str) -> None:
    standin.faults({"fault": fault, "times": 1, "skip": 3})
    used = run(standin, delivered)
    delivered.assert_right(TEXTS)
    assert used.discarded_tokens == 0


@pytest.mark.parametrize("max_in_flight", [1, 6])
@pytest.mark.parametrize(
    "fault", [{"fault": "missing"}, {"fault": "nan"}, {"fault": "nan", "match": "[02468]$"}, {"fault": "truncated"}]
)
def test_answers_of_no_use_use_up_the_budget_and_end_the_run(
    standin: Standin, delivered: Delivered, fault: dict[str, str], max_in_flight: int
) -> None:
    standin.faults({"skip": 2, **fault})
    budget = Budget(max_tokens=3 * OURS // 4)
    with pytest.raises((BudgetSpent, TransientError)) as ended:
        run(standin, delivered, budget=budget, max_in_flight=max_in_flight)
    assert sum(entry["tokens"] for entry in standin.log()) <= 3 * OURS // 4
    assert isinstance(ended.value, BudgetSpent)
    assert "for answers of no use" in str(ended.value)
    assert delivered.count >= 16
