"""What the engine asks of a provider: one model behind one endpoint, or in this process."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_assets.embedding.engine.limits import Quota


class Caps(NamedTuple):
    """What one request may hold. Tokens are cl100k tokens."""

    max_items: int
    max_tokens_per_item: int
    max_tokens_per_request: int


class Answer(NamedTuple):
    """One request's vectors, in the order of its texts.

    `vectors` is (n, d) float32, C-contiguous and writable, as the provider gave them: neither checked nor
    normalised. A row the provider left out for one text (null, or of another length than the rest) is NaN.
    """

    vectors: NDArray[np.float32]
    tokens: int  # as the provider counts them; 0 where it does not say
    truncated: int = 0  # texts longer than the model's window, embedded by their beginning
    quota: Quota | None = None  # what the answer's headers say is left
    model: str | None = None  # as the endpoint names it, if it does


class Provider(Protocol):
    """One model behind one endpoint. `embed` raises `errors.RequestError`, classified by the error table."""

    dimensions: int
    caps: Caps

    async def embed(self, texts: Sequence[str]) -> Answer: ...

    async def aclose(self) -> None: ...
