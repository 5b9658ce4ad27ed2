import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.embedding.engine.batching import batches
from embedding_assets.embedding.engine.items import Text
from embedding_assets.embedding.providers.provider import Caps

texts = st.lists(st.integers(0, 40), max_size=60).map(
    lambda sizes: [Text(str(i).encode(), f"text {i}", tokens) for i, tokens in enumerate(sizes)]
)
caps = st.builds(Caps, st.integers(1, 8), st.integers(1, 30), st.integers(1, 60))


@given(texts, caps)
def test_every_text_is_in_one_batch_in_order(texts: list[Text], caps: Caps) -> None:
    assert [text for batch in batches(texts, lambda: caps) for text in batch] == texts


@given(texts, caps)
def test_no_batch_is_over_a_cap_unless_a_single_text_is(texts: list[Text], caps: Caps) -> None:
    for batch in batches(texts, lambda: caps):
        assert 1 <= len(batch) <= caps.max_items
        assert len(batch) == 1 or sum(text.tokens for text in batch) <= caps.max_tokens_per_request
        assert len(batch) == 1 or all(text.tokens <= caps.max_tokens_per_item for text in batch)


@given(texts, caps)
def test_batches_are_as_full_as_the_caps_allow(texts: list[Text], caps: Caps) -> None:
    cut = list(batches(texts, lambda: caps))
    for batch, following in itertools.pairwise(cut):
        alone = any(text.tokens > caps.max_tokens_per_item for text in (*batch, following[0]))
        tokens = sum(text.tokens for text in (*batch, following[0]))
        assert alone or len(batch) == caps.max_items or tokens > caps.max_tokens_per_request


def test_texts_are_pulled_only_as_batches_are_taken() -> None:
    pulled = []

    def source() -> Iterator[Text]:
        for i in range(1_000):
            pulled.append(i)
            yield Text(b"", "", 1)

    next(batches(source(), lambda: Caps(10, 10, 100)))
    assert len(pulled) == 11
