"""The language of hybrid search: what a region is to keep words in, and what each generation does.

Light: whoever only asks a database imports no Arrow with it.
"""

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.locks import schema_lock, transaction
from embedding_assets.pgvector.schema.generations import Generation


def ensure_language(conn: Connection, language: str | None) -> None:
    """Record the text search configuration of `search_hybrid`; None disables it. Writes nothing where it is so already.

    The words follow with `ensure_words`; until then hybrid search goes by rank, and is slow. Raises PermanentError
    where the database has no such configuration.
    """
    with pipeline_errors("enabling hybrid search in the region's database"):
        name = None if language is None else require_language(conn, language)
        if recorded_language(conn) == name:
            return
        with transaction(conn):
            schema_lock(conn)
            conn.execute("UPDATE embedding_assets.surface SET language = %s", [name])


def require_language(conn: Connection, language: str) -> str:
    """The qualified name of a text search configuration; asks only. Raises PermanentError where there is none."""
    known = {name: qualified for qualified, name in _configurations(conn)}
    if language not in known:
        raise PermanentError(
            f"hybrid search: this database has no text search configuration {language!r}. It has "
            f"{', '.join(sorted(known))}. Cure: set the language of hybrid to one of these; "
            "`simple` takes words as they are"
        )
    return str(known[language])


def language_of(conn: Connection, generation: Generation) -> str | None:
    """The language that a generation's words are kept in; None where none are."""
    row = conn.execute("SELECT language FROM embedding_assets.generations WHERE id = %s", [generation.id]).fetchone()
    return row[0] if row else None


def is_wanted(conn: Connection, kept: str | None, language: str | None) -> bool:
    """Whether words that are `kept` as `language_of` has it are those of this text search configuration; None: none."""
    if language is None:
        return kept is None
    return any(qualified == kept for qualified, known in _configurations(conn) if known == language)


def recorded_language(conn: Connection) -> str | None:
    """The language on record for this region; None where hybrid search is off."""
    row = conn.execute("SELECT language FROM embedding_assets.surface").fetchone()
    return row[0] if row else None


def _configurations(conn: Connection) -> list[tuple[str, str]]:
    """The text search configurations of the database: their qualified names, and those that people write."""
    return conn.execute(
        """
        SELECT format('%I.%I', nspname, cfgname), cfgname FROM pg_ts_config
        JOIN pg_namespace ON pg_namespace.oid = cfgnamespace WHERE pg_ts_config_is_visible(pg_ts_config.oid)
        """
    ).fetchall()
