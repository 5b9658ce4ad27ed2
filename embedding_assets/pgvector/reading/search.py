"""What applications ask of a region's database: the nearest chunks, by vector alone or by words as well."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from psycopg.types.json import Jsonb

from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.indexes.recall import vector_literal


class Hit(NamedTuple):
    """A chunk found, with its cosine distance (0 the same direction, 2 the opposite)."""

    source: str
    document_id: str
    ordinal: int
    content: str
    metadata: dict[str, Any]
    distance: float


class HybridHit(NamedTuple):
    """A chunk found by hybrid search: a `Hit` with its score, the higher the better (at most 2/61)."""

    source: str
    document_id: str
    ordinal: int
    content: str
    metadata: dict[str, Any]
    distance: float
    score: float


def search(
    conn: Connection,
    vector: npt.ArrayLike,
    k: int,
    source: str | None = None,
    filter: Mapping[str, Any] | None = None,
) -> list[Hit]:
    """The k chunks nearest to a vector of the live model, nearest first, by the SQL function `search`.

    `filter` is contained in the metadata of every hit. Raises PermanentError where the vector's dimensions are not
    those of the live model.
    """
    query = vector_literal(np.asarray(vector, np.float32))
    with pipeline_errors("searching"):
        rows = conn.execute(
            "SELECT source, document_id, ordinal, content, metadata, distance "
            "FROM public.search(%s::vector, %s, %s, %s)",
            [query, k, source, Jsonb(dict(filter or {}))],
        )
        return [Hit(*row) for row in rows]


def search_hybrid(
    conn: Connection,
    vector: npt.ArrayLike,
    text: str,
    k: int,
    source: str | None = None,
    filter: Mapping[str, Any] | None = None,
) -> list[HybridHit]:
    """The k chunks that stand highest by distance and by the words of `text` at once, by the SQL function.

    `text` is read as a web search is: all its words, "a phrase", `or`, and - for words that must not occur. Raises
    PermanentError where hybrid search is not enabled, and as `search` does.
    """
    query = vector_literal(np.asarray(vector, np.float32))
    with pipeline_errors("searching"):
        rows = conn.execute(
            "SELECT source, document_id, ordinal, content, metadata, distance, score "
            "FROM public.search_hybrid(%s::vector, %s, %s, %s, %s)",
            [query, text, k, source, Jsonb(dict(filter or {}))],
        )
        return [HybridHit(*row) for row in rows]
