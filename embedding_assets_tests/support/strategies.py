"""Hypothesis strategies for rows, with texts as hostile as they can be when they get here."""

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from embedding_assets_tests.support.toy import Row

# Anything but NUL and lone surrogates, which the readers settle.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40) | st.sampled_from(
    ["", "\\.", "\\N", "a\tb\nc\r\n", "'; DROP TABLE chunks; --", "\u202ertl", "🧵" * 500]
)
INTS = st.integers(-(2**31), 2**31 - 1)
METADATA = st.sampled_from(["{}", '{"a": 1}', '{"a": "1"}', '{"é\\"": [null, "🧵"], "team": {"x": 1.50}}'])


def vectors(dimensions: int) -> st.SearchStrategy[npt.NDArray[np.float32] | None]:
    components = st.lists(st.floats(-1, 1, width=16), min_size=dimensions, max_size=dimensions)
    return st.none() | components.map(lambda values: np.array(values, np.float32))


def lists_of_rows(d1: int, d2: int, max_size: int = 8) -> st.SearchStrategy[list[Row]]:
    one = st.builds(
        Row,
        chunk_id=st.binary(min_size=16, max_size=16),
        document_id=TEXTS,
        ordinal=INTS,
        start=INTS,
        end=INTS,
        content=TEXTS,
        metadata=METADATA,
        v1=vectors(d1),
        v2=vectors(d2),
    )
    return st.lists(one, max_size=max_size)
