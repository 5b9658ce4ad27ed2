"""What a model version is bound to: a named model behind a provider, its quota, its caps and its price."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from embedding_assets.embedding.providers.bundled import MODELS
from embedding_assets.errors import Problem
from embedding_assets.options import Options
from embedding_assets.snapshots.slots import Slot

# What holds when the settings say nothing. openai: the caps of OpenAI's endpoint and the quota of its first paid
# tier; `null` in the settings lifts a quota (a server of one's own). local: no quota; batches of 32 keep progress
# lively (MiniLM does 40 texts/s), and two in flight keep the one worker busy.
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "openai": {
        "requests_per_minute": 3_000,
        "tokens_per_minute": 1_000_000,
        "max_items": 2_048,
        "max_tokens_per_item": 8_192,
        "max_tokens_per_request": 300_000,
        "max_in_flight": 32,
    },
    "local": {
        "max_items": 32,
        "max_tokens_per_item": 1_000_000,  # the model truncates, and counts it
        "max_tokens_per_request": 32_768,
        "max_in_flight": 2,
    },
}

# USD per million tokens, list prices (openai.com/api/pricing, 2026-11). Other models: say it in the settings.
_PRICES: Final = {
    "text-embedding-3-small": 0.02,
    "text-embedding-3-large": 0.13,
    "text-embedding-ada-002": 0.10,
}


class RunBudget(Options):
    """What one run may use in all its tries and for both models; the next run goes on where it stopped.

    The seconds count from when the first embeddings step of the run began.
    """

    max_cost_usd: float | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0, strict=True)
    max_seconds: float | None = Field(default=None, gt=0)


def _names(given: object) -> object:
    """One name is as good as a list of it."""
    return [given] if isinstance(given, str) else given or ()


def _without_secrets(url: str) -> str:
    """What is given for a URL, without user, password, query and fragment."""
    scheme, separator, rest = re.split("[?#]", url)[0].rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


_Name = Annotated[str, Field(min_length=1)]
_Names = Annotated[tuple[_Name, ...], BeforeValidator(_names)]


class Endpoint(BaseModel):
    """How a model behind an endpoint is asked for, as a region's database tells it to applications: no secret is in it.

    What a later version adds to the record is passed over.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    name: _Name
    answers_as: _Names = ()
    base_url: str | None = None
    api_key_env: str | None = None
    send_dimensions: bool | Literal["auto"] = "auto"
    encoding_format: Literal["auto", "base64", "float"] = "auto"


class Binding(Options):
    """A slot bound to a model. `null` for a quota means unpaced; what is not given has the provider's default."""

    slot: Slot
    provider: Literal["local", "openai"]
    name: str = Field(min_length=1)
    answers_as: _Names = ()
    """The model's names in the endpoint's answers, its own first, where `name` is a deployment's (Azure) or an alias.
    Where there are none, the first answer's holds."""
    dimensions: int = Field(ge=1)
    send_dimensions: bool | Literal["auto"] = "auto"
    """Whether requests ask for so many. `auto`: of OpenAI's text-embedding-3-*; others refuse or ignore it."""
    encoding_format: Literal["auto", "base64", "float"] = "auto"
    """How vectors are asked for. `auto`: base64, and what the endpoint takes if it refuses that."""
    base_url: str | None = None
    api_key_env: str | None = "OPENAI_API_KEY"  # None: the endpoint asks for no key
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    max_items: int = Field(ge=1)
    max_tokens_per_item: int = Field(ge=1)
    max_tokens_per_request: int = Field(ge=1)
    max_in_flight: int = Field(ge=1)
    timeout_seconds: float = Field(default=60.0, gt=0)  # of one request, from its first byte to its last
    price_per_million_tokens: float = Field(default=0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        defaults = dict(_DEFAULTS.get(str(given.get("provider")), {}))
        names = _names(given.get("answers_as"))
        model = names[0] if isinstance(names, list | tuple) and names else given.get("name")
        if given.get("provider") == "openai" and isinstance(model, str) and model in _PRICES:
            defaults["price_per_million_tokens"] = _PRICES[model]
        return {**defaults, **given}

    @model_validator(mode="after")
    def _is_a_bundled_model(self) -> Self:
        if self.provider == "local":
            if self.answers_as or (self.send_dimensions, self.encoding_format) != ("auto", "auto"):
                raise Problem(
                    "answers_as, send_dimensions and encoding_format are of an endpoint, and a local model has none",
                    "remove them, or write provider: openai",
                )
            model = MODELS.get(self.name)
            if model is None:
                raise Problem(
                    f"no bundled model is named {self.name!r}, there are {', '.join(sorted(MODELS))}",
                    "write one of these; any other needs provider: openai and the base_url of a server that has it",
                )
            if model.dimensions != self.dimensions:
                raise Problem(
                    f"{self.name} has {model.dimensions} dimensions, not {self.dimensions}",
                    f"write dimensions: {model.dimensions}",
                )
        return self

    @property
    def model(self) -> str:
        """The model's own name."""
        return self.answers_as[0] if self.answers_as else self.name

    @property
    def sends_dimensions(self) -> bool:
        """Whether requests ask for a number of dimensions."""
        return "text-embedding-3-" in self.model if self.send_dimensions == "auto" else self.send_dimensions

    @property
    def endpoint(self) -> Endpoint | None:
        """How the model is asked for; None for a bundled one. Of `base_url` without what may hold a password."""
        if self.provider == "local":
            return None
        asked = Endpoint.model_validate({name: getattr(self, name) for name in Endpoint.model_fields})
        return asked.model_copy(update={"base_url": self.base_url and _without_secrets(self.base_url)})

    def is_recorded_as(self, identity: Mapping[str, object] | None) -> bool:
        """Whether this is the model that vectors are of: by its own name, or by another that the settings give it.

        So `answers_as` may be added, or get a name more, and nothing is bought again.
        """
        own = self.identity()
        return identity is not None and any(own | {"name": name} == identity for name in (self.name, *self.answers_as))

    def identity(self) -> dict[str, object]:
        """The part that decides the vectors, and so goes into part keys.

        `base_url` is left out: the same model behind another address (a gateway, a regional endpoint) gives the
        same vectors, and moving to it must not buy everything anew. Whoever serves another model under the same
        name has changed the model: that is the other slot's work. Quotas, caps, prices, the index and what the database
        stores decide no vector. Nor does how the sum of a bundled model is added up, which moves a vector's last bits:
        what is stored stays as it is, and is what the model gives to within 1e-6.
        """
        identity: dict[str, object] = {
            "provider": self.provider,
            "name": self.model,
            "dimensions": self.dimensions,
        }
        if self.provider == "local":
            identity["weights"] = MODELS[self.name].weights.sha256
        return identity
