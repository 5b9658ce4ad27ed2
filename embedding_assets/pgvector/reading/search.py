"""What applications ask of a region's database: the nearest chunks, by vector alone or by words as well."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.schema.models import BoundModel
from embedding_assets.snapshots.slots import column_of


class Hit(NamedTuple):
    """A chunk found, with its cosine distance (0 the same direction, 2 the opposite)."""

    source: str
    document_id: str
    ordinal: int
    content: str
    metadata: dict[str, Any]
    distance: float


class HybridHit(NamedTuple):
    """A chunk found by hybrid search: a `Hit` with its score, the higher the better; of one search alone."""

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

    `text` is read as a web search is: any of its words, "a phrase" that must occur, and - for what must not. Raises
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


def ranked_documents(conn: Connection, bound: BoundModel, vector: npt.ArrayLike, k: int, source: str) -> list[str]:
    """The documents of the k chunks of a source nearest to a vector of this model, live or not; by its index.

    A document stands there once for each of its chunks. It takes the right to read the table.
    """
    column = sql.Identifier(column_of(bound.slot))
    statement = sql.SQL(
        "SELECT document_id FROM embedding_assets.chunks WHERE source = %s AND {0} IS NOT NULL "
        "ORDER BY {0} <=> %s::{1} LIMIT %s"
    ).format(column, sql.SQL(bound.model.type.name))
    with conn.transaction():
        conn.execute(
            "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'strict_order', true)",
            [str(min(1000, max(bound.ef_search, k)))],
        )
        query = vector_literal(np.asarray(vector, np.float32))
        return [document for (document,) in conn.execute(statement, [source, query, k])]


def ranked_documents_hybrid(
    conn: Connection, vector: npt.ArrayLike, text: str, k: int, source: str, weight: float | None = None
) -> list[str]:
    """The documents of the k chunks that `search_hybrid` finds, once for each; with another weight of the vector."""
    query = vector_literal(np.asarray(vector, np.float32))
    rows = conn.execute(
        "SELECT document_id FROM embedding_assets.fuse(%s::vector, %s, %s, %s, '{}', %s)",
        [query, text, k, source, weight],
    )
    return [document for (document,) in rows]


def ranked_documents_words(conn: Connection, text: str, k: int, source: str) -> list[str]:
    """The documents of the k chunks of a source that stand highest by the words of a text alone, once for each."""
    rows = conn.execute("SELECT document_id FROM embedding_assets.search_words(%s, %s, %s)", [text, k, source])
    return [document for (document,) in rows]


def fusion_weight(conn: Connection, source: str, model: str) -> float | None:
    """How much the vector counts in hybrid search; None where nobody has chosen that."""
    row = conn.execute(
        "SELECT weight FROM embedding_assets.fusion WHERE source = %s AND model = %s", [source, model]
    ).fetchone()
    return row[0] if row else None


def set_fusion_weight(conn: Connection, source: str, model: str, weight: float, evidence: Mapping[str, Any]) -> None:
    """Have hybrid search of the source use this weight of the vector, from 0 to 1, while this model is live."""
    conn.execute(
        """
        INSERT INTO embedding_assets.fusion (source, model, weight, evidence) VALUES (%s, %s, %s, %s)
        ON CONFLICT (source, model) DO UPDATE
        SET weight = excluded.weight, evidence = excluded.evidence, chosen_at = now()
        """,
        [source, model, weight, Jsonb(dict(evidence))],
    )


def known_documents(conn: Connection, source: str, documents: Sequence[str]) -> set[str]:
    """Those of these documents that have a chunk in search."""
    rows = conn.execute(
        "SELECT DISTINCT document_id FROM embedding_assets.chunks WHERE source = %s AND document_id = ANY (%s)",
        [source, list(documents)],
    )
    return {document for (document,) in rows}


def sampled_chunks(conn: Connection, source: str, count: int) -> list[tuple[str, list[str]]]:
    """So many different texts of a source, and the documents in which each stands; the same while the rows are."""
    rows = conn.execute(
        """
        SELECT content, array_agg(DISTINCT document_id) FROM embedding_assets.chunks WHERE source = %s
        GROUP BY content ORDER BY md5(content), content LIMIT %s
        """,
        [source, count],
    )
    return rows.fetchall()
