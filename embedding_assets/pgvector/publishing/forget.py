"""A source that is to be found no more: everything that a region's database has of it goes at once."""

from typing import NamedTuple

from psycopg import sql

from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.indexes.measurement import put_to_use
from embedding_assets.pgvector.locks import drop_source_lock, short_transaction, source_lock
from embedding_assets.pgvector.schema.generations import drop_tables, published_generation
from embedding_assets.pgvector.schema.names import generation_table


class Held(NamedTuple):
    """What a database holds of a source: rows that readers see, and dead letters."""

    source: str
    rows: int
    dead_letters: int


def held(conn: Connection) -> list[Held]:
    """Every source that the database holds anything of."""
    with pipeline_errors("asking for the sources that the database holds"):
        rows = conn.execute(
            """
            SELECT source,
                   (SELECT coalesce(sum(rows), 0)::bigint FROM embedding_assets.ledger
                    JOIN embedding_assets.generations ON id = generation
                    WHERE generations.source = known.source AND state = 'published'),
                   (SELECT count(*) FROM embedding_assets.dead_letters WHERE dead_letters.source = known.source)
            FROM (SELECT source FROM embedding_assets.generations
                  UNION SELECT source FROM embedding_assets.dead_letters) AS known
            ORDER BY source
            """
        ).fetchall()
    return [Held(*row) for row in rows]


def forget(conn: Connection, source: str) -> None:
    """Drop every generation of the source and all records of it, in one short transaction: readers see all or nothing.

    Raises TransientError where readers would not let go of the table, or a load of the source goes on.
    """
    with pipeline_errors(f"forgetting source {source!r}"), source_lock(conn, source, 60):

        def drop() -> None:
            published = published_generation(conn, source)
            if published is not None:
                table = generation_table(published.id)
                conn.execute(sql.SQL("ALTER TABLE embedding_assets.chunks DETACH PARTITION {}").format(table))
            generations = conn.execute(
                "DELETE FROM embedding_assets.generations WHERE source = %s RETURNING id", [source]
            ).fetchall()
            for (generation,) in generations:
                drop_tables(conn, generation)
            for records in ("dead_letters", "fusion"):
                conn.execute(
                    sql.SQL("DELETE FROM embedding_assets.{} WHERE source = %s").format(sql.Identifier(records)),
                    [source],
                )
            put_to_use(conn)

        short_transaction(conn, f"forgetting source {source!r}", drop)
    drop_source_lock(conn, source)
