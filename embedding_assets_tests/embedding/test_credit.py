"""An account without money, in the words of those who sell embeddings; no quota is taken for it, and no text."""

import json

import pytest

from embedding_assets.embedding.engine.errors import Kind, by_status
from embedding_assets_tests.embedding.conftest import Delivered, texts_of
from embedding_assets_tests.embedding.test_faults import run
from embedding_assets_tests.support.standin import Standin


def openai_error(message: str, **more: object) -> str:
    return json.dumps({"error": {"message": message, "param": None, **more}})


EXCEEDED = "You exceeded your current quota, please check your plan and billing details."

NO_MONEY = [
    (429, openai_error(EXCEEDED, type="insufficient_quota", code="insufficient_quota")),
    (400, openai_error("Billing hard limit has been reached", code="billing_hard_limit_reached")),
    (429, openai_error("Your account is not active", type="billing_not_active", code="billing_not_active")),
    (401, openai_error(EXCEEDED, code=401, type="insufficient_quota")),
    (402, openai_error("Insufficient credits. Add more using https://…", code=402)),
    (402, ""),
    (402, json.dumps({"detail": "Payment Required"})),
    (403, json.dumps({"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None})),
    (403, openai_error("insufficient balance")),
    (403, json.dumps({"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "not enough balance"})),
    (403, json.dumps({"error": {"code": 403, "details": [{"reason": "BILLING_DISABLED"}]}})),
    (403, openai_error("用户额度不足", code="insufficient_user_quota")),
    (403, json.dumps({"error": {"code": "AccountOverdueError", "message": "The account has an overdue balance"}})),
    (400, json.dumps({"code": "Arrearage", "message": "Access denied, make sure your account is in good standing."})),
    (400, openai_error("Budget has been exceeded! Current cost: 1.0, Max budget: 0.9", type="budget_exceeded")),
    (412, openai_error("Account is suspended: spending limit reached")),
    (429, openai_error("Your prepayment credits are depleted. Please go to your project's billing page.")),
    (429, json.dumps({"error": {"code": "1113", "message": "Insufficient balance or no resource package."}})),
    (429, openai_error("Your account is suspended due to insufficient balance", type="exceeded_current_quota_error")),
    (503, "insufficient_quota"),
]

RATE = "Rate limit reached for requests. Limit: 3 / min."
NO_CARD = "You have not yet added your payment method in the billing page and have reduced rate limits"
GEMINI = json.dumps({"error": {"code": 429, "message": EXCEEDED, "status": "RESOURCE_EXHAUSTED"}})

MONEY = [
    (429, openai_error(RATE, type="requests", code="rate_limit_exceeded"), Kind.THROTTLED),
    (429, GEMINI, Kind.THROTTLED),
    (429, openai_error(NO_CARD), Kind.THROTTLED),
    (429, "{}", Kind.THROTTLED),
    (403, openai_error("Your key has no access to this model", code="access_denied"), Kind.VERDICT),
    (401, openai_error("Incorrect API key provided", code="invalid_api_key"), Kind.VERDICT),
    (400, openai_error("cannot embed: insufficient balance, please top up"), Kind.POISON),
    (422, json.dumps({"detail": [{"input": "insufficient_quota", "msg": "bad"}]}), Kind.POISON),
    (403, "<html>insufficient funds</html>", Kind.POISON),
    (500, "insufficient_quota", Kind.TRANSIENT),
    (400, "[" * 100_000, Kind.POISON),
]


@pytest.mark.parametrize(("status", "body"), NO_MONEY)
def test_an_account_without_money_is_known_in_many_words(status: int, body: str) -> None:
    assert by_status(status, body).error_class == "no-credit"


@pytest.mark.parametrize(("status", "body", "kind"), MONEY)
def test_a_quota_a_refusal_and_a_page_are_none_of_it(status: int, body: str, kind: Kind) -> None:
    assert by_status(status, body).kind is kind


def test_a_message_that_echoes_a_text_about_money_says_nothing_of_the_account() -> None:
    body = openai_error("the filter refuses: Insufficient funds on your card")
    assert by_status(403, body, ["a", "Insufficient funds on your card"]).kind is Kind.VERDICT
    assert by_status(403, body, ["a"]).kind is Kind.FATAL


def test_a_run_that_meets_it_stops_with_the_cure_and_keeps_what_it_bought(
    standin: Standin, delivered: Delivered
) -> None:
    texts = texts_of([f"text number {i}" for i in range(60)])
    standin.faults({"fault": "status", "status": 403, "body": NO_MONEY[7][1], "skip": 3})
    with pytest.raises(Exception, match=r"no-credit.*balance is insufficient.*Cure: top up the account, or raise"):
        run(standin, delivered, texts)
    bought = sum(entry["items"] for entry in standin.log() if entry["status"] == 200)
    assert delivered.count == bought == 24
    assert {entry["items"] for entry in standin.log()} == {8}
