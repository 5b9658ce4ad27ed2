"""The tables of a region: numbered migrations (`sql/`), the models' columns, and the view of the live model."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector import roles
from embedding_assets.pgvector.connection import Connection, connect, schema_lock, short_transaction
from embedding_assets.pgvector.shards import SLOTS, VectorType, VectorTypes, vector_type
from embedding_assets.snapshots.failpoints import failpoint

_log = logging.getLogger(__name__)

MIGRATIONS: Final = Path(__file__).parents[2] / "sql"
OLDEST_PGVECTOR: Final = (0, 8, 4)


class Model(NamedTuple):
    """What a slot is bound to; `name` and `dimensions` identify it, `provider` is told to people.

    `halfvec` keeps 2-byte floats where 4-byte ones could be indexed as well; larger vectors are always kept so.
    """

    name: str
    dimensions: int
    provider: str
    halfvec: bool = False

    @property
    def type(self) -> VectorType:
        return vector_type(self.dimensions, halfvec=self.halfvec)


class BoundModel(NamedTuple):
    """A slot's model as the database records it, with the `ef_search` that search uses."""

    slot: str
    model: Model
    live: bool
    ef_search: int


def migrate(dsn: str) -> None:
    """Bring the database to the newest migration, and its roles in place; writes nothing where that is so already.

    Raises PermanentError where pgvector is missing or older than 0.8.4, or the database is newer than this program.
    """
    with connect(dsn) as conn, roles.with_way_out(conn, "migrating the region's database"):
        _require_pgvector(conn)
        if _missing(conn):
            # Held in a transaction of this connection, while yoyo works on connections of its own.
            with conn.transaction():
                conn.execute("SET LOCAL lock_timeout = '2min'")
                schema_lock(conn)
                with connect(dsn) as worker:
                    if _missing(worker):
                        _prepare(worker)
                        _apply(dsn, _search_path(worker))
        roles.ensure_roles(conn)
        _ensure_iterative_scans(conn)


def ensure_models(conn: Connection, models: Mapping[str, Model], live: str) -> None:
    """Have the columns of both slots, their recorded binding, and the search surface of the live one.

    A slot that is not live may be bound to another model: its column is made anew, empty, and every source's next
    generation fills it. `live` may name the other slot once every published generation has its index: that is one
    transaction. Raises PermanentError, before anything is changed, where a model has too many dimensions, where the
    slot that is live would be bound to another model, or where the slot to become live is not filled everywhere.
    """
    if set(models) != set(SLOTS) or live not in models:
        raise PermanentError(f"models must bind exactly the slots {', '.join(SLOTS)}, and live_model one of them")
    for model in models.values():
        vector_type(model.dimensions)
    with roles.with_way_out(conn, "binding the models in the region's database"):
        if _is_bound(conn, models, live):
            return
        short_transaction(conn, "binding the models", lambda: _bind(conn, models, live))
        failpoint("pgvector.models")


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
        if missing := _missing(conn):
            raise PermanentError(
                f"database {conn.info.dbname!r} needs migrating: it lacks {', '.join(sorted(missing))}. "
                "Cure: embedding-assets materialize"
            )
        return True


def bound_models(conn: Connection) -> dict[str, BoundModel]:
    """The slots' models as recorded, by slot; empty before the first load."""
    rows = conn.execute(
        "SELECT slot, live, ef_search, name, dimensions, provider, halfvec FROM embedding_assets.models ORDER BY slot"
    )
    return {slot: BoundModel(slot, Model(*model), live, ef_search) for slot, live, ef_search, *model in rows}


def bound_types(conn: Connection) -> VectorTypes:
    """The types of both slots' columns. Raises PermanentError before `ensure_models`."""
    models = bound_models(conn)
    if set(models) != set(SLOTS):
        raise PermanentError("no models are bound in this database yet; materialize pgvector_table for this region")
    return models["v1"].model.type, models["v2"].model.type


