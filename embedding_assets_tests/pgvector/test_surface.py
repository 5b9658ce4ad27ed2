"""The search surface as files: replaced whole where they differ, never by an older program, never under a reader."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector import embedded, locks
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.schema import migrations, roles, surface
from embedding_assets_tests.pgvector.test_search import literal, query
from embedding_assets_tests.support.toy import Toy, bind

TOY = Toy(shards=1, rows=40)
BEFORE_FILES = 11  # migrations of the programs that had the surface in them


class Program:
    """A version of this project, by its surface: a copy of ours that a test changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / f"{file}.sql"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        (self.folder / "version").write_text(f"{surface.version() + 1} edited\n")

    def migrate(self, dsn: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(surface, "FOLDER", self.folder)
            migrations.migrate(dsn)

    def asks(self, conn: Connection) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(surface, "FOLDER", self.folder)
            return migrations.is_migrated(conn)


@pytest.fixture
def newer(tmp_path: Path) -> Program:
    """The next version of this project: an attribute, a column and another text more."""
    folder = tmp_path / "newer"
    shutil.copytree(surface.FOLDER, folder)
    program = Program(folder)
    program.edit("search_terms", "search needs a query vector", "the next version needs a query vector")
    program.edit("live_chunks", " AS embedding_halfvec\n", " AS embedding_halfvec, shard\n")
    return program


@pytest.fixture
def served(database: str) -> Iterator[Connection]:
    """A database that serves a source."""
    with connect(database) as conn:
        roles.act_as_ingest(conn)
        bind(conn)
        TOY.publish_to(conn)
        yield conn


@pytest.fixture
def from_before(postgres: Path, tmp_path: Path) -> Iterator[str]:
    """The DSN of a database of a program that had the surface in its migrations; it serves nothing yet."""
    older, dsn = tmp_path / "migrations", embedded.dsn(postgres, "from before")
    older.mkdir()
    for file in sorted(migrations.MIGRATIONS.glob("[0-9]*_*.sql"))[:BEFORE_FILES]:
        shutil.copy(file, older)
    with pytest.MonkeyPatch.context() as patch, connect(dsn) as conn:
        patch.setattr(migrations, "MIGRATIONS", older)
        migrations._prepare(conn)
        migrations._apply(dsn, migrations._search_path(conn))
    yield dsn
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute('DROP DATABASE "from before" WITH (FORCE)')


def refusal(conn: Connection) -> str:
    """What search() of this database says to a query that is NULL."""
    with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
        conn.execute("SELECT search(NULL::vector, 3)")
    return str(refused.value)


def columns(conn: Connection) -> list[str]:
    with conn.cursor() as cursor:
        cursor.execute("SELECT * FROM live_chunks LIMIT 0")
        return [column.name for column in cursor.description or ()]


def definitions(conn: Connection) -> list[tuple[str, str]]:
    return conn.execute(
        "SELECT oid::regprocedure::text, xmin::text || prosrc FROM pg_proc "
        "WHERE pronamespace IN ('public'::regnamespace, 'embedding_assets'::regnamespace) "
        "AND proname ~ 'search|live|readable'"
    ).fetchall()


def test_every_file_is_run_and_none_is_left_out() -> None:
    assert {f"{name}.sql" for name in surface.ORDER} | {"version"} == {file.name for file in surface.FOLDER.iterdir()}


def test_a_newer_surface_replaces_what_differs_and_nothing_else(
    served: Connection, database: str, newer: Program
) -> None:
    before = dict(definitions(served))

    newer.migrate(database)

    after = dict(definitions(served))
    changed = {name.partition("(")[0] for name in after if before[name] != after[name]}
    assert changed == {"embedding_assets.search_terms", "embedding_assets.show_live_model"}
    assert refusal(served).startswith("the next version needs")
    assert columns(served)[-1] == "shard"


def test_an_older_program_leaves_a_newer_surface_alone_and_works_with_it(
    served: Connection, database: str, newer: Program
) -> None:
    newer.migrate(database)

    migrations.migrate(database)

    assert migrations.is_migrated(served)
    assert refusal(served).startswith("the next version needs")
    assert columns(served)[-1] == "shard"


def test_an_older_program_that_switches_the_live_model_keeps_the_newer_view(
    served: Connection, database: str, newer: Program
) -> None:
    newer.migrate(database)

    bind(served, live="v2")

    assert columns(served)[-1] == "shard"
    assert served.execute("SELECT DISTINCT vector_dims(embedding) FROM live_chunks").fetchall() == [(12,)]


def test_two_versions_side_by_side_end_with_the_newer_surface_whatever_the_order(
    served: Connection, database: str, newer: Program
) -> None:
    for migrate in (newer.migrate, migrations.migrate, newer.migrate, migrations.migrate):
        migrate(database)
        assert refusal(served).startswith("the next version needs")


def test_a_program_says_that_an_older_surface_needs_migrating(served: Connection, newer: Program) -> None:
    with pytest.raises(
        PermanentError, match=f"it lacks search surface {surface.version() + 1}. Cure: embedding-assets materialize"
    ):
        newer.asks(served)


def test_what_somebody_dropped_is_made_again(served: Connection, database: str) -> None:
    served.execute("DROP VIEW live_chunks CASCADE; DROP FUNCTION live_model()")

    migrations.migrate(database)

    with connect(database) as conn:
        assert conn.execute("SELECT count(*) FROM live_chunks").fetchone() == (40,)
        assert conn.execute("SELECT count(*) FROM data_live_chunks").fetchone() == (40,)
        assert conn.execute("SELECT slot FROM live_model()").fetchone() == ("v1",)


def test_replacing_waits_for_no_reader_without_bound_and_replaces_all_or_nothing(
    served: Connection, database: str, newer: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SWAP_ATTEMPTS", 2)
    monkeypatch.setattr(locks, "SWAP_LOCK_TIMEOUT", "50ms")
    with psycopg.connect(database) as reader:
        reader.execute("SELECT FROM live_chunks LIMIT 1")

        with pytest.raises(TransientError, match="replacing the search surface: readers held the table's lock"):
            newer.migrate(database)
        assert refusal(served).startswith("search needs")

    newer.migrate(database)
    assert refusal(served).startswith("the next version needs")


def test_readers_go_on_while_a_surface_with_more_columns_comes(
    served: Connection, database: str, newer: Program
) -> None:
    """Statements that name their columns, prepared or not, and as many as can be while it is replaced."""
    failures: list[BaseException] = []
    done, begun = threading.Event(), threading.Barrier(3)
    statements = [
        "SELECT document_id, distance FROM search(%s::vector, 3)",
        "SELECT document_id, embedding FROM live_chunks ORDER BY embedding <=> %s::vector LIMIT 3",
    ]

    def read(prepare: bool) -> None:
        try:
            with psycopg.connect(database, autocommit=True) as reader:
                for statement in statements * 4:
                    assert len(reader.execute(statement, [literal(query())], prepare=prepare).fetchall()) == 3
                begun.wait()
                while not done.is_set():
                    for statement in statements:
                        assert len(reader.execute(statement, [literal(query())], prepare=prepare).fetchall()) == 3
        except BaseException as error:
            failures.append(error)
            begun.abort()

    threads = [threading.Thread(target=read, args=[prepare]) for prepare in (True, False)]
    for thread in threads:
        thread.start()
    begun.wait()
    newer.migrate(database)
    done.set()
    for thread in threads:
        thread.join()

    assert failures == []
    assert columns(served)[-1] == "shard"


def test_a_database_whose_surface_came_by_migrations_goes_over_under_its_prepared_statements(
    from_before: str,
) -> None:
    with psycopg.connect(from_before, autocommit=True) as conn:
        conn.execute(  # what those programs made when they bound the models
            """
            CREATE VIEW live_chunks AS
            SELECT source, document_id, ordinal, content, metadata, NULL::vector AS embedding,
                   chunk_id, start_offset, end_offset, NULL::halfvec AS embedding_halfvec
            FROM embedding_assets.chunks
            """
        )
    with connect(from_before) as loader, psycopg.connect(from_before, autocommit=True) as reader:
        loader.execute(
            """
            ALTER TABLE embedding_assets.chunks ADD COLUMN embedding_v1 vector(8), ADD COLUMN embedding_v2 vector(12);
            INSERT INTO embedding_assets.models
            VALUES ('v1', 'toy-8', 8, 'test', true), ('v2', 'toy-12', 12, 'test', false)
            """
        )
        statements = [
            "SELECT document_id, distance FROM search(%s, 3)",
            "SELECT document_id FROM live_chunks ORDER BY embedding <=> %s LIMIT 3",
        ]
        for statement in statements:
            reader.execute(statement, [literal(query())], prepare=True)

        migrations.migrate(from_before)

        TOY.publish_to(loader)
        for statement in statements:
            assert len(reader.execute(statement, [literal(query())], prepare=True).fetchall()) == 3


def test_whoever_was_granted_a_search_may_call_its_new_forms(from_before: str) -> None:
    with psycopg.connect(from_before, autocommit=True) as admin:
        admin.execute('CREATE ROLE "an application" LOGIN')
        admin.execute('GRANT EXECUTE ON FUNCTION search TO "an application"')

        migrations.migrate(from_before)

        callable_by = (
            "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
            "AND proname ~ '^(search|search_hybrid|live_model)$' AND has_function_privilege(%s, oid, 'EXECUTE')"
        )
        assert {name for (name,) in admin.execute(callable_by, ["an application"])} == {
            *(f"search({query_type},integer,text,jsonb)" for query_type in ("vector", "double precision[]", "text")),
            *(f"search({query_type},integer,text,jsonb,text)" for query_type in ("vector", "text")),
        }
        assert len(admin.execute(callable_by, [roles.SEARCH]).fetchall()) == 11
        admin.execute('DROP OWNED BY "an application"; DROP ROLE "an application"')


@pytest.mark.parametrize(
    ("taken", "cure"),
    [
        ("CREATE TABLE data_live_chunks (id bigint)", "ALTER TABLE data_live_chunks RENAME TO data_of_mine"),
        ("CREATE VIEW live_chunks AS SELECT 1 AS mine", "ALTER VIEW live_chunks RENAME TO mine"),
        (
            "CREATE FUNCTION live_model() RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$",
            "ALTER FUNCTION live_model() RENAME TO my_model",
        ),
    ],
)
def test_a_name_that_somebody_else_has_is_told_with_a_cure_that_works(from_before: str, taken: str, cure: str) -> None:
    with psycopg.connect(from_before, autocommit=True) as somebody:
        somebody.execute(taken.encode())

        with pytest.raises(PermanentError, match=r"a name that something else has: .* Cure: rename that"):
            migrations.migrate(from_before)

        somebody.execute(cure.encode())
    migrations.migrate(from_before)
    with connect(from_before) as conn:
        assert migrations.is_migrated(conn)


def test_migrations_that_run_again_leave_the_newest_surface(served: Connection, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "DROP TABLE embedding_assets._yoyo_migration, embedding_assets._yoyo_version, embedding_assets._yoyo_log"
        )

    migrations.migrate(database)

    found = served.execute("SELECT chunk_id IS NOT NULL FROM search(%s::vector, 3)", [literal(query())]).fetchall()
    assert found == [(True,)] * 3


def test_a_view_that_an_application_has_on_ours_does_not_stop_the_binding_of_other_models(database: str) -> None:
    with connect(database) as conn:
        bind(conn)
        conn.execute("CREATE VIEW mine AS SELECT document_id, embedding FROM live_chunks")

        bind(conn, d1=16)

        Toy(shards=1, rows=5, d1=16).publish_to(conn)
        assert conn.execute("SELECT DISTINCT vector_dims(embedding) FROM mine").fetchall() == [(16,)]


def test_no_object_of_the_surface_lacks_a_comment_or_is_open_to_everybody(database: str) -> None:
    with connect(database) as conn:
        lacking = conn.execute(
            """
            WITH ours AS (
                SELECT pg_class.oid, relkind FROM pg_class
                WHERE relnamespace = 'embedding_assets'::regnamespace AND relkind IN ('r', 'p', 'c')
                AND relname !~ 'yoyo'
                OR relnamespace = 'public'::regnamespace AND relkind = 'v' AND relname ~ 'live_chunks'
            )
            SELECT 'schema' WHERE obj_description('embedding_assets'::regnamespace, 'pg_namespace') IS NULL
            UNION ALL
            SELECT oid::regclass::text FROM ours WHERE relkind <> 'c' AND obj_description(oid, 'pg_class') IS NULL
            UNION ALL
            SELECT typname FROM pg_type JOIN ours ON typrelid = ours.oid
            WHERE relkind = 'c' AND obj_description(pg_type.oid, 'pg_type') IS NULL
            UNION ALL
            SELECT oid::regclass || '.' || attname FROM ours JOIN pg_attribute ON attrelid = oid
            WHERE relkind IN ('v', 'c') AND attnum > 0 AND NOT attisdropped AND col_description(oid, attnum) IS NULL
            UNION ALL
            SELECT oid::regprocedure::text FROM pg_proc
            WHERE (pronamespace = 'embedding_assets'::regnamespace OR pronamespace = 'public'::regnamespace
                   AND prorettype IN (SELECT oid FROM pg_type WHERE typnamespace = 'embedding_assets'::regnamespace))
            AND obj_description(oid, 'pg_proc') IS NULL
            """
        ).fetchall()
        assert lacking == []
        open_to_all = conn.execute(
            "SELECT proname FROM pg_proc "
            "WHERE pronamespace = 'public'::regnamespace AND proacl IS NULL AND proname ~ 'search|live'"
        ).fetchall()
        assert open_to_all == []
