"""The inverted index (GIN) on a generation's metadata, for narrow filters.

Measured with 30,000 texts of 700 characters and six fields of metadata, beside 9–12 s for the HNSW index of 256
dimensions and a table of 62 MB: 0.1 s and 2.3 MB. A search under a filter of 0.1 % takes 0.4 ms with it and 16 ms
without; under one that nothing matches 0.4 ms, and without it a look at the whole table.
"""

from psycopg import sql

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.schema.generations import Generation
from embedding_assets.pgvector.schema.names import generation_table


def ensure_metadata_index(conn: Connection, generation: Generation) -> None:
    """Have the inverted index of a generation, valid; on a published one while readers go on."""
    name = f"generation_{generation.id}_metadata"
    concurrently = sql.SQL("CONCURRENTLY" if generation.state == "published" else "")
    valid = conn.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [f"embedding_assets.{name}"]
    ).fetchone()
    if valid == (True,):
        return
    if valid is not None:
        conn.execute(sql.SQL("DROP INDEX {} embedding_assets.{}").format(concurrently, sql.Identifier(name)))
    # Without a list of what is yet to be put in: a delta writes little, and every search would read the list.
    conn.execute(
        sql.SQL("CREATE INDEX {} {} ON {} USING gin (metadata jsonb_path_ops) WITH (fastupdate = off)").format(
            concurrently, sql.Identifier(name), generation_table(generation.id)
        )
    )
    if generation.state == "published":  # else `build_indexes` does, when all are there
        conn.execute(sql.SQL("ANALYZE {}").format(generation_table(generation.id)))
