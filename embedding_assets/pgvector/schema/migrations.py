"""The tables of a region, by numbered migrations (`sql/migrations`), and the search surface on them (`sql/surface`)."""

import logging
import re
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, connect, dsn_of
from embedding_assets.pgvector.locks import SCHEMA_LOCK, SWAP_LOCK_TIMEOUT, held, limit, until_granted
from embedding_assets.pgvector.schema import roles, surface
from embedding_assets.telemetry.events import Tell, unheard

_log = logging.getLogger(__name__)

MIGRATIONS: Final = Path(__file__).parent / "sql" / "migrations"

OLDEST_PGVECTOR: Final = (0, 8, 4)
OLDEST_POSTGRES: Final = 140_000

_PATIENCE_SECONDS: Final = 600.0
"""For another run that migrates."""

_LONGEST_MS: Final = 60_000
"""The most that a migration may take: none rewrites a table that readers use."""


def migrate(dsn: str, tell: Tell = unheard) -> None:
    """Bring the database to the newest migration, its search surface and its roles in place.

    Writes nothing where that is so already. A newer program's surface stays.

    Raises PermanentError where PostgreSQL is older than 14, pgvector is missing or older than 0.8.4, or the database is
    newer than this program.
    """
    with connect(dsn) as conn, roles.with_way_out(conn, "migrating the region's database"):
        require_pgvector(conn)
        if _missing(conn):
            _prepare(conn)
            # Held by one connection while yoyo works on others.
            with connect(dsn) as keeper, held(keeper, SCHEMA_LOCK, "the schema", _PATIENCE_SECONDS, tell):
                if _missing(conn):
                    surface.forget(conn)
                    search_path = _search_path(conn)
                    until_granted("migrating the region's database", lambda: _apply(dsn, search_path))
        surface.ensure_surface(conn, _search_path(conn))
        roles.ensure_roles(conn)
        _ensure_iterative_scans(conn)


def ensure_migrated(conn: Connection) -> None:
    """`migrate` the database of this connection, for those who write records and nothing that the settings say.

    Where it is so already this asks three questions, on this connection alone.
    """
    with roles.with_way_out(conn, "asking the region's database for its migrations"):
        migrated = not _missing(conn) and not surface.outdated(conn)
    if not migrated:
        migrate(dsn_of(conn))


def has_tables(conn: Connection) -> bool:
    """Whether a region's tables are in this database, of whatever version."""
    with roles.with_way_out(conn, "looking for the region's tables"):
        return conn.execute("SELECT to_regclass('embedding_assets.chunks') IS NOT NULL").fetchone() == (True,)


def is_migrated(conn: Connection) -> bool:
    """Whether a region's tables are in this database; asks only, for those who may not write.

    Raises PermanentError, with the cure, where they are not of this program's version.
    """
    if not has_tables(conn):
        return False
    with roles.with_way_out(conn, "asking the region's database for its migrations"):
        missing = sorted(_missing(conn))
        if not missing and surface.outdated(conn):
            missing = [f"search surface {surface.version()}"]
        if missing:
            raise PermanentError(
                f"database {conn.info.dbname!r} needs migrating: it lacks {', '.join(missing)}. "
                "Cure: embedding-assets materialize"
            )
        return True


def require_pgvector(conn: Connection) -> None:
    """Raise PermanentError where Postgres is too old for this project, or pgvector is, or is not there; asks only."""
    refuse_old_postgres(conn.info.server_version)
    row = conn.execute(
        "SELECT coalesce(installed_version, default_version) FROM pg_available_extensions WHERE name = 'vector'"
    ).fetchone()
    if row is None:
        raise PermanentError(
            "this Postgres has no pgvector. Cure: install the extension (0.8.4 or newer) on the server, or set "
            "`database: embedded` for this region"
        )
    refuse_old_pgvector(row[0])


def refuse_old_postgres(version: int) -> None:
    """Raise PermanentError for PostgreSQL below 14, by the number that libpq gives a version."""
    if version < OLDEST_POSTGRES:
        raise PermanentError(
            f"PostgreSQL {version // 10_000} is too old: functions of the search surface have bodies that 14 is the "
            "first to know. Cure: upgrade the server to PostgreSQL 14 or newer"
        )


