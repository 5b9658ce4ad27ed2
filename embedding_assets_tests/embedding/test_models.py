import pytest
from pydantic import ValidationError

from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.opening import open_provider
from embedding_assets.errors import PermanentError

OPENAI = {"slot": "v2", "provider": "openai", "name": "text-embedding-3-large", "dimensions": 1536}
LOCAL = {"slot": "v1", "provider": "local", "name": "wordllama-256", "dimensions": 256}


def test_a_binding_has_sound_defaults_for_openai() -> None:
    binding = Binding.model_validate(OPENAI)
    assert (binding.max_items, binding.max_tokens_per_item, binding.max_tokens_per_request) == (2_048, 8_192, 300_000)
    assert (binding.requests_per_minute, binding.tokens_per_minute) == (3_000, 1_000_000)
    assert binding.price_per_million_tokens == 0.13
    assert binding.api_key_env == "OPENAI_API_KEY"


def test_a_quota_can_be_lifted() -> None:
    assert Binding.model_validate({**OPENAI, "tokens_per_minute": None}).tokens_per_minute is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**LOCAL, "name": "bert"}, "there are minilm-l6-384, wordllama-128, wordllama-256, wordllama-64"),
        ({**LOCAL, "dimensions": 128}, "wordllama-256 has 256 dimensions, not 128"),
        ({**OPENAI, "dimensions": 0}, "greater than or equal to 1"),
        ({**OPENAI, "request_per_minute": 3}, "request_per_minute"),
        ({**OPENAI, "provider": "cohere"}, "'local' or 'openai'"),
        ({**OPENAI, "encoding_format": "int8"}, "'auto', 'base64' or 'float'"),
        ({**OPENAI, "send_dimensions": "perhaps"}, "send_dimensions"),
        ({**OPENAI, "answers_as": [""]}, "at least 1 character"),
        ({**OPENAI, "answers_as": 5}, "valid tuple"),
        ({**LOCAL, "answers_as": "x"}, "are of an endpoint.*Cure: remove them"),
        ({**LOCAL, "encoding_format": "float"}, "are of an endpoint"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Binding.model_validate(given)


def test_identity_holds_what_decides_the_vectors_and_nothing_else() -> None:
    binding = Binding.model_validate(OPENAI)
    elsewhere = {"base_url": "https://gateway.example/v1", "tokens_per_minute": 5, "max_items": 7, "slot": "v1"}
    asked = {"send_dimensions": False, "encoding_format": "float", "name": "ours", "answers_as": OPENAI["name"]}
    assert binding.identity() == Binding.model_validate({**OPENAI, **asked}).identity()
    assert binding.identity() == Binding.model_validate({**OPENAI, **elsewhere}).identity()
    others = ({"name": "text-embedding-3-small"}, {"dimensions": 256})
    identities = [Binding.model_validate({**OPENAI, **other}).identity() for other in others]
    assert binding.identity() not in identities
    assert Binding.model_validate(LOCAL).identity()["weights"]  # other weights under the name are another model


def test_a_binding_knows_itself_by_each_of_its_names_and_no_other_model() -> None:
    deployed = Binding.model_validate({**OPENAI, "name": "ours", "answers_as": ["text-embedding-3-large", "azure"]})
    identities = [deployed.identity() | {"name": name} for name in ("ours", "text-embedding-3-large", "azure")]
    assert all(deployed.is_recorded_as(identity) for identity in identities)
    others = ({"name": "text-embedding-3-small"}, {"dimensions": 256}, {"provider": "local"})
    assert not any(deployed.is_recorded_as(deployed.identity() | other) for other in others)
    assert not deployed.is_recorded_as(None)


def test_a_missing_key_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUR_KEY", raising=False)
    with pytest.raises(PermanentError, match="set the environment variable OUR_KEY"):
        open_provider(Binding.model_validate({**OPENAI, "api_key_env": "OUR_KEY"}))


def test_how_an_endpoint_is_asked_is_told_without_a_password() -> None:
    given = {**OPENAI, "name": "our-deployment", "answers_as": "text-embedding-3-small", "api_key_env": "OUR_KEY"}
    asked = Binding.model_validate({**given, "base_url": "https://user:secret@models.example:8443/v1?key=secret"})

    assert asked.endpoint is not None
    assert asked.endpoint.model_dump(mode="json") == {
        "name": "our-deployment",
        "answers_as": ["text-embedding-3-small"],
        "base_url": "https://models.example:8443/v1",
        "api_key_env": "OUR_KEY",
        "send_dimensions": "auto",
        "encoding_format": "auto",
    }