def _require_pgvector(conn: Connection) -> None:
    row = conn.execute(
        "SELECT coalesce(installed_version, default_version) FROM pg_available_extensions WHERE name = 'vector'"
    ).fetchone()
    if row is None:
        raise PermanentError(
            "this Postgres has no pgvector: install the extension (0.8.4 or newer) on the server, or set "
            "`database: embedded` for this region"
        )
    refuse_old_pgvector(row[0])


def refuse_old_pgvector(version: str) -> None:
    """Raise PermanentError for pgvector below 0.8.4, with the reason."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST_PGVECTOR:
        raise PermanentError(
            f"pgvector {version} is too old: before 0.8.4 a parallel HNSW build can leak or overwrite memory "
            "(CVE-2026-3172), and VACUUM can damage an HNSW index. Install 0.8.4 or newer on the server, then run "
            "ALTER EXTENSION vector UPDATE"
        )


def _migrations() -> set[str]:
    """The numbered files; what else is beside them is for people."""
    found = {path.stem for path in MIGRATIONS.glob("[0-9]*_*.sql")}
    if not found:
        raise PermanentError(f"no migrations in {MIGRATIONS}. Cure: install the project as editable (pip install -e .)")
    return found


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
    conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
    # Looked for first: with IF NOT EXISTS, too, Postgres asks for the right to create a schema.
    if conn.execute("SELECT to_regnamespace('embedding_assets') IS NULL").fetchone() == (True,):
        conn.execute("CREATE SCHEMA embedding_assets")


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
    """Where migrations create and look: our schema first, and wherever the extension was installed."""
    schemas = ["embedding_assets", "public", _extension_schema(conn)]
    return sql.SQL(", ").join(sql.Identifier(name) for name in dict.fromkeys(schemas)).as_string(conn)


def _apply(dsn: str, search_path: str) -> None:
    # Imported here: it takes 0.2 s, and a migrated database does without.
    from yoyo import read_migrations
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import DatabaseURI

    # yoyo's own URI parser knows no service files, hosts with spaces or several hosts: hand it what libpq understood.
    arguments = {**conninfo_to_dict(dsn), "schema": search_path}
    uri = DatabaseURI("postgresql+psycopg", None, None, None, None, arguments.pop("dbname", None), arguments)
    with PostgresqlPsycopgBackend(uri, "_yoyo_migration") as backend:
        backend.init_database()
        backend.break_lock()  # yoyo's lock is a row, which a killed process leaves behind; ours is held already
        ours = _migrations()
        backend.apply_migrations(
            backend.to_apply(read_migrations(str(MIGRATIONS)).filter(lambda migration: migration.id in ours))
        )


def _is_bound(conn: Connection, models: Mapping[str, Model], live: str) -> bool:
    bound = bound_models(conn).values()
    view = conn.execute(
        "SELECT FROM pg_attribute WHERE attrelid = to_regclass('public.live_chunks') AND attname = 'embedding_halfvec'"
    )
    return (
        {each.slot: each.model for each in bound} == dict(models)
        and [each.slot for each in bound if each.live] == [live]
        and bool(view.rowcount)
    )


def _told(model: Model) -> str:
    return f"{model.name} ({model.type.name}({model.type.dimensions}))"


def _bind(conn: Connection, models: Mapping[str, Model], live: str) -> None:
    schema_lock(conn)
    recorded = bound_models(conn)
    published = [
        row[0] for row in conn.execute("SELECT id FROM embedding_assets.generations WHERE state = 'published'")
    ]
    for slot in SLOTS:
        model, before = models[slot], recorded.get(slot)
        if before is None or (before.model.name, before.model.type) != (model.name, model.type):
            if before is not None and before.live and published:
                other = "v2" if slot == "v1" else "v1"
                raise PermanentError(
                    f"slot {slot} is live with model {_told(before.model)} and cannot become {_told(model)}: searches "
                    f"would find nothing until every source is loaded again. Bind the new model to {other}, "
                    f"materialize every source, then set live_model: {other}"
                )
            if before is not None and before.live:  # nothing is published: nobody misses the view for a moment
                conn.execute("DROP VIEW IF EXISTS public.live_chunks")
            _renew_column(conn, slot, model)
        conn.execute(
            """
            INSERT INTO embedding_assets.models (slot, name, dimensions, provider, halfvec, live)
            VALUES (%s, %s, %s, %s, %s, false)
            ON CONFLICT (slot) DO UPDATE
            SET name = excluded.name, dimensions = excluded.dimensions, provider = excluded.provider,
                halfvec = excluded.halfvec
            """,
            [slot, *model],
        )
    if published and not (live in recorded and recorded[live].live):
        _refuse_unfilled(conn, live)
    # Cleared first: two rows must not be live for a moment.
    conn.execute("UPDATE embedding_assets.models SET live = false WHERE live AND slot <> %s", [live])
    conn.execute("UPDATE embedding_assets.models SET live = true WHERE slot = %s", [live])
    # ::vector, without dimensions, keeps the view's column type whatever the model, so that it can be replaced under
    # prepared statements, and still lets the index of a vector be used (FIELD §5); ::halfvec does so for a halfvec.
    conn.execute(
        sql.SQL(
            """
            CREATE OR REPLACE VIEW public.live_chunks AS
            SELECT source, document_id, ordinal, content, metadata, {embedding}::vector AS embedding,
                   chunk_id, start_offset, end_offset, {embedding}::halfvec AS embedding_halfvec
            FROM embedding_assets.chunks WHERE {embedding} IS NOT NULL
            """
        ).format(embedding=sql.Identifier(f"embedding_{live}"))
    )
    roles.open_view(conn)


def _renew_column(conn: Connection, slot: str, model: Model) -> None:
    """Make a slot's column anew and empty, in the catalog alone; its indexes go with it.

    Generations not yet published have the old column and could never be attached: they are dropped. Published ones no
    longer hold what their root names: they lose it, so that every source is loaded again.
    """
    conn.execute("UPDATE embedding_assets.generations SET target_root = '' WHERE state = 'published'")
    unfinished = conn.execute("DELETE FROM embedding_assets.generations WHERE state <> 'published' RETURNING id")
    for (generation,) in unfinished.fetchall():
        conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(generation_table(generation)))
    column = sql.Identifier(f"embedding_{slot}")
    conn.execute(sql.SQL("ALTER TABLE embedding_assets.chunks DROP COLUMN IF EXISTS {}").format(column))
    conn.execute(
        sql.SQL("ALTER TABLE embedding_assets.chunks ADD COLUMN {} {}({})").format(
            column, sql.SQL(model.type.name), sql.Literal(model.type.dimensions)
        )
    )


def _refuse_unfilled(conn: Connection, slot: str) -> None:
    """The column of a slot bound anew has no index until the source is loaded again: by that it is known."""
    missing = conn.execute(
        """
        SELECT source FROM embedding_assets.generations WHERE state = 'published' AND NOT EXISTS (
            SELECT FROM pg_index
            WHERE indexrelid = to_regclass(format('embedding_assets.generation_%%s_%%s', id, %s::text)) AND indisvalid
        ) ORDER BY source
        """,
        [slot],
    ).fetchall()
    if missing:
        raise PermanentError(
            f"slot {slot} cannot become live: it has no vectors yet for source "
            f"{', '.join(repr(source) for (source,) in missing)}. Materialize with live_model as it was, then switch"
        )


def generation_table(generation: int) -> sql.Composed:
    """A generation's table, by its number."""
    return sql.SQL("embedding_assets.{}").format(sql.Identifier(f"generation_{generation}"))


def generation_index(generation: int, slot: str) -> sql.Composed:
    """The HNSW index of a slot on a generation's table."""
    return sql.SQL("embedding_assets.{}").format(sql.Identifier(f"generation_{generation}_{slot}"))
