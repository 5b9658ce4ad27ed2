"""A vector as text. Apart from `copy`, which has them in binary form: a search imports no Arrow."""

import numpy as np
import numpy.typing as npt


def vector_literal(vector: npt.NDArray[np.float32]) -> str:
    """A vector as pgvector reads it: nine digits tell any two float32 apart."""
    return "[" + ",".join([f"{value:.9g}" for value in vector.tolist()]) + "]"
