import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from embedding_assets.embedding.engine.vectors import normalise


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 600), st.integers(1, 9)),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
def test_what_is_called_sound_is_a_unit_row_and_nothing_else_is(vectors: NDArray[np.float32]) -> None:
    given = vectors.copy()
    sound = normalise(vectors)
    norms = np.linalg.norm(given.astype(np.float64), axis=1)
    np.testing.assert_allclose(np.linalg.norm(vectors[sound].astype(np.float64), axis=1), 1, atol=1e-6)
    assert not sound[~np.isfinite(norms) | (norms < 1e-16)].any()
    assert sound[(norms > 1e-14) & (norms < 1e18)].all()  # beyond, float32 cannot hold the squares
    np.testing.assert_allclose(vectors[sound], given[sound] / norms[sound, None], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 255, 256, 700])
def test_one_bad_number_condemns_its_row_alone(bad: float, row: int) -> None:
    vectors = np.ones((701, 8), np.float32)
    vectors[row, 3] = bad
    sound = normalise(vectors)
    assert np.flatnonzero(~sound).tolist() == [row]


def test_a_unit_vector_does_not_depend_on_the_rows_beside_it() -> None:
    vectors = np.random.default_rng(1).standard_normal((1_000, 96)).astype(np.float32)
    alone = [row[None].copy() for row in vectors]
    for row in alone:
        normalise(row)
    normalise(vectors)
    assert vectors.tobytes() == np.concatenate(alone).tobytes()
