"""Questions embedded by the endpoint that the database names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
import pytest

from embedding_assets.embedding.options import Binding
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.schema.models import Model, ensure_models
from embedding_assets_tests.client.conftest import HANDBOOK, NewClient, rows_of, serve
from embedding_assets_tests.conftest import databases
from embedding_assets_tests.support.standin import KEY, KEY_VARIABLE, Standin, unit_vector

D: Final = 64


def bound(binding: Binding) -> Model:
    assert binding.endpoint is not None
    return Model(binding.model, D, "openai", endpoint=binding.endpoint.model_dump(mode="json"))


@pytest.fixture(scope="module")
def filled(running: Standin, postgres: Path) -> Iterator[str]:
    """The DSN of a database whose live model is the stand-in's, which asks for a key."""
    with databases(postgres) as make:
        dsn = make()
        with connect(dsn) as conn:
            ensure_models(conn, {"v1": bound(running.binding()), "v2": Model("another", D, "test")}, "v1")
            vectors = np.array([unit_vector(text, D) for text in HANDBOOK])
            serve(conn, "handbook", rows_of(HANDBOOK, [vectors, vectors]), D, D)
        yield dsn


@pytest.fixture
def endpoint(filled: str, standin: Standin) -> str:
    standin.reset(keys=[KEY])
    return filled


def test_a_question_is_sent_to_the_recorded_address_with_the_key_of_the_environment(
    endpoint: str, standin: Standin, new_client: NewClient
) -> None:
    client = new_client(endpoint, keys=[KEY_VARIABLE])

    for text in (*HANDBOOK, HANDBOOK[0]):
        (hit,) = client.search(text, 1)
        assert hit.text == text
        assert hit.distance == pytest.approx(0, abs=1e-6)

    assert [request["status"] for request in standin.log()] == [200] * len(HANDBOOK)


def test_the_database_has_no_variable_sent_that_the_client_did_not_name(
    endpoint: str, standin: Standin, new_client: NewClient
) -> None:
    with pytest.raises(PermanentError, match=rf"from the variable {KEY_VARIABLE}.* name it: keys=\['STANDIN"):
        new_client(endpoint).search(HANDBOOK[0])

    assert standin.log() == []


def test_a_key_that_is_not_set_is_named(endpoint: str, new_client: NewClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(PermanentError, match=f"Cure: set the environment variable {KEY_VARIABLE}"):
        new_client(endpoint, keys=[KEY_VARIABLE]).search(HANDBOOK[0])


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "throttle", "times": 2, "retry_after": "0"},
        {"fault": "status", "times": 2},
        {"fault": "hang up", "times": 1},
        {"fault": "truncated", "times": 1},
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(
    endpoint: str, standin: Standin, new_client: NewClient, fault: dict[str, Any]
) -> None:
    standin.faults(fault)

    assert new_client(endpoint, keys=[KEY_VARIABLE]).search(HANDBOOK[2], 1)[0].text == HANDBOOK[2]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"fault": "poison"}, "refused the question: 400.*Cure: ask in other words"),
        ({"fault": "revoked"}, "401.*Cure: check the key"),
        ({"fault": "dimension"}, "63 dimensions, not 64.*Cure"),
        ({"fault": "nan"}, "zero, or not finite. Cure"),
        ({"fault": "zero"}, "zero, or not finite. Cure"),
    ],
    ids=str,
)
def test_what_asking_again_cannot_mend_is_told_at_once(
    endpoint: str, standin: Standin, new_client: NewClient, fault: dict[str, Any], said: str
) -> None:
    standin.faults(fault)

    with pytest.raises(PermanentError, match=said):
        new_client(endpoint, keys=[KEY_VARIABLE]).search(HANDBOOK[0])


@pytest.mark.parametrize("fault", [{"fault": "hang"}, {"fault": "throttle", "retry_after": "60"}], ids=str)
def test_an_endpoint_that_does_not_answer_is_waited_for_until_the_time_out(
    endpoint: str, standin: Standin, new_client: NewClient, fault: dict[str, Any]
) -> None:
    standin.faults(fault)

    with pytest.raises(TransientError, match=r"no (vector|answer) within 1 s.* Cure"):
        new_client(endpoint, keys=[KEY_VARIABLE], timeout=1.0).search(HANDBOOK[0])


def test_a_model_bound_before_endpoints_were_recorded_says_what_to_do(endpoint: str, new_client: NewClient) -> None:
    with psycopg.connect(endpoint) as conn:
        conn.execute("UPDATE embedding_assets.models SET endpoint = NULL WHERE live")
        conn.commit()
        try:
            with pytest.raises(PermanentError, match=r"not say how standin-model is asked.*Cure: embedding-assets"):
                new_client(endpoint, keys=[KEY_VARIABLE]).search(HANDBOOK[0])
        finally:
            conn.execute(
                "UPDATE embedding_assets.models SET endpoint = %s WHERE live",
                [psycopg.types.json.Jsonb(bound(Standin(0).binding()).endpoint)],
            )


def test_a_model_of_another_kind_of_provider_says_what_to_do(database: str, new_client: NewClient) -> None:
    with connect(database) as conn:
        ensure_models(conn, {"v1": Model("a", 8, "test"), "v2": Model("b", 8, "test")}, "v1")

    with pytest.raises(PermanentError, match=r"of provider test cannot be asked from here.*Cure"):
        new_client(database).search(HANDBOOK[0])
