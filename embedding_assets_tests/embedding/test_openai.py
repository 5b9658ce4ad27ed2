"""What goes over the wire to an OpenAI-compatible endpoint, and what is made of its answer."""

import asyncio
import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedding_assets.embedding.engine.errors import Kind, RequestError
from embedding_assets.embedding.model_names import same_model
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.openai import OpenAIProvider, _places, _proxy, _row_of, _tokens
from embedding_assets.embedding.providers.opening import open_provider
from embedding_assets.embedding.providers.provider import Answer
from embedding_assets.errors import PermanentError
from embedding_assets_tests.support.standin import KEY, Standin
from embedding_assets_tests.support.standin.vectors import vector


def ask(binding: Binding, texts: Sequence[str] = ("a", "b"), answered_as: str | None = None) -> Answer:
    async def embed() -> Answer:
        provider = open_provider(binding, answered_as)
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
    assert same_model(asked, answered) is same


def test_a_deployment_named_otherwise_is_used_as_the_model_that_it_answers_as(standin: Standin) -> None:
    standin.faults({"fault": "other model", "model": "text-embedding-3-small"})
    deployed = {"name": "our-embeddings", "answers_as": "text-embedding-3-small", "dimensions": 32}

    answer = ask(standin.binding(**deployed))
    assert answer.vectors.shape == (2, 32)
    assert answer.model == "text-embedding-3-small"
    assert standin.log()[0]["dimensions"] == 32
    assert ask(standin.binding(name="our-embeddings")).model == "text-embedding-3-small"  # without a word, too
    same = Binding.model_validate({**standin.binding(**deployed).model_dump(), "name": "text-embedding-3-small"})
    assert same.identity() == standin.binding(**deployed).identity()


@pytest.mark.parametrize(
    ("given", "before", "names"),
    [
        ({"answers_as": "text-embedding-3-large"}, None, '["text-embedding-3-large", "text-embedding-3-small"]'),
        ({"answers_as": ["a", "b"]}, None, '["a", "b", "text-embedding-3-small"]'),
        ({}, "a", '["a", "text-embedding-3-small"]'),
        ({"name": "text-embedding-ada-002"}, None, '["text-embedding-ada-002", "text-embedding-3-small"]'),
    ],
    ids=["told", "told of two", "recorded", "both known to everybody"],
)
def test_an_answer_by_another_name_than_is_known_contradicts_it_and_the_cure_works(
    standin: Standin, given: dict[str, Any], before: str | None, names: str
) -> None:
    standin.faults({"fault": "other model", "model": "text-embedding-3-small"})
    bound = {"name": "ours", "send_dimensions": False, **given}
    with pytest.raises(RequestError, match="answer is of text-embedding-3-small, not of") as caught:
        ask(standin.binding(**bound), answered_as=before)
    assert caught.value.row.kind is Kind.VERDICT
    assert caught.value.row.cure.endswith(f"set answers_as: {names}")

    cured = standin.binding(**{**bound, "answers_as": json.loads(names)})
    assert ask(cured, answered_as=before).vectors.shape == (2, 64)
    assert cured.is_recorded_as(standin.binding(**bound).identity())


@pytest.mark.parametrize("answered", ["", "/srv/models/x", "models/x@main", "X", 7, None, ["x"]])
def test_a_first_answer_may_name_the_model_as_it_likes_or_not_at_all(standin: Standin, answered: object) -> None:
    standin.faults({"fault": "other model", "model": answered})
    assert ask(standin.binding()).model == (answered if isinstance(answered, str) and answered else None)


@pytest.mark.parametrize(
    ("name", "send", "sent"),
    [
        ("text-embedding-3-small", "auto", 64),
        ("another-model", "auto", None),
        ("text-embedding-3-small", False, None),
        ("another-model", True, 64),
    ],
)
def test_whether_dimensions_are_sent_can_be_said(standin: Standin, name: str, send: object, sent: int | None) -> None:
    binding = standin.binding(name=name, send_dimensions=send)
    ask(binding)
    assert standin.log()[0]["dimensions"] == sent
    assert binding.identity() == standin.binding(name=name).identity()


@pytest.mark.parametrize(
    ("given", "takes", "words", "asked"),
    [
        ("auto", ["base64"], "", ["base64"]),
        ("auto", ["float", None], "encoding_format must be float", ["base64", "float"]),
        ("auto", [None], "Unrecognized request argument supplied: encoding_format", ["base64", "float", None]),
        ("auto", ["float"], "invalid request", ["base64", "float"]),
        ("auto", [None], "invalid request", ["base64", "float", None]),
        ("float", ["float"], "", ["float"]),
        ("base64", ["base64"], "", ["base64"]),
    ],
)
def test_vectors_are_asked_for_as_the_endpoint_takes_it_or_as_is_said(
    standin: Standin, given: str, takes: list[str | None], words: str, asked: list[str | None]
) -> None:
    standin.faults({"fault": "no base64", "takes": takes, "words": words})
    binding = standin.binding(encoding_format=given)
    np.testing.assert_array_equal(ask(binding, ["a"]).vectors, [vector("a", 64)])
    assert [entry["encoding_format"] for entry in standin.log()] == asked
    assert binding.identity() == standin.binding().identity()


def test_a_format_that_is_told_is_the_only_one_tried(standin: Standin) -> None:
    standin.faults({"fault": "no base64"})
    with pytest.raises(RequestError, match="encoding_format must be float"):
        ask(standin.binding(encoding_format="base64"), ["a"])
    assert len(standin.log()) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_that_a_gateway_has_packed_is_unpacked(standin: Standin, encoding: str) -> None:
    standin.faults({"fault": "packed", "encoding": encoding})
    np.testing.assert_array_equal(ask(standin.binding()).vectors, [vector("a", 64), vector("b", 64)])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_packed_bomb_is_unpacked_within_a_bound(standin: Standin, encoding: str) -> None:
    standin.faults({"fault": "packed", "encoding": encoding, "bomb": 50_000_000})
    ask_once = standin.binding()
    tracemalloc.start()
    with pytest.raises(RequestError) as caught:
        ask(ask_once)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.row.error_class == "answer-too-big"
    assert caught.value.paid
    assert peak < 5_000_000


def test_an_answer_in_an_encoding_nobody_asked_for_is_not_believed(standin: Standin) -> None:
    standin.faults({"fault": "packed", "encoding": "br"})
    with pytest.raises(RequestError, match="encoding that was not asked for"):
        ask(standin.binding())


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
        (["0", "2", "1"], [0, 2, 1]),
        ([0.0, 2.0, 1.0], [0, 2, 1]),
        ([0, 0.5, 1], None),
        ([0, "two", 1], None),
        ([0, "-1", 1], None),
        ([0, float("inf"), 1], None),
        ([0, 1], None),
        ([None, None, None, None], None),
    ],
)
def test_items_without_an_index_are_in_order_or_nothing_is_believed(
    indexes: list[object], places: list[int] | None
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
        ({"prompt_tokens": 7}, 7),
        ({"total_tokens": "7"}, 0),
        ({"total_tokens": True}, 0),
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
        ({"message": "Insufficient credits", "code": 402}, "no-credit"),
        ({"message": "no such model", "code": "404"}, "not-found"),
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
