"""The column types that take a model's vectors. Light: whoever only asks a database imports no Arrow with it."""

from typing import Final, Literal, NamedTuple

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.options import LARGEST_HALFVEC, LARGEST_VECTOR


class VectorType(NamedTuple):
    """The type of a slot's column: 4-byte or 2-byte floats, and how many."""

    name: Literal["vector", "halfvec"]
    dimensions: int


EMPTY: Final = VectorType("vector", 1)
"""Of the column of a slot that is bound to no model: every row has NULL there, which takes a bit."""

VectorTypes = tuple[VectorType, ...]
"""Of each slot, in the order of SLOTS."""


def vector_type(dimensions: int, *, halfvec: bool = False) -> VectorType:
    """`vector` up to 2,000 dimensions unless `halfvec` is asked for, `halfvec` up to 4,000.

    Raises PermanentError above: no index could hold them.
    """
    if not 1 <= dimensions <= LARGEST_HALFVEC:
        raise PermanentError(
            f"a model of {dimensions} dimensions cannot be indexed: pgvector's HNSW takes {LARGEST_VECTOR} as vector "
            f"and {LARGEST_HALFVEC} as halfvec. Cure: ask the provider for fewer dimensions (OpenAI's text-embedding-3 "
            "models do so), or choose another model"
        )
    return VectorType("halfvec" if halfvec or dimensions > LARGEST_VECTOR else "vector", dimensions)