def refuse_old_pgvector(version: str) -> None:
    """Raise PermanentError for pgvector below 0.8.4, with the reason."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST_PGVECTOR:
        raise PermanentError(
            f"pgvector {version} is too old: before 0.8.4 a parallel HNSW build can leak or overwrite memory "
            "(CVE-2026-3172), and VACUUM can damage an HNSW index. Cure: install 0.8.4 or newer on the server, "
            "then run ALTER EXTENSION vector UPDATE"
        )


def _migrations() -> set[str]:
    """The numbered files; what else is beside them is for people."""
    names = {path.stem for path in MIGRATIONS.glob("[0-9]*_*.sql")}
    if not names:
        raise PermanentError(f"no migrations in {MIGRATIONS}. Cure: install the project as editable (pip install -e .)")
    return names


def _missing(conn: Connection) -> set[str]:
    """The migrations that this database is not known to have. Raises PermanentError where it has others than ours."""
    wanted, applied = _migrations(), set[str]()
    if conn.execute("SELECT to_regclass('embedding_assets._yoyo_migration') IS NOT NULL").fetchone() == (True,):
        applied = {row[0] for row in conn.execute("SELECT migration_id FROM embedding_assets._yoyo_migration")}
    if unknown := applied - wanted:
        raise PermanentError(
            f"a newer version of this project has migrated database {conn.info.dbname!r} "
            f"({', '.join(sorted(unknown))}). Cure: update this installation to that version"
        )
    return wanted - applied


def _prepare(conn: Connection) -> None:
    try:
        conn.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject):
        _log.debug("another process was quicker")
    # Looked for first: with IF NOT EXISTS, too, Postgres asks for the right to create a schema.
    if conn.execute("SELECT to_regnamespace('embedding_assets') IS NULL").fetchone() == (True,):
        try:
            conn.execute("CREATE SCHEMA embedding_assets")
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateSchema):
            _log.debug("another process was quicker")


def _ensure_iterative_scans(conn: Connection) -> None:
    """Have pgvector go on searching, in this database, where the nearest entries of an index are of rows that are gone.

    Without it a query of live_chunks gives too few rows: after 60 replacements of one chunk, none of 10. search() says
    so itself; a view can't. Another choice than ours stands.
    """
    row = conn.execute(
        """
        SELECT EXISTS (
            SELECT FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase,
                        unnest(setconfig) AS chosen
            WHERE datname = current_database() AND setrole = 0 AND chosen LIKE 'hnsw.iterative_scan=%'
        )
        """
    ).fetchone()
    if row == (True,):
        return
    try:
        # Before its library is loaded in the session pgvector's settings are nobody's: superusers alone may name them.
        conn.execute(sql.SQL("SELECT '[1]'::{}.vector").format(sql.Identifier(_extension_schema(conn))))
        conn.execute(
            sql.SQL("ALTER DATABASE {} SET hnsw.iterative_scan = 'strict_order'").format(
                sql.Identifier(conn.info.dbname)
            )
        )
    except psycopg.errors.InsufficientPrivilege as error:
        _log.warning(
            "live_chunks may give too few rows after many changes: %s. %s",
            error.diag.message_primary, roles.way_out(conn),
        )  # fmt: skip
    except psycopg.errors.InternalError_ as error:  # "tuple concurrently updated"
        _log.info("another process was quicker: %s", error.diag.message_primary)


def _extension_schema(conn: Connection) -> str:
    row = conn.execute(
        "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'"
    ).fetchone()
    return str(row[0]) if row else "public"


def _search_path(conn: Connection) -> str:
    """Where migrations create and look: our schema first, and wherever the extension was installed.

    That before public, where somebody else may have a type called vector.
    """
    schemas = ["embedding_assets", _extension_schema(conn), "public"]
    return sql.SQL(", ").join(sql.Identifier(name) for name in dict.fromkeys(schemas)).as_string(conn)


def _apply(dsn: str, search_path: str) -> None:
    # Imported here: it takes 0.2 s, and a migrated database does without.
    from yoyo import read_migrations
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import DatabaseURI

    class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc] # yoyo has no types
        """yoyo on our own connections: each migration is a transaction that takes locks from under the readers."""

        def connect(self, dburi: DatabaseURI) -> Connection:
            self.schema = search_path
            conn = connect(dsn)
            limit(conn, _LONGEST_MS, local=False)
            conn.execute(sql.SQL("SET lock_timeout = {}").format(SWAP_LOCK_TIMEOUT))
            return conn

    nobody_asks = DatabaseURI("postgresql+psycopg", None, None, None, None, None, {})
    with Backend(nobody_asks, "_yoyo_migration") as backend:
        backend.init_database()
        backend.break_lock()  # yoyo's lock is a row, which a killed process leaves behind; ours is held already
        ours = _migrations()
        backend.apply_migrations(
            backend.to_apply(read_migrations(str(MIGRATIONS)).filter(lambda migration: migration.id in ours))
        )
