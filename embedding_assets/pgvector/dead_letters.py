"""The dead letters of the primary region: what could not be processed, how often it was tried, what people decided.

`record` is given what a stage's run rejected; everything else is for people and for the reconciliation.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.locks import transaction
from embedding_assets.snapshots.rejections import RejectedText, Rejection, RejectionKind

State = Literal["pending", "replayed", "resolved", "escalated"]


class DeadLetter(NamedTuple):
    """A rejection on record, and its history.

    `item` is the rejection's identity, `payload` says where it lies, `message` is its reason. `standing`: whether the
    last run of its stage still found it dead.
    """

    id: int
    source: str
    stage: str
    model_version: str | None
    kind: RejectionKind
    item: str
    document_id: str | None
    chunk_id: UUID | None
    payload: str
    error_class: str
    message: str
    cure: str
    attempts: int
    replays: int
    state: State
    standing: bool
    first_seen: datetime
    last_seen: datetime

    def as_rejected_text(self) -> RejectedText:
        """The rejection of a text as a snapshot lists it."""
        return RejectedText(
            source=self.source,
            part=self.payload.partition("#")[0],
            document_id=self.document_id or "",
            chunk_id=str(self.chunk_id),
            text_hash=self.item,
            error_class=self.error_class,
            reason=self.message,
            cure=self.cure,
            attempts=self.attempts,
        )


_COLUMNS = ", ".join(DeadLetter._fields)


def record(
    conn: Connection,
    source: str,
    stage: str,
    model_version: str | None,
    rejected: Sequence[Rejection],
    *,
    complete: bool,
) -> None:
    """Put what a run rejected on record.

    A letter seen again keeps its state, but for one that was tried again, or was resolved by having gone: that is
    pending anew. `complete`: these are all there are, so that whatever else stands for this stage is resolved.
    """
    letters = Jsonb([_columns(rejection) for rejection in rejected])
    with pipeline_errors(f"recording the dead letters of source {source!r}"), transaction(conn):
        # The last of several wins: an upsert may not meet a row twice.
        conn.execute(
            """
            INSERT INTO embedding_assets.dead_letters AS known (
                source, stage, model_version,
                kind, item, document_id, chunk_id, payload, error_class, message, cure, attempts
            )
            SELECT DISTINCT ON (item)
                   %(source)s, %(stage)s, %(model)s,
                   kind, item, document_id, chunk_id, payload, error_class, message, cure, attempts
            FROM jsonb_to_recordset(%(letters)s) AS rejected (
                kind text, item text, document_id text, chunk_id uuid, payload text, error_class text, message text,
                cure text, attempts integer
            )
            ON CONFLICT (source, stage, coalesce(model_version, ''), item) DO UPDATE SET
                document_id = excluded.document_id, chunk_id = excluded.chunk_id, payload = excluded.payload,
                error_class = excluded.error_class, message = excluded.message, cure = excluded.cure,
                attempts = CASE WHEN known.state = 'replayed' THEN known.attempts ELSE 0 END + excluded.attempts,
                replays = known.replays + (known.state = 'replayed')::integer,
                state = CASE
                    WHEN known.state = 'replayed' OR NOT known.standing THEN 'pending' ELSE known.state
                END,
                standing = true, last_seen = now()
            """,
            {"source": source, "stage": stage, "model": model_version, "letters": letters},
        )
        if complete:
            conn.execute(
                """
                UPDATE embedding_assets.dead_letters SET state = 'resolved', standing = false
                WHERE source = %s AND stage = %s AND model_version IS NOT DISTINCT FROM %s AND standing
                  AND item <> ALL (%s)
                """,
                [source, stage, model_version, [rejection.identity for rejection in rejected]],
            )


def _columns(rejection: Rejection) -> dict[str, str | int | None]:
    """A rejection as the table has it, without what Postgres cannot hold."""
    text = rejection if isinstance(rejection, RejectedText) else None
    return {
        "kind": rejection.kind,
        "item": rejection.identity,
        "document_id": _without_nul(rejection.document_id) if rejection.document_id is not None else None,
        "chunk_id": text.chunk_id if text else None,
        "payload": _without_nul(rejection.where),
        "error_class": rejection.error_class,
        "message": _without_nul(rejection.reason),
        "cure": rejection.cure,
        "attempts": rejection.attempts,
    }


def _without_nul(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def standing(conn: Connection, source: str, stage: str, model_version: str | None) -> list[DeadLetter]:
    """What the last run of a stage found dead, by item."""
    return _select(
        conn,
        "source = %s AND stage = %s AND model_version IS NOT DISTINCT FROM %s AND standing ORDER BY item",
        [source, stage, model_version],
    )


def listed(conn: Connection, source: str | None, states: Sequence[State]) -> list[DeadLetter]:
    """The letters in these states, of one source or of all, those seen last first."""
    return _select(
        conn,
        "(%s::text IS NULL OR source = %s) AND state = ANY (%s) ORDER BY last_seen DESC, id",
        [source, source, list(states)],
    )


def sources_with(conn: Connection, states: Sequence[State]) -> set[str]:
    """The sources that have letters in these states."""
    with pipeline_errors("asking for the sources with dead letters"):
        rows = conn.execute(
            "SELECT DISTINCT source FROM embedding_assets.dead_letters WHERE state = ANY (%s)", [list(states)]
        ).fetchall()
    return {source for (source,) in rows}


def by_id(conn: Connection, ids: Sequence[int]) -> list[DeadLetter]:
    """These letters, by number; those that are not there are left out."""
    return _select(conn, "id = ANY (%s) ORDER BY id", [list(ids)])


def mark(conn: Connection, ids: Sequence[int], state: State) -> None:
    """Give letters a state. What no longer stands stays resolved."""
    with pipeline_errors("marking dead letters"):
        conn.execute(
            "UPDATE embedding_assets.dead_letters SET state = %s WHERE id = ANY (%s) AND standing", [state, list(ids)]
        )


def forget_resolved(conn: Connection, days: int) -> int:
    """Delete what has been gone for so many days; how many that were."""
    with pipeline_errors("forgetting old dead letters"):
        return conn.execute(
            "DELETE FROM embedding_assets.dead_letters "
            "WHERE NOT standing AND last_seen < now() - make_interval(days => %s)",
            [days],
        ).rowcount


def _select(conn: Connection, condition: str, parameters: Sequence[Any]) -> list[DeadLetter]:
    with pipeline_errors("reading the dead letters"), conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        query = f"SELECT {_COLUMNS} FROM embedding_assets.dead_letters WHERE {condition}"  # noqa: S608 - both are ours
        return cursor.execute(query.encode(), parameters).fetchall()
