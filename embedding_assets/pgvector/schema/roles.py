"""Who may do what in a region's database: three roles of the cluster, and row-level security by source.

    embedding_ingest   owns the schema, the tables and the functions: what the pipeline may log in as, or be a member of
    embedding_search   may call search(), search_hybrid() and live_model() and read the views, and nothing else: for
                       applications
    embedding_surface  owns the views alone, which read the tables with its rights: bound by row-level security, as the
                       owner of the tables is not

Roles belong to the cluster, everything else to one database. Where the login role may not make them, an administrator
runs `sql/roles.sql`; until then its own rights carry the pipeline as far as they go. That a role is there says nothing:
what counts is what the login role, and the role itself, may do.
"""

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.locks import schema_lock, short_transaction

_log = logging.getLogger(__name__)

INGEST: Final = "embedding_ingest"
SEARCH: Final = "embedding_search"
SURFACE: Final = "embedding_surface"
_FOR_ADMINISTRATORS: Final = (Path(__file__).parent / "sql" / "roles.sql").resolve()
_ROLES: Final = (INGEST, SEARCH, SURFACE)

# The functions of the surface are known by what they return, a type of our schema: public is not ours alone.
_RETURNS_OURS: Final = (
    "prorettype IN (SELECT oid FROM pg_type WHERE typnamespace = to_regnamespace('embedding_assets'))"
)

# Its views: what an application reads, and the same for LlamaIndex.
_VIEWS: Final = "relname IN ('live_chunks', 'data_live_chunks') AND relnamespace = 'public'::regnamespace"

Readers = Mapping[str, Sequence[str]]
"""The sources that a database role, and whoever is a member of it, may read."""


# SET is an option of a membership from PostgreSQL 16 on; before, whoever is a member may.
_MAY_SET: Final = "CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END"

# What a role needs, beside what it owns: the right, and what on. Rows of what is not there yet are left out.
_NEEDED: Final = f"""
SELECT to_regrole(role), 'SCHEMA', pg_namespace.oid, quote_ident(nspname), privilege
FROM pg_namespace, (VALUES
    ('embedding_ingest', 'public', 'USAGE'), ('embedding_ingest', 'public', 'CREATE'),
    ('embedding_ingest', 'extension', 'USAGE'), ('embedding_surface', 'public', 'CREATE'),
    ('embedding_surface', 'embedding_assets', 'USAGE'),
    ('embedding_search', 'public', 'USAGE'), ('embedding_search', 'extension', 'USAGE')
) AS needed (role, name, privilege)
WHERE CASE name
    WHEN 'extension' THEN pg_namespace.oid = (SELECT extnamespace FROM pg_extension WHERE extname = 'vector')
    ELSE nspname = name
END
UNION ALL
SELECT to_regrole('embedding_surface'), 'TABLE', oid, oid::regclass::text, 'SELECT'
FROM pg_class WHERE relname = 'chunks' AND relnamespace = to_regnamespace('embedding_assets')
UNION ALL
SELECT to_regrole('embedding_search'), 'TABLE', oid, oid::regclass::text, 'SELECT'
FROM pg_class WHERE {_VIEWS}
UNION ALL
SELECT to_regrole('embedding_search'), 'FUNCTION', oid, oid::regprocedure::text, 'EXECUTE'
FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND {_RETURNS_OURS}
"""  # noqa: S608 — both are ours


def ensure_roles(conn: Connection) -> None:
    """Have the roles, what belongs to them and what they are granted; writes nothing where it is so already.

    Logs a warning with the way out where this login role may not do it: loading and its own searches work regardless.
    Raises PermanentError where the tables are somebody's whose rights it does not have.
    """
    if _in_place(conn):
        return
    try:
        _make_roles(conn)
        short_transaction(conn, "setting up the database's roles", lambda: _hand_over(conn))
    except psycopg.errors.InsufficientPrivilege as error:
        why = str(error).partition("\n")[0]
        if owners := _foreign_owners(conn):
            raise PermanentError(
                f"the tables of database {conn.info.dbname!r} belong to {', '.join(owners)}, and {conn.info.user} has "
                f"not the rights of that role ({why}). {way_out(conn)}"
            ) from error
        _log.warning(
            "database %r works without its roles, as %s: %s. The run after the cure gives the tables to %s and the "
            "searches to %s. %s",
            conn.info.dbname, conn.info.user, why, INGEST, SEARCH, way_out(conn),
        )  # fmt: skip
        short_transaction(conn, "granting the searches", lambda: _open_searches(conn))


def way_out(conn: Connection) -> str:
    """The cure for what the login role may not do: the line that an administrator runs, as whoever they are."""
    database = make_conninfo(host=conn.info.host or None, port=conn.info.port, dbname=conn.info.dbname)
    line = shlex.join(["psql", "-v", f"pipeline={conn.info.user}", "-f", str(_FOR_ADMINISTRATORS), database])
    return f"Cure: an administrator of the database runs, once, in the project's folder: {line}"


