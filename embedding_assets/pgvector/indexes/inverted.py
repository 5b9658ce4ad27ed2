"""Inverted indexes (GIN) of a generation: on the metadata, for narrow filters, and on the words, for hybrid search.

Measured with 30,000 texts of 700 characters and six fields of metadata, beside 9–12 s for the HNSW index of 256
dimensions and a table of 62 MB: metadata 0.1 s and 2.3 MB, words 1.5 s and 11 MB. A search under a filter of 0.1 %
takes 0.4 ms with the first and 16 ms without; under one that nothing matches 0.4 ms, and without it a look at the whole
table. So the metadata's is always built, the words' only where the settings ask for hybrid search.
"""

from typing import Final

from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.locks import schema_lock, transaction
from embedding_assets.pgvector.schema.generations import Generation
from embedding_assets.pgvector.schema.names import generation_table

_METADATA: Final = "metadata"
_WORDS: Final = "words"


def ensure_language(conn: Connection, language: str | None) -> None:
    """Record the text search configuration of `search_hybrid`; None disables it. Writes nothing where it is so already.

    The indexes follow with `ensure_inverted_indexes`; until then hybrid search reads the tables, and is slow.
    Raises PermanentError where the database has no such configuration.
    """
    with pipeline_errors("enabling hybrid search in the region's database"):
        name = None if language is None else require_language(conn, language)
        if _language(conn) == name:
            return
        with transaction(conn):
            schema_lock(conn)
            conn.execute("UPDATE embedding_assets.surface SET language = %s", [name])


def ensure_inverted_indexes(conn: Connection, generation: Generation) -> None:
    """Have the inverted indexes of a generation, valid, and no others; on a published one while readers go on."""
    language = _language(conn)
    wanted: dict[str, sql.Composable] = {f"generation_{generation.id}_{_METADATA}": sql.SQL("metadata jsonb_path_ops")}
    if language is not None:
        # Named for its language: another one makes another index.
        name = f"generation_{generation.id}_{_WORDS}_{language.replace('.', '_')}"[:63]
        wanted[name] = sql.SQL("to_tsvector({}::regconfig, content)").format(sql.Literal(language))
    concurrently = sql.SQL("CONCURRENTLY" if generation.state == "published" else "")
    present: dict[str, bool] = dict(
        conn.execute(
            """
            SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
            WHERE indrelid = to_regclass(%s) AND relname ~ %s
            """,
            [generation_table(generation.id).as_string(conn), f"_({_METADATA}|{_WORDS}_.*)$"],
        ).fetchall()
    )
    for name in present:
        if name not in wanted or not present[name]:
            conn.execute(sql.SQL("DROP INDEX {} embedding_assets.{}").format(concurrently, sql.Identifier(name)))
    missing = [name for name in wanted if not present.get(name)]
    for name in missing:
        # Without a list of what is yet to be put in: a delta writes little, and every search would read the list.
        conn.execute(
            sql.SQL("CREATE INDEX {} {} ON {} USING gin ({}) WITH (fastupdate = off)").format(
                concurrently, sql.Identifier(name), generation_table(generation.id), wanted[name]
            )
        )
    if missing and generation.state == "published":  # else `build_indexes` does, when all are there
        # The planner takes the words' index by what it knows of the words in it.
        conn.execute(sql.SQL("ANALYZE {}").format(generation_table(generation.id)))


def require_language(conn: Connection, language: str) -> str:
    """The qualified name of a text search configuration; asks only. Raises PermanentError where there is none."""
    rows = conn.execute(
        """
        SELECT format('%I.%I', nspname, cfgname), cfgname FROM pg_ts_config
        JOIN pg_namespace ON pg_namespace.oid = cfgnamespace WHERE pg_ts_config_is_visible(pg_ts_config.oid)
        """
    ).fetchall()
    known = {name: qualified for qualified, name in rows}
    if language not in known:
        raise PermanentError(
            f"hybrid search: this database has no text search configuration {language!r}. It has "
            f"{', '.join(sorted(known))}. Cure: set the language of hybrid to one of these; "
            "`simple` takes words as they are"
        )
    return str(known[language])


def _language(conn: Connection) -> str | None:
    row = conn.execute("SELECT language FROM embedding_assets.surface").fetchone()
    return row[0] if row else None
