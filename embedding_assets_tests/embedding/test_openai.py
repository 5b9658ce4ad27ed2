"""What goes over the wire to an OpenAI-compatible endpoint, and what is made of its answer."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedding_assets.embedding.engine.errors import Kind, RequestError
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers import Answer
from embedding_assets.embedding.providers.openai import OpenAIProvider, _places, _proxy, _row_of, _same_model, _tokens
from embedding_assets.embedding.providers.opening import open_provider
from embedding_assets.errors import PermanentError
from embedding_assets_tests.support.standin import KEY, Standin
from embedding_assets_tests.support.standin.vectors import vector


def ask(binding: Binding, texts: Sequence[str] = ("a", "b")) -> Answer:
    async def embed() -> Answer:
        provider = open_provider(binding)
        try:
            return await provider.embed(texts)
        finally:
            await provider.aclose()

    return asyncio.run(embed())


@pytest.mark.parametrize("fault", [{}, {"fault": "floats"}, {"fault": "no base64"}], ids=lambda fault: str(fault))
def test_vectors_arrive_as_the_provider_gave_them(standin: Standin, fault: dict[str, Any]) -> None:
    standin.faults(*([fault] if fault else []))
    answer = ask(standin.binding())
    np.testing.assert_array_equal(answer.vectors, [vector("a", 64), vector("b", 64)])
    assert answer.vectors.dtype == np.float32
    assert answer.vectors.flags.c_contiguous
    assert answer.vectors.flags.writeable
    assert answer.tokens == 2


def test_the_key_is_sent_and_a_wrong_one_speaks_against_the_endpoint(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.reset(keys=[KEY])
    ask(standin.binding())
    monkeypatch.setenv("WRONG_KEY", "another")
    with pytest.raises(RequestError) as caught:
        ask(standin.binding(api_key_env="WRONG_KEY"))
    assert caught.value.row.kind is Kind.VERDICT
    assert "another" not in str(caught.value)


def test_a_key_is_kept_out_of_every_representation(standin: Standin) -> None:
    provider = open_provider(standin.binding())
    assert KEY not in repr(provider)
    assert isinstance(provider, OpenAIProvider)


def test_organisation_and_project_pass_through_the_openai_client(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "our-organisation")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "our-project")
    ask(standin.binding())
    headers = standin.log()[0]["headers"]
    assert (headers["openai-organization"], headers["openai-project"]) == ("our-organisation", "our-project")


def test_dimensions_are_sent_only_to_models_that_take_them(standin: Standin) -> None:
    ask(standin.binding(name="text-embedding-3-small", dimensions=32))
    ask(standin.binding(name="another-model"))
    assert [entry["dimensions"] for entry in standin.log()] == [32, None]


def test_quota_headers_are_read(standin: Standin) -> None:
    standin.reset(requests_per_minute=600, tokens_per_minute=6_000)
    quota = ask(standin.binding()).quota
    assert quota is not None
    assert (quota.requests, quota.tokens) == (19, 198)
    assert quota.tokens_reset_seconds == pytest.approx(0.02, abs=0.001)


def test_a_base_url_that_is_none_is_named(standin: Standin) -> None:
    with pytest.raises(PermanentError, match="base_url of model standin-model"):
        ask(standin.binding(base_url="not a url"))


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("text-embedding-3-small", "text-embedding-3-small", True),
        ("text-embedding-ada-002", "text-embedding-ada-002-v2", True),
        ("BAAI/bge-m3", "bge-m3", True),
        ("openai/text-embedding-3-small", "text-embedding-3-small", True),
        ("nomic-embed-text", "nomic-embed-text:latest", True),
        ("nomic-embed-text:latest", "nomic-embed-text", True),
        ("codestral-embed", "codestral-embed-2505", True),
        ("mistral-embed", "mistral-embed-2023-12-11", True),
        ("nomic-embed-text-v1.5", "/models/nomic-embed-text-v1.5.Q8_0.gguf", True),
        ("codestral-embed-2505", "codestral-embed-2612", False),
        ("text-embedding-3-small", "text-embedding-3-large", False),
        ("text-embedding-3", "text-embedding-3-large", False),
        ("e5-small", "e5-small-v2", False),
        ("bge-m3", "bge-m3.5", False),
    ],
)
def test_which_names_mean_one_model(asked: str, answered: str, same: bool) -> None:
    assert _same_model(asked, answered) is same


def test_a_deployment_named_otherwise_is_used_as_the_model_that_it_answers_as(standin: Standin) -> None:
    standin.faults({"fault": "other model", "model": "text-embedding-3-small"})
    deployed = {"name": "our-embeddings", "answers_as": "text-embedding-3-small", "dimensions": 32}

    assert ask(standin.binding(**deployed)).vectors.shape == (2, 32)
    assert standin.log()[0]["dimensions"] == 32
    with pytest.raises(RequestError, match="asked for our-embeddings, got text-embedding-3-small") as caught:
        ask(standin.binding(**{**deployed, "answers_as": None}))
    assert "set answers_as" in caught.value.row.cure
    same = Binding.model_validate({**standin.binding(**deployed).model_dump(), "name": "text-embedding-3-small"})
    assert same.identity() == standin.binding(**deployed).identity()


@pytest.mark.parametrize(
    ("indexes", "places"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([2, 0, 1], [2, 0, 1]),
        ([None, 1, 2], [0, 1, 2]),  # as Gemini answers
        ([2, None, 1], [2, 0, 1]),
        ([None, None, None], [0, 1, 2]),
        ([None, None, 2], [0, 1, 2]),
        ([2, None, None], None),
        ([None, 1, 1], None),
        ([0, 1, 3], None),
        ([0, -1, 2], None),
        ([0, 1], None),
        ([None, None, None, None], None),
    ],
)
def test_items_without_an_index_are_in_order_or_nothing_is_believed(
    indexes: list[int | None], places: list[int] | None
) -> None:
    found = _places(indexes, 3)
    assert (found if found is None else list(found)) == places


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "total_tokens": 7}, 7),
        ({"total_tokens": 7.0}, 7),
        ({"total_tokens": [3, 4]}, 7),
        ({"total_tokens": None}, 0),
        ({"total_tokens": "7"}, 0),
        ({"total_tokens": -1}, 0),
        ({"total_tokens": 1e300}, 0),
        ({"total_tokens": []}, 0),
        ({}, 0),
        ([7], 0),
        (None, 0),
    ],
)
def test_usage_of_any_shape_costs_no_vector(usage: object, tokens: int) -> None:
    assert _tokens(usage) == tokens


@pytest.mark.parametrize(
    ("error", "row"),
    [
        ({"message": "no endpoints found", "code": 404}, "not-found"),
        ({"message": "insufficient_quota"}, "no-credit"),
        ({"code": "overloaded"}, "unavailable"),
        ("overloaded", "unavailable"),
    ],
)
def test_an_error_in_an_answer_of_status_200_means_what_its_code_says(error: object, row: str) -> None:
    assert _row_of(error, json.dumps(error)).error_class == row


def test_the_environments_proxy_is_used_where_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert _proxy("https://api.openai.com/v1/embeddings") == "http://proxy:3128"
    assert _proxy("https://inside.example/v1/embeddings") is None
