"""Our local model as the peers get it: the same code and weights, and a count of what they have embedded."""

import asyncio
from collections.abc import Sequence
from functools import cached_property

from embedding_assets.embedding.engine.vectors import normalise
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.opening import open_provider
from embedding_assets.embedding.providers.provider import Provider

DIMENSIONS = 256


class CountingModel:
    """wordllama-256. Loaded at the first text, as ours is: an unchanged re-run need not load it."""

    def __init__(self) -> None:
        self.texts = 0

    @cached_property
    def _provider(self) -> Provider:
        binding = {"slot": "v1", "provider": "local", "name": f"wordllama-{DIMENSIONS}", "dimensions": DIMENSIONS}
        return open_provider(Binding.model_validate(binding))

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors, a list of floats for each text."""
        self.texts += len(texts)
        vectors = asyncio.run(self._provider.embed(texts)).vectors
        normalise(vectors)
        lists: list[list[float]] = vectors.tolist()
        return lists
