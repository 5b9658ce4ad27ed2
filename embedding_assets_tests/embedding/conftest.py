import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import bpe_openai
import numpy as np
import pytest
from numpy.typing import NDArray

from embedding_assets.embedding.engine.engine import Dead, Embedded, Text
from embedding_assets.embedding.engine.gate import Patience
from embedding_assets_tests.support.standin import Standin, unit_vector

_TOKENIZER = bpe_openai.get_encoding("cl100k_base")

HASTY = Patience(
    backoff_seconds=0.01, longest_backoff_seconds=0.05, breaker_seconds=0.05, breaker_probes=3, hand_over_seconds=7.0
)
"""Faults take what they take, waits a fiftieth: so that tests of outages take no minutes."""


def texts_of(words: list[str]) -> list[Text]:
    """Texts to embed, with their cl100k tokens."""
    return [Text(hashlib.sha256(word.encode()).digest(), word, len(_TOKENIZER.encode(word))) for word in words]


@dataclass
class Delivered:
    """What an engine delivered, text by text."""

    vectors: dict[bytes, NDArray[np.float32]] = field(default_factory=dict)
    dead: dict[bytes, Dead] = field(default_factory=dict)
    count: int = 0

    def __call__(self, item: Embedded | Dead) -> None:
        if isinstance(item, Dead):
            self.dead[item.text_hash] = item
            self.count += 1
        else:
            assert item.vectors.dtype == np.float32
            self.vectors.update(zip(item.text_hashes, item.vectors, strict=True))
            self.count += len(item.text_hashes)

    def assert_right(self, texts: list[Text], dead: int = 0, dimensions: int = 64) -> None:
        """Each text came once; each vector is its text's own, of unit length."""
        assert self.count == len(self.vectors) + len(self.dead) == len(texts)
        assert len(self.dead) == dead
        for text in texts:
            if text.text_hash in self.vectors:
                expected = unit_vector(text.text, dimensions)
                np.testing.assert_allclose(self.vectors[text.text_hash], expected, atol=1e-6)


@pytest.fixture(scope="session")
def running() -> Iterator[Standin]:
    with Standin.started() as standin:
        yield standin


@pytest.fixture
def standin(running: Standin) -> Standin:
    """The stand-in provider, healthy and without memory of other tests."""
    running.reset()
    return running


@pytest.fixture
def delivered() -> Delivered:
    return Delivered()
