"""Who may do what in a region's database: three roles of the cluster, and row-level security by source.

    embedding_ingest   owns the schema, the tables and the functions: what the pipeline may log in as, or be a member of
    embedding_search   may call search() and search_hybrid() and read live_chunks, and nothing else: for applications
    embedding_surface  owns live_chunks alone, which reads the tables with its rights: bound by row-level security, as
                       the owner of the tables is not

Roles belong to the cluster, everything else to one database. Where the login role may not make them, its own rights
carry the pipeline, and a warning says what an administrator can run; the next run finds it done.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import psycopg
from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, pipeline_errors, schema_lock, short_transaction

_log = logging.getLogger(__name__)

INGEST: Final = "embedding_ingest"
SEARCH: Final = "embedding_search"
SURFACE: Final = "embedding_surface"

# The functions of the surface are known by what they return: public is not ours alone.
_HITS: Final = ["embedding_assets.hit", "embedding_assets.hybrid_hit"]

Readers = Mapping[str, Sequence[str]]
"""The sources that a database role, and whoever is a member of it, may read."""


def ensure_roles(conn: Connection) -> None:
    """Have the roles, what belongs to them and what they are granted; writes nothing where it is so already.

    Logs a warning with the way out where this login role may not do it: loading and its own searches work regardless.
    """
    if _in_place(conn):
        return
    try:
        _make_roles(conn)
        short_transaction(conn, "setting up the database's roles", lambda: _hand_over(conn))
    except psycopg.errors.InsufficientPrivilege as error:
        (login,) = conn.execute("SELECT quote_ident(current_user)").fetchone() or ("",)
        _log.warning(
            "the database works without its roles, as %s: %s. An administrator can run, once: %s; GRANT %s TO %s; "
            "GRANT %s TO %s. The next run then gives the tables to %s and the searches to %s",
            login, error.diag.message_primary, "; ".join(f"CREATE ROLE {role}" for role in (INGEST, SEARCH, SURFACE)),
            SURFACE, INGEST, INGEST, login, INGEST, SEARCH,
        )  # fmt: skip
        short_transaction(conn, "granting the searches", lambda: _grant_search(conn))


def act_as_ingest(conn: Connection) -> None:
    """Go on as `embedding_ingest` where the tables are its own, so that whatever is made from here on is so too.

    Else one login role could not replace a generation that another one has loaded.
    """
    with pipeline_errors(f"acting as {INGEST}"):
        conn.execute(
            """
            SELECT set_config('role', rolname, false)
            FROM pg_class JOIN pg_roles ON pg_roles.oid = relowner
            WHERE pg_class.oid = 'embedding_assets.chunks'::regclass AND rolname = %s
            AND pg_has_role(relowner, 'USAGE')
            """,
            [INGEST],
        )


def open_view(conn: Connection) -> None:
    """Give live_chunks its owner, and its readers the right to read it, as far as the roles are there."""
    if conn.execute("SELECT pg_has_role(to_regrole(%s), 'USAGE')", [SURFACE]).fetchone() == (True,):
        conn.execute(sql.SQL("ALTER VIEW public.live_chunks OWNER TO {}").format(sql.Identifier(SURFACE)))
    if _exists(conn, SEARCH):
        conn.execute(sql.SQL("GRANT SELECT ON public.live_chunks TO {}").format(sql.Identifier(SEARCH)))


def ensure_readers(conn: Connection, readers: Readers | None) -> None:
    """Have row-level security by source: on with these readers, off with None; writes nothing where it is so already.

    It binds whoever searches or reads live_chunks, by the role that the session logged in as. Whoever owns the tables
    goes on reading all. Needs the view, of `ensure_models`. Raises PermanentError where the view belongs to a role that
    Postgres exempts from policies.
    """
    with pipeline_errors("setting row-level security in the region's database"):
        wanted = None if readers is None else {(role, source) for role in readers for source in readers[role]}
        if _is_set(conn, on=wanted is not None) and _readers(conn) == (wanted or set()):
            return
        short_transaction(conn, "setting row-level security", lambda: _set_readers(conn, wanted))
        if unknown := [role for role in readers or () if not _exists(conn, role)]:
            _log.warning("row_level_security names roles that this database does not have: %s", ", ".join(unknown))


def _in_place(conn: Connection) -> bool:
    row = conn.execute(
        """
        SELECT coalesce(
            pg_has_role(ingest, 'USAGE') AND pg_has_role(ingest, surface, 'USAGE')
            AND nspowner = ingest
            AND NOT EXISTS (
                SELECT FROM pg_class
                WHERE relnamespace = pg_namespace.oid AND relkind IN ('r', 'p', 'c') AND relowner <> ingest
            )
            AND NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = pg_namespace.oid AND proowner <> ingest)
            AND (
                SELECT bool_and(proowner = ingest AND has_function_privilege(search, oid, 'EXECUTE'))
                FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prorettype = ANY (%s::regtype[])
            )
            AND NOT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('public.live_chunks') AND relowner <> surface),
            false
        )
        FROM pg_namespace, to_regrole(%s) AS ingest, to_regrole(%s) AS surface, to_regrole(%s) AS search
        WHERE nspname = 'embedding_assets'
        """,
        [_HITS, INGEST, SURFACE, SEARCH],
    ).fetchone()
    return row == (True,)


def _make_roles(conn: Connection) -> None:
    """Each by itself: they belong to the cluster, and another database of it may be doing the same."""
    for role in (INGEST, SEARCH, SURFACE):
        if not _exists(conn, role):
            _cluster_wide(conn, sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
    for role, member in ((SURFACE, sql.Identifier(INGEST)), (INGEST, sql.SQL("CURRENT_USER"))):
        granted = sql.SQL("SELECT pg_has_role({}, {}, 'USAGE')").format(
            sql.Literal(INGEST) if role == SURFACE else member, sql.Literal(role)
        )
        if conn.execute(granted).fetchone() != (True,):
            _cluster_wide(conn, sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), member))


def _cluster_wide(conn: Connection, statement: sql.Composed) -> None:
    try:
        conn.execute(statement)
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation, psycopg.errors.InternalError_) as error:
        # "tuple concurrently updated" is the last one's: whoever was quicker has made what we want.
        _log.info("%s: another process was quicker: %s", statement.as_string(conn), error.diag.message_primary)


def _hand_over(conn: Connection) -> None:
    schema_lock(conn)
    ingest, surface = sql.Identifier(INGEST), sql.Identifier(SURFACE)
    # A new owner must be allowed to create where the object is, and the view is made anew there.
    conn.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}, {}").format(ingest, surface))
    conn.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(_extension_schema(conn), ingest))
    database = sql.Identifier(conn.info.dbname)
    conn.execute(sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(database, ingest))
    conn.execute(sql.SQL("ALTER SCHEMA embedding_assets OWNER TO {}").format(ingest))
    owned = conn.execute(
        """
        SELECT CASE WHEN relkind = 'c' THEN 'TYPE' ELSE 'TABLE' END, oid::regclass::text FROM pg_class
        WHERE relnamespace = 'embedding_assets'::regnamespace AND relkind IN ('r', 'p', 'c')
        AND relowner <> %(ingest)s::regrole
        UNION ALL
        SELECT 'FUNCTION', oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = 'embedding_assets'::regnamespace AND proowner <> %(ingest)s::regrole
        """,
        {"ingest": INGEST},
    ).fetchall()
    for kind, name in owned:  # both as Postgres itself quotes them
        conn.execute(sql.SQL("ALTER {} {} OWNER TO {}").format(sql.SQL(kind), sql.SQL(name), ingest))
    for function in _functions(conn):
        conn.execute(sql.SQL("ALTER FUNCTION {} OWNER TO {}").format(function, ingest))
    conn.execute(sql.SQL("GRANT USAGE ON SCHEMA embedding_assets TO {}").format(surface))
    conn.execute(sql.SQL("GRANT SELECT ON embedding_assets.chunks TO {}").format(surface))
    _grant_search(conn)


def _grant_search(conn: Connection) -> None:
    """Open the functions, and the view if it is there, to `embedding_search` if that is there."""
    schema_lock(conn)
    if not _exists(conn, SEARCH):
        return
    search = sql.Identifier(SEARCH)
    for function in _functions(conn):
        conn.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(function, search))
    conn.execute(sql.SQL("GRANT USAGE ON SCHEMA public, {} TO {}").format(_extension_schema(conn), search))
    if conn.execute("SELECT to_regclass('public.live_chunks') IS NOT NULL").fetchone() == (True,):
        open_view(conn)


def _functions(conn: Connection) -> list[sql.SQL]:
    rows = conn.execute(
        "SELECT oid::regprocedure::text FROM pg_proc "
        "WHERE pronamespace = 'public'::regnamespace AND prorettype = ANY (%s::regtype[])",
        [_HITS],
    )
    return [sql.SQL(signature) for (signature,) in rows]


def _extension_schema(conn: Connection) -> sql.SQL:
    row = conn.execute("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'").fetchone()
    return sql.SQL(row[0] if row else "public")


def _exists(conn: Connection, role: str) -> bool:
    return conn.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None


def _readers(conn: Connection) -> set[tuple[str, str]]:
    return {(role, source) for role, source in conn.execute("SELECT role, source FROM embedding_assets.readers")}


def _is_set(conn: Connection, *, on: bool) -> bool:
    row = conn.execute(
        """
        SELECT relrowsecurity,
               EXISTS (SELECT FROM pg_policy WHERE polrelid = chunks.oid AND polname = 'by_source'),
               relforcerowsecurity = (relrowsecurity AND relowner = (
                   SELECT relowner FROM pg_class WHERE oid = 'public.live_chunks'::regclass
               ))
        FROM pg_class AS chunks WHERE oid = 'embedding_assets.chunks'::regclass
        """
    ).fetchone()
    return row == (on, on, True)


def _set_readers(conn: Connection, wanted: set[tuple[str, str]] | None) -> None:
    schema_lock(conn)
    conn.execute("DELETE FROM embedding_assets.readers")
    for role, source in sorted(wanted or ()):
        conn.execute("INSERT INTO embedding_assets.readers (role, source) VALUES (%s, %s)", [role, source])
    if _is_set(conn, on=wanted is not None):
        return  # only the list has changed: that takes no lock from the readers
    conn.execute("DROP POLICY IF EXISTS by_source ON embedding_assets.chunks")
    if wanted is None:
        conn.execute("ALTER TABLE embedding_assets.chunks DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY")
        return
    # In a subquery of its own the function is called once a query. (Postgres prunes no partitions by its answer: of a
    # source that may not be read the index is asked for one batch. The functions prune.)
    conn.execute(
        """
        CREATE POLICY by_source ON embedding_assets.chunks
        USING (source = ANY ((SELECT embedding_assets.readable_sources())::text[]))
        """
    )
    owners = conn.execute(
        """
        SELECT rolname, rolsuper OR rolbypassrls, lives.relowner = chunks.relowner
        FROM pg_class AS lives JOIN pg_roles ON pg_roles.oid = lives.relowner, pg_class AS chunks
        WHERE lives.oid = 'public.live_chunks'::regclass AND chunks.oid = 'embedding_assets.chunks'::regclass
        """
    ).fetchone()
    owner, exempt, owns_tables = owners or ("", True, True)
    if exempt:
        raise PermanentError(
            f"row_level_security cannot bind live_chunks: it belongs to {owner!r}, which Postgres exempts from "
            "policies (SUPERUSER or BYPASSRLS). Take both from that role"
        )
    # Where the roles could not be made, the view reads as the owner of the tables, who must be bound then. Else not:
    # under a policy no index may serve the functions' @> and @@, which are not leakproof.
    conn.execute(
        sql.SQL("ALTER TABLE embedding_assets.chunks ENABLE ROW LEVEL SECURITY, {} FORCE ROW LEVEL SECURITY").format(
            sql.SQL("" if owns_tables else "NO")
        )
    )
