"""A question in words, asked of a region by the same steps as the client's."""

from typing import Any

import psycopg
from psycopg.rows import dict_row

from embedding_assets.client.core import Asked, Hit, Memory, Run, searching
from embedding_assets.embedding.query import embed_query
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.regions import searched_slot
from embedding_assets.pgvector.connection import Connection


def search(
    deployment: Deployment,
    region: str,
    text: str,
    *,
    k: int,
    source: str | None = None,
    filter: dict[str, Any] | None = None,
    hybrid: bool = False,
) -> list[dict[str, Any]]:
    """The nearest chunks by the region's live model, nearest first; by the text's words as well if `hybrid`.

    The question is embedded as the settings bind the model, for they have its key. Raises as the client does, and
    PermanentError where the region serves nothing yet.
    """
    with deployment.connect(region) as conn:
        searched_slot(conn, region)
        hits = _hits(deployment, conn, Asked(text, k, source, filter, hybrid))
    return [_fields(hit, hybrid) for hit in hits]


def _hits(deployment: Deployment, conn: Connection, asked: Asked) -> list[Hit]:
    steps = searching(asked, Memory(1))
    try:
        step = next(steps)
        while True:
            try:
                done: object = (
                    _rows(conn, step)
                    if isinstance(step, Run)
                    else embed_query(deployment.binding(step.model.slot), step.question)
                )
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(done)
    except StopIteration as end:
        hits: list[Hit] = end.value
        return hits


def _rows(conn: Connection, step: Run) -> list[list[dict[str, Any]]]:
    with conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        return [cursor.execute(*statement).fetchall() for statement in step.statements]


def _fields(hit: Hit, hybrid: bool) -> dict[str, Any]:
    fields = {
        "source": hit.source,
        "document_id": hit.document_id,
        "ordinal": hit.ordinal,
        "content": hit.text,
        "metadata": hit.metadata,
        "distance": hit.distance,
    }
    return fields | {"score": hit.score} if hybrid else fields
