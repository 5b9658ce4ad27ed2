"""What every provider promises the engine, whether its model is behind an endpoint or in this process."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest

from embedding_assets.embedding.engine.errors import RequestError
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.bundled import MODELS
from embedding_assets.embedding.providers.opening import open_provider
from embedding_assets.embedding.providers.provider import Answer, Provider
from embedding_assets_tests.support.standin import Standin

T = TypeVar("T")


def bundled(name: str) -> Callable[[Standin], Binding]:
    dimensions = MODELS[name].dimensions
    return lambda _: Binding.model_validate(
        {"slot": "v1", "provider": "local", "name": name, "dimensions": dimensions, "max_items": 8}
    )


PROVIDERS: dict[str, Callable[[Standin], Binding]] = {
    "openai": lambda standin: standin.binding(max_items=8),
    "openai without base64": lambda standin: standin.binding(max_items=8, encoding_format="float"),
    **{name: bundled(name) for name in sorted(MODELS)},
}

WORDS = ["a dog runs in the park", "refunds", "東京 is large", "Größe 10 €", "x", "the dog runs in a park", "42", "🐕"]
ODD = [
    "\0",
    " ",
    "\n\n\n",
    "\u202eright to left",
    "e" + "\u0301" * 300,
    "\ufffd\ufeff",
    "<|endoftext|>",
    "word " * 2_000,
]


@pytest.fixture(params=PROVIDERS.values(), ids=list(PROVIDERS))
def binding(request: pytest.FixtureRequest, standin: Standin) -> Binding:
    made: Binding = request.param(standin)
    return made


def used(binding: Binding, use: Callable[[Provider], Awaitable[T]]) -> T:
    """What comes of a use of the provider, which is closed after it."""

    async def run() -> T:
        provider = open_provider(binding)
        try:
            return await use(provider)
        finally:
            await provider.aclose()

    return asyncio.run(run())


def embedded(binding: Binding, texts: Sequence[str]) -> Answer:
    return used(binding, lambda provider: provider.embed(texts))


def test_vectors_are_rows_of_float32_in_one_block_that_may_be_written_to(binding: Binding) -> None:
    answer = embedded(binding, WORDS)

    assert answer.vectors.shape == (len(WORDS), binding.dimensions)
    assert answer.vectors.dtype == np.float32
    assert answer.vectors.flags.c_contiguous
    assert answer.vectors.flags.writeable


def test_every_text_with_a_word_in_it_has_a_vector_that_can_be_made_a_unit_one(binding: Binding) -> None:
    lengths = np.linalg.norm(embedded(binding, WORDS).vectors.astype(np.float64), axis=1)

    assert np.isfinite(lengths).all()
    assert (lengths > 1e-6).all()


def test_vectors_come_in_the_order_of_their_texts_and_depend_on_nothing_beside_them(binding: Binding) -> None:
    together = embedded(binding, WORDS).vectors

    np.testing.assert_array_equal(embedded(binding, WORDS[::-1]).vectors, together[::-1])
    np.testing.assert_array_equal(embedded(binding, WORDS[2:3]).vectors, together[2:3])


def test_equal_texts_have_equal_vectors_and_others_have_others(binding: Binding) -> None:
    one, same, other = embedded(binding, [WORDS[0], WORDS[0], WORDS[1]]).vectors

    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:20]))
def test_an_odd_text_has_a_vector_and_leaves_its_neighbour_the_one_that_it_has(binding: Binding, text: str) -> None:
    alone = embedded(binding, ["refunds"]).vectors[0]

    beside, odd = embedded(binding, ["refunds", text]).vectors

    np.testing.assert_array_equal(beside, alone)
    assert np.isfinite(odd).all()


def test_an_empty_text_is_refused_or_has_a_row_of_its_own(binding: Binding) -> None:
    try:
        answer = embedded(binding, ["refunds", ""])
    except RequestError:
        return
    assert answer.vectors.shape == (2, binding.dimensions)


def test_a_request_of_as_many_texts_as_its_caps_say_is_answered(binding: Binding) -> None:
    async def fill(provider: Provider) -> tuple[int, Answer]:
        most = provider.caps.max_items
        return most, await provider.embed([f"text {number}" for number in range(most)])

    most, answer = used(binding, fill)

    assert len(answer.vectors) == most == 8


def test_caps_and_dimensions_are_those_of_the_binding(binding: Binding) -> None:
    async def read(provider: Provider) -> tuple[int, ...]:
        return provider.dimensions, *provider.caps

    assert used(binding, read) == (
        binding.dimensions,
        binding.max_items,
        binding.max_tokens_per_item,
        binding.max_tokens_per_request,
    )


def test_tokens_grow_with_the_text(binding: Binding) -> None:
    few, many = embedded(binding, ["word"]).tokens, embedded(binding, ["word " * 50]).tokens

    assert 0 < few < many


def test_requests_at_the_same_time_get_each_their_own_answer(binding: Binding) -> None:
    async def all_at_once(provider: Provider) -> list[Answer]:
        return await asyncio.gather(*(provider.embed([word]) for word in WORDS))

    answers = used(binding, all_at_once)

    np.testing.assert_array_equal(np.concatenate([a.vectors for a in answers]), embedded(binding, WORDS).vectors)


def test_a_request_can_be_given_up_and_the_next_one_is_answered(binding: Binding) -> None:
    async def give_up(provider: Provider) -> Answer:
        request = asyncio.ensure_future(provider.embed(WORDS))
        await asyncio.sleep(0)  # it has begun
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        return await provider.embed(WORDS)

    answer = used(binding, give_up)

    np.testing.assert_array_equal(answer.vectors, embedded(binding, WORDS).vectors)


def test_what_is_closed_may_be_closed_again(binding: Binding) -> None:
    async def close(provider: Provider) -> None:
        await provider.embed(["x"])
        await provider.aclose()

    used(binding, close)