@contextmanager
def with_way_out(conn: Connection, doing: str) -> Iterator[None]:
    """Raise what the login role may not do as PermanentError with the cure, and other errors as `pipeline_errors`."""
    with pipeline_errors(doing):
        try:
            yield
        except psycopg.errors.InsufficientPrivilege as error:
            raise PermanentError(f"{doing}: {error.diag.message_primary or error}. {way_out(conn)}") from error


def act_as_ingest(conn: Connection) -> None:
    """Go on as `embedding_ingest` where the tables are its own, so that whatever is made from here on is so too.

    Else one login role could not replace a generation that another one has loaded. Where that role lacks a right, the
    login role, which has all of its rights, may have that one too.
    """
    with pipeline_errors(f"acting as {INGEST}"):
        if _may_be(conn, INGEST) and not _lacking(conn, INGEST):
            conn.execute(
                """
                SELECT set_config('role', rolname, false) FROM pg_class JOIN pg_roles ON pg_roles.oid = relowner
                WHERE pg_class.oid = to_regclass('embedding_assets.chunks') AND rolname = %s
                """,
                [INGEST],
            )


def is_row_security_on(conn: Connection) -> bool:
    """Whether the tables have row-level security on, whoever may read what."""
    row = conn.execute("SELECT relrowsecurity FROM pg_class WHERE oid = 'embedding_assets.chunks'::regclass").fetchone()
    return row == (True,)


def ensure_readers(conn: Connection, readers: Readers | Literal[False] | None) -> None:
    """Have row-level security by source: on with these readers, off with False; writes nothing where it is so already.

    None leaves it as it is: where it is on, the readers on record go on, bound as the owners of today require.

    It binds whoever searches or reads live_chunks, by the role that the session logged in as. Whoever owns the tables
    goes on reading all. Raises PermanentError where the view belongs to a role that Postgres exempts from policies.
    """
    with with_way_out(conn, "setting row-level security in the region's database"):
        if readers is None:
            if not is_row_security_on(conn):
                return
            wanted: set[tuple[str, str]] | None = _readers(conn)
        elif readers is False:
            wanted = None
        else:
            wanted = {(role, source) for role in readers for source in readers[role]}
        if _is_set(conn, on=wanted is not None) and _readers(conn) == (wanted or set()):
            return
        short_transaction(conn, "setting row-level security", lambda: _set_readers(conn, wanted))
        if unknown := [role for role in readers or () if not _exists(conn, role)]:
            _log.warning("row_level_security names roles that this database does not have: %s", ", ".join(unknown))


def _in_place(conn: Connection) -> bool:
    row = conn.execute(
        f"""
        SELECT coalesce(
            pg_has_role(ingest, surface, 'USAGE') AND nspowner = ingest
            AND NOT EXISTS (
                SELECT FROM pg_class
                WHERE relnamespace = pg_namespace.oid AND relkind IN ('r', 'p', 'v', 'c') AND relowner <> ingest
            )
            AND NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = pg_namespace.oid AND proowner <> ingest)
            AND NOT EXISTS (
                SELECT FROM pg_proc
                WHERE pronamespace = 'public'::regnamespace AND {_RETURNS_OURS} AND proowner <> ingest
            )
            AND NOT EXISTS (SELECT FROM pg_class WHERE {_VIEWS} AND relowner <> surface),
            false
        )
        FROM pg_namespace, to_regrole(%s) AS ingest, to_regrole(%s) AS surface
        WHERE nspname = 'embedding_assets'
        """,  # noqa: S608 — both are ours
        [INGEST, SURFACE],
    ).fetchone()
    return row == (True,) and _may_be(conn, INGEST) and _exists(conn, SEARCH) and not _lacking(conn, *_ROLES)


def _may_be(conn: Connection, role: str) -> bool:
    """Whether we have the role's rights, and may give things to it; by SET ROLE, or in our own name."""
    row = conn.execute(
        f"SELECT pg_has_role(role, 'USAGE') AND pg_has_role(role, {_MAY_SET}) FROM to_regrole(%s) AS role",  # noqa: S608
        [role],
    ).fetchone()
    return row == (True,)


def _lacking(conn: Connection, *names: str) -> list[tuple[str, bool]]:
    """What those of the roles that are there still lack: the statement that grants it, and whether we may."""
    return conn.execute(
        f"""
        SELECT format('GRANT %%s ON %%s %%s TO %%s', privilege, kind, name, role),
               CASE kind
                   WHEN 'SCHEMA' THEN has_schema_privilege(oid, privilege || ' WITH GRANT OPTION')
                   WHEN 'TABLE' THEN has_table_privilege(oid, privilege || ' WITH GRANT OPTION')
                   ELSE has_function_privilege(oid, privilege || ' WITH GRANT OPTION')
               END
        FROM ({_NEEDED}) AS needed (role, kind, oid, name, privilege)
        WHERE role = ANY (SELECT to_regrole(name) FROM unnest(%(roles)s::text[]) AS name) AND NOT CASE kind
            WHEN 'SCHEMA' THEN has_schema_privilege(role, oid, privilege)
            WHEN 'TABLE' THEN has_table_privilege(role, oid, privilege)
            ELSE has_function_privilege(role, oid, privilege)
        END
        """,  # noqa: S608 — both are ours
        {"roles": list(names)},
    ).fetchall()


