"""The search surface: each function and view of it is a file of `sql/surface`, replaced whole when its text changes.

Two versions of this project may work on one database for a while, as in a rolling deployment. So the surface has a
number, which rises with every change of a text (`make schema` sees to it), and a database's is never replaced by one
of a lower number. The older program goes on with the newer surface, for that only ever appends: columns of views,
attributes of what functions return, and functions.
"""

import re
from hashlib import sha256
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.locks import schema_lock, short_transaction

FOLDER: Final = Path(__file__).parent / "sql" / "surface"

ORDER: Final = (
    "types",
    "readable_sources",
    "search_terms",
    "search",
    "search_overloads",
    "lexemes",
    "read_words",
    "word_terms",
    "search_words",
    "hybrid_by_rank",
    "fuse",
    "search_hybrid",
    "search_hybrid_overloads",
    "search_by_model",
    "live_model",
    "model_versions",
    "live_chunks",
    "data_live_chunks",
    "tables",
)
"""The files, without `.sql`: what is used comes before what uses it."""

# What replacing something else of that name raises: a table for a view, a view with other columns, another result.
_TAKEN: Final = (
    psycopg.errors.WrongObjectType, psycopg.errors.InvalidTableDefinition, psycopg.errors.InvalidFunctionDefinition,
)  # fmt: skip

_MADE: Final = re.compile(r"^\s*CREATE OR REPLACE (?:FUNCTION|VIEW) ([a-z_]+\.[a-z_]+)", re.MULTILINE)


def texts() -> dict[str, str]:
    """The texts of this program's surface by the names of their files, in the order in which they are run."""
    return {name: (FOLDER / f"{name}.sql").read_text(encoding="utf-8") for name in ORDER}


def version() -> int:
    """The number of this program's surface."""
    return int((FOLDER / "version").read_text(encoding="utf-8").split()[0])


def digest(text: str) -> str:
    """What a text is known by in the database."""
    return sha256(text.encode()).hexdigest()


def outdated(conn: Connection) -> list[str]:
    """The files of the surface that this migrated database has otherwise, or whose objects it lacks; asks only.

    None where the database has the surface of a newer program.
    """
    recorded = {
        file: (recorded, number)
        for file, recorded, number in conn.execute("SELECT file, sha256, version FROM embedding_assets.surface_files")
    }
    if any(number > version() for _, number in recorded.values()):
        return []
    wanted = texts()
    made = {object_name: file for file, text in wanted.items() for object_name in _MADE.findall(text)}
    missing = conn.execute(
        """
        SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL AND NOT EXISTS (
            SELECT FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
            WHERE nspname = split_part(name, '.', 1) AND proname = split_part(name, '.', 2)
        )
        """,
        [list(made)],
    ).fetchall()
    lacking = {made[name] for (name,) in missing}
    return [file for file, text in wanted.items() if file in lacking or recorded.get(file, ("", 0))[0] != digest(text)]


def forget(conn: Connection) -> None:
    """Have all files run again: for before migrations, some of which made functions of the surface."""
    if conn.execute("SELECT to_regclass('embedding_assets.surface_files') IS NOT NULL").fetchone() == (True,):
        conn.execute("UPDATE embedding_assets.surface_files SET sha256 = ''")


def ensure_surface(conn: Connection, search_path: str) -> None:
    """Have this program's surface, or a newer one, in a migrated database; writes nothing where it is so already.

    All that differs is replaced in one transaction, which waits 500 ms at a time for readers of a view. `search_path`
    has the schema of pgvector. Raises TransientError where readers held the view through all attempts, PermanentError
    where somebody else's object has a name of ours.
    """
    if outdated(conn):
        try:
            short_transaction(conn, "replacing the search surface", lambda: _replace(conn, search_path))
        except _TAKEN as error:
            raise PermanentError(
                f"the search surface of database {conn.info.dbname!r} needs a name that something else has: "
                f"{error.diag.message_primary}. Cure: rename that, or move it to another schema, "
                "then embedding-assets materialize"
            ) from error


def _replace(conn: Connection, search_path: str) -> None:
    schema_lock(conn)
    conn.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.SQL(search_path)))
    conn.execute("SELECT '[1]'::vector")  # loads the library: a role without privileges may then name its settings
    for file in outdated(conn):  # by now another process may have been here
        conn.execute((FOLDER / f"{file}.sql").read_bytes())
        conn.execute(
            """
            INSERT INTO embedding_assets.surface_files (file, sha256, version) VALUES (%s, %s, %s)
            ON CONFLICT (file) DO UPDATE SET sha256 = excluded.sha256
            """,
            [file, digest(texts()[file]), version()],
        )
    conn.execute("UPDATE embedding_assets.surface_files SET version = %s WHERE version < %s", [version(), version()])
    # Postgres lets everybody call a new function. Whoever may call one of the same name may call it, and nobody else:
    # an application goes on where its call is taken by another of them now.
    statements = conn.execute(
        """
        WITH ours AS (
            SELECT oid, proname, proowner, proacl FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace
            AND prorettype IN (SELECT oid FROM pg_type WHERE typnamespace = 'embedding_assets'::regnamespace)
        )
        SELECT format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', oid::regprocedure) FROM ours WHERE proacl IS NULL
        UNION ALL
        SELECT format(
            'GRANT EXECUTE ON FUNCTION %s TO %s', new.oid::regprocedure,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
        )
        FROM ours AS new JOIN ours AS known USING (proname), aclexplode(known.proacl)
        WHERE new.proacl IS NULL AND grantee <> known.proowner
        """
    )
    for (statement,) in statements.fetchall():  # names as Postgres itself quotes them
        conn.execute(statement.encode())
