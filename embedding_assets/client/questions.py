"""The vectors of an application's questions, by a bundled model or an endpoint, each opened once and kept open."""

import asyncio
import random
from collections.abc import Collection
from typing import Final

from pydantic import ValidationError

from embedding_assets.client.core import LiveModel, Vector
from embedding_assets.embedding.engine.errors import Kind, RequestError
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.opening import open_provider
from embedding_assets.embedding.providers.provider import Provider
from embedding_assets.errors import PermanentError, TransientError

_AGAIN: Final = (Kind.THROTTLED, Kind.TRANSIENT, Kind.DOWN)
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0


class Questions:
    """Embeds questions on one event loop. `keys`: the variables that an endpoint's key may be taken from.

    The database names the variable and the address. That it may name these variables alone keeps whoever owns its
    tables from having any other variable sent anywhere.
    """

    def __init__(self, keys: Collection[str], timeout: float) -> None:
        self._keys = frozenset(keys)
        self._timeout = timeout
        self._providers: dict[LiveModel, Provider] = {}
        self._opening = asyncio.Lock()

    async def embed(self, question: str, model: LiveModel, seconds: float) -> Vector:
        """The model's vector of a question, (d,) float32, as the provider gives it.

        Raises PermanentError where the model cannot be asked or refuses the question, and TransientError where it does
        not answer within so many seconds.
        """
        failed = "it does not answer"
        try:
            async with asyncio.timeout(seconds):
                provider = await self._opened(model)
                pause = _FIRST_PAUSE
                while True:
                    try:
                        answer = await provider.embed([question])
                    except RequestError as error:
                        failed = error.message
                        _refuse(error, model)
                        wait = error.wait_asked
                    else:
                        vector: Vector = answer.vectors[0]
                        return vector
                    await asyncio.sleep(wait if wait is not None else random.uniform(0, pause))  # noqa: S311 — jitter
                    pause = min(_LONGEST_PAUSE, 2 * pause)
        except TimeoutError:
            raise TransientError(
                f"{model.name} gave no vector within {self._timeout:g} s: {failed}. Cure: ask again, or raise timeout"
            ) from None

    async def aclose(self) -> None:
        """Close what was opened."""
        while self._providers:
            _, provider = self._providers.popitem()
            await provider.aclose()

    async def _opened(self, model: LiveModel) -> Provider:
        async with self._opening:
            if model not in self._providers:
                # On a thread: a bundled model is read for a second.
                self._providers[model] = await asyncio.to_thread(open_provider, self._binding(model))
            return self._providers[model]

    def _binding(self, model: LiveModel) -> Binding:
        binding = {"slot": model.slot, "provider": model.provider, "name": model.name, "dimensions": model.dimensions}
        if model.provider == "openai":
            asked = model.endpoint
            if asked is None:
                raise PermanentError(
                    f"the database does not say how {model.name} is asked for: an earlier version has bound it. Cure: "
                    "embedding-assets prepare where the pipeline runs, or give this client a function to embed with"
                )
            if asked.api_key_env is not None and asked.api_key_env not in self._keys:
                raise PermanentError(
                    f"{model.name} takes its key from the variable {asked.api_key_env}, which this client may not "
                    f"read. Cure: name it: keys=[{asked.api_key_env!r}]"
                )
            binding |= {**asked.model_dump(), "timeout_seconds": self._timeout}
        try:
            return Binding.model_validate(binding)
        except ValidationError as error:
            reasons = "; ".join(one["msg"] for one in error.errors(include_input=False, include_url=False))
            raise PermanentError(
                f"the live model {model.name} of provider {model.provider} cannot be asked from here: {reasons}. Cure: "
                "install the version of embedding-assets that fills this database, or give this client a function to "
                "embed with"
            ) from None


def _refuse(error: RequestError, model: LiveModel) -> None:
    """Raise PermanentError where asking again would not help."""
    kind = error.row.kind
    if kind is Kind.POISON:
        raise PermanentError(
            f"{model.name} refused the question: {error.message}. Cure: ask in other words, or in fewer"
        ) from None
    if kind not in _AGAIN:
        raise PermanentError(f"{model.name}: {error.message}. Cure: {error.row.cure}") from None