def _foreign_owners(conn: Connection) -> list[str]:
    """Who owns tables of ours that is not us, nor anybody whose rights we have."""
    rows = conn.execute(
        """
        SELECT DISTINCT relowner::regrole::text FROM pg_class
        WHERE relnamespace = 'embedding_assets'::regnamespace AND relkind IN ('r', 'p')
        AND NOT pg_has_role(relowner, 'USAGE')
        """
    )
    return [owner for (owner,) in rows]


def _make_roles(conn: Connection) -> None:
    """Each by itself: they belong to the cluster, and another database of it may be doing the same."""
    for role in _ROLES:
        if not _exists(conn, role):
            _cluster_wide(conn, sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
    if conn.execute("SELECT pg_has_role(%s, %s, 'USAGE')", [INGEST, SURFACE]).fetchone() != (True,):
        _cluster_wide(conn, sql.SQL("GRANT {} TO {}").format(sql.Identifier(SURFACE), sql.Identifier(INGEST)))
    if not _may_be(conn, INGEST):
        _cluster_wide(
            conn,
            sql.SQL("GRANT {} TO CURRENT_USER {}").format(
                sql.Identifier(INGEST),
                sql.SQL("WITH INHERIT TRUE, SET TRUE" if conn.info.server_version >= 160000 else ""),
            ),
        )


def _cluster_wide(conn: Connection, statement: sql.Composed) -> None:
    try:
        conn.execute(statement)
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation, psycopg.errors.InternalError_) as error:
        # "tuple concurrently updated" is the last one's: whoever was quicker has made what we want.
        _log.info("%s: another process was quicker: %s", statement.as_string(conn), error.diag.message_primary)


def _hand_over(conn: Connection) -> None:
    schema_lock(conn)
    ingest = sql.Identifier(INGEST)
    # First, for a new owner must be allowed to create where the object is.
    for statement, may in _lacking(conn, *_ROLES):
        if not may:  # Postgres itself says so only where we have no right at all on the object
            raise psycopg.errors.InsufficientPrivilege(f"not allowed to {statement}")
        conn.execute(statement.encode())
    conn.execute(sql.SQL("ALTER SCHEMA embedding_assets OWNER TO {}").format(ingest))
    owned = conn.execute(
        """
        SELECT CASE WHEN relkind = 'c' THEN 'TYPE' ELSE 'TABLE' END, oid::regclass::text FROM pg_class
        WHERE relnamespace = 'embedding_assets'::regnamespace AND relkind IN ('r', 'p', 'v', 'c')
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
    _give_views(conn)
    _open(conn)


def _open_searches(conn: Connection) -> None:
    schema_lock(conn)
    _open(conn)


def _open(conn: Connection) -> None:
    """Give the views their owner, and `embedding_search` what it reads and calls, as far as we may."""
    foreign = conn.execute(f"SELECT FROM pg_class WHERE {_VIEWS} AND NOT pg_has_role(relowner, 'USAGE')")
    if not foreign.rowcount and _may_be(conn, SURFACE) and not _lacking(conn, SURFACE):
        _give_views(conn)
    for statement, may in _lacking(conn, SEARCH):
        if may:
            conn.execute(statement.encode())


def _give_views(conn: Connection) -> None:
    for (view,) in conn.execute(f"SELECT oid::regclass::text FROM pg_class WHERE {_VIEWS}").fetchall():  # noqa: S608
        conn.execute(sql.SQL("ALTER VIEW {} OWNER TO {}").format(sql.SQL(view), sql.Identifier(SURFACE)))


def _functions(conn: Connection) -> list[sql.SQL]:
    rows = conn.execute(
        f"SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND {_RETURNS_OURS}"  # noqa: S608
    )
    return [sql.SQL(signature) for (signature,) in rows]


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
            "policies (SUPERUSER or BYPASSRLS). Cure: take both from that role"
        )
    # Where the roles could not be made, the view reads as the owner of the tables, who must be bound then. Else not:
    # under a policy no index may serve the functions' @> and @@, which are not leakproof.
    conn.execute(
        sql.SQL("ALTER TABLE embedding_assets.chunks ENABLE ROW LEVEL SECURITY, {} FORCE ROW LEVEL SECURITY").format(
            sql.SQL("" if owns_tables else "NO")
        )
    )
