"""Who may do what in a region's database, tried as the login roles of applications and of pipelines."""

import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_assets.cli import runs
from embedding_assets.cli.screen import Screen
from embedding_assets.errors import PermanentError
from embedding_assets.operations.search import search as ask
from embedding_assets.operations.status import status
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.reading.search import search, search_hybrid
from embedding_assets.pgvector.schema import language, migrations, names, roles
from embedding_assets.pgvector.schema.models import Model, ensure_models
from embedding_assets.settings.models import SettingsError
from embedding_assets.settings.yaml_file import load_settings
from embedding_assets_tests.pgvector.test_search import literal, query, scans
from embedding_assets_tests.support.harness import REGIONS, SOURCE, Sandbox
from embedding_assets_tests.support.toy import MODELS, Toy, bind

HANDBOOK, TICKETS = Toy("handbook", shards=1, rows=400), Toy("tickets", shards=1, rows=400, edition=1)
NOT_ALLOWED = psycopg.errors.InsufficientPrivilege

_numbers = itertools.count(1)


class Login(NamedTuple):
    """A login role, and how it connects."""

    role: str
    dsn: str


def login(dsn: str, *member_of: str, options: str = "") -> Login:
    """Make a login role, as the administrator of a database; it goes with the cluster, when the tests end."""
    role = f"login_{next(_numbers)}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN {}").format(sql.Identifier(role), sql.SQL(options)))
        for group in member_of:
            admin.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(role)))
    return Login(role, make_conninfo(dsn, user=role))


@pytest.fixture
def served(database: str) -> str:
    """The DSN of a database that serves two sources, with hybrid search."""
    with connect(database) as conn:
        serve(conn)
    return database


def serve(conn: Connection) -> None:
    roles.act_as_ingest(conn)
    bind(conn)
    language.ensure_language(conn, "simple")
    for toy in (HANDBOOK, TICKETS):
        toy.publish_to(conn)


def restrict(dsn: str, readers: Mapping[str, Sequence[str]] | Literal[False] | None) -> None:
    with connect(dsn) as conn:
        roles.act_as_ingest(conn)
        roles.ensure_readers(conn, readers)


def sources_seen(conn: Connection, source: str | None = None) -> list[set[str]]:
    """What each way of searching finds: search(), search_hybrid(), live_chunks by distance, and live_chunks whole."""
    view = "SELECT source FROM live_chunks WHERE %s::text IS NULL OR source = %s"
    return [
        {hit.source for hit in search(conn, query(), 900, source)},
        {hit.source for hit in search_hybrid(conn, query(), "chunk", 900, source)},
        {
            name
            for (name,) in conn.execute(
                view + " ORDER BY embedding <=> %s::vector LIMIT 900", [source, source, literal(query())]
            )
        },
        {name for (name,) in conn.execute(view, [source, source])},
    ]


# The surface


def test_an_application_may_search_and_read_the_view(served: str) -> None:
    with connect(login(served, roles.SEARCH).dsn) as conn:
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM embedding_assets.chunks",
        "SELECT FROM embedding_assets.generation_1",
        "SELECT FROM embedding_assets.ledger",
        "SELECT FROM embedding_assets.models",
        "SELECT FROM embedding_assets.readers",
        "SELECT embedding_assets.readable_sources()",
        "INSERT INTO embedding_assets.readers VALUES ('public', 'tickets')",
        "DELETE FROM live_chunks",
        "UPDATE live_chunks SET content = ''",
        "DROP VIEW live_chunks",
        "CREATE OR REPLACE VIEW live_chunks AS SELECT 1",
        "ALTER TABLE embedding_assets.chunks DISABLE ROW LEVEL SECURITY",
        "CREATE TABLE public.mine ()",
        "SET ROLE embedding_surface",
        "SET ROLE embedding_ingest",
    ],
)
def test_an_application_may_do_nothing_else(served: str, statement: str) -> None:
    with connect(login(served, roles.SEARCH).dsn) as conn, pytest.raises(NOT_ALLOWED):
        conn.execute(statement.encode())


@pytest.mark.parametrize(
    "statement", ["SELECT search(%s, 3)", "SELECT search_hybrid(%s, '', 3)", "SELECT %s FROM live_chunks"]
)
def test_whoever_is_no_member_may_not_even_search(served: str, statement: str) -> None:
    with psycopg.connect(login(served).dsn) as conn, pytest.raises(NOT_ALLOWED):
        conn.execute(statement.encode(), [literal(query())])


def test_a_callers_own_objects_do_not_run_with_the_functions_rights(served: str) -> None:
    """A function of the caller's that fits better than a built-in one would be called, were its schema searched."""
    with psycopg.connect(served, autocommit=True) as admin:  # as every schema public was before PostgreSQL 15
        admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with connect(login(served, roles.SEARCH).dsn) as conn:
        trap = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$"
        for schema_name in ("public", "pg_temp"):
            for signature in (
                "format(text, text, text) RETURNS text",
                "format(text, text, text, regtype) RETURNS text",
                "set_config(text, text, boolean) RETURNS text",
                "left(text, integer) RETURNS text",
                "plus(float8, integer) RETURNS float8",
                "cardinality(real[]) RETURNS integer",
            ):
                conn.execute(f"CREATE FUNCTION {schema_name}.{signature} {trap}".encode())
        conn.execute("CREATE OPERATOR public.+ (LEFTARG = float8, RIGHTARG = integer, FUNCTION = public.plus)")
        conn.execute("CREATE TEMP TABLE models AS SELECT 'v2' AS slot, true AS live")
        conn.execute("SET search_path = pg_temp, public, pg_catalog")

        assert len(search(conn, query(), 5, filter={"team": "3"})) == 5
        assert len(search_hybrid(conn, query(), "chunk", 5)) == 5


def test_pgvector_may_live_in_a_schema_of_its_own(postgres: Path) -> None:
    dsn = embedded.dsn(postgres, "own schema")
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute('CREATE SCHEMA "Own Types"; CREATE EXTENSION vector SCHEMA "Own Types"')
        admin.execute("CREATE DOMAIN public.vector AS text")  # somebody else's, and no trap for us
    migrations.migrate(dsn)
    reader = login(dsn, roles.SEARCH).dsn
    path = '-c search_path=public,"Own\\ Types"'
    with connect(make_conninfo(dsn, options=path)) as conn:
        serve(conn)

    with connect(make_conninfo(reader, options=path)) as conn:
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4


# The pipeline


def test_everything_belongs_to_the_ingest_role_whoever_logged_in(served: str) -> None:
    with psycopg.connect(served) as conn:
        owners = conn.execute(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class "
            "WHERE relnamespace = 'embedding_assets'::regnamespace"
        ).fetchall()
        assert owners == [(roles.INGEST,)]
        assert conn.execute(
            "SELECT rolsuper, rolcanlogin FROM pg_roles WHERE rolname = 'embedding_ingest'"
        ).fetchall() == [(False, False)]


def test_a_member_of_the_ingest_role_goes_on_where_another_has_loaded(served: str) -> None:
    """A new edition of a source, then the other model: tables and view of the one who was there before."""
    loader = login(served, roles.INGEST).dsn
    migrations.migrate(loader)
    with connect(loader) as conn:
        roles.act_as_ingest(conn)
        HANDBOOK.edited().publish_to(conn)
        bind(conn, live="v2")

    with connect(login(served, roles.SEARCH).dsn) as conn:
        assert conn.execute("SELECT DISTINCT vector_dims(embedding) FROM live_chunks").fetchall() == [(12,)]


def test_migrating_twice_changes_nothing(served: str) -> None:
    with psycopg.connect(served, autocommit=True) as conn:
        catalogs = (
            "SELECT (SELECT max(xmin::text::bigint) FROM pg_class), (SELECT max(xmin::text::bigint) FROM pg_proc)"
        )
        before = conn.execute(catalogs).fetchone()
        migrations.migrate(served)
        assert conn.execute(catalogs).fetchone() == before


def test_databases_of_one_cluster_that_are_migrated_at_once_share_the_roles(new_cluster: Callable[[str], str]) -> None:
    dsns = [new_cluster(f"twin {n}") for n in range(4)]
    failures: list[BaseException] = []

    def migrate(dsn: str) -> None:
        try:
            migrations.migrate(dsn)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate, args=[dsn]) for dsn in dsns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    reader = login(dsns[0], roles.SEARCH)
    for dsn in dsns:
        with connect(dsn) as conn:
            serve(conn)
        with connect(make_conninfo(dsn, user=reader.role)) as conn:
            assert sources_seen(conn) == [{"handbook", "tickets"}] * 4


# Managed databases: the pipeline's login role is no superuser


def owned(admin_dsn: str, options: str) -> Login:
    """A login role that owns the database."""
    owner = login(admin_dsn, options=options)
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        database = admin.info.dbname
        admin.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), sql.Identifier(owner.role))
        )
    return owner


def test_the_owner_of_a_database_who_may_create_roles_sets_up_all(new_cluster: Callable[[str], str]) -> None:
    admin = new_cluster("managed")
    owner = owned(admin, "CREATEROLE")

    migrations.migrate(owner.dsn)
    with connect(owner.dsn) as conn:
        serve(conn)

    reader = login(admin, roles.SEARCH)
    with connect(reader.dsn) as conn:
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4
    restrict(owner.dsn, {reader.role: ["tickets"]})
    with connect(reader.dsn) as conn:
        assert sources_seen(conn) == [{"tickets"}] * 4
    with connect(owner.dsn) as conn:
        HANDBOOK.edited().publish_to(conn)
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4


def test_row_level_security_binds_even_where_no_role_could_be_made(new_cluster: Callable[[str], str]) -> None:
    admin = new_cluster("managed")
    owner = owned(admin, "NOCREATEROLE")
    migrations.migrate(owner.dsn)
    reader = login(admin)
    with connect(owner.dsn) as conn:
        serve(conn)
        for what in (
            "SELECT ON live_chunks",
            "EXECUTE ON FUNCTION search (vector, integer, text, jsonb)",
            "EXECUTE ON FUNCTION search_hybrid (vector, text, integer, text, jsonb)",
        ):
            conn.execute(f"GRANT {what} TO {reader.role}".encode())

    restrict(owner.dsn, {reader.role: ["tickets"]})

    with connect(reader.dsn) as conn:
        assert sources_seen(conn) == [{"tickets"}] * 4
    with connect(owner.dsn) as conn:
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4


# Row-level security by source


@pytest.fixture
def support(served: str) -> Login:
    """An application that may read tickets alone."""
    made = login(served, roles.SEARCH)
    restrict(served, {made.role: ["tickets"]})
    return made


def test_a_role_finds_the_sources_that_it_may_read_and_no_others(support: Login) -> None:
    with connect(support.dsn) as conn:
        assert sources_seen(conn) == [{"tickets"}] * 4
        assert sources_seen(conn, "handbook") == [set()] * 4
        assert sources_seen(conn, "tickets") == [{"tickets"}] * 4


def test_there_are_k_rows_whenever_k_may_be_read(support: Login) -> None:
    with connect(support.dsn) as conn:
        for k in (1, 10, 400):
            assert len(search(conn, query(), k)) == k
            assert len(search_hybrid(conn, query(), "chunk", k)) == k
            assert len(search(conn, query(), k, filter={"team": "3"})) == min(k, 40)
            with conn.transaction():  # past ef_search a plain query asks for it itself
                conn.execute("SET LOCAL hnsw.iterative_scan = relaxed_order")
                found = conn.execute(
                    "SELECT FROM live_chunks ORDER BY embedding <=> %s::vector LIMIT %s", [literal(query()), k]
                )
                assert found.rowcount == k


def test_a_role_that_the_settings_do_not_name_finds_nothing(served: str, support: Login) -> None:
    with connect(login(served, roles.SEARCH).dsn) as conn:
        assert sources_seen(conn) == [set()] * 4


def test_members_of_a_group_read_what_the_group_may_and_what_they_may(served: str) -> None:
    group = login(served)
    member = login(served, roles.SEARCH, group.role)
    restrict(served, {group.role: ["handbook"], member.role: ["tickets"]})

    with connect(member.dsn) as conn:
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4


def test_taking_another_role_opens_nothing(served: str, support: Login) -> None:
    """Not even a role that may read more, where the application was not made a member of it as itself."""
    other = login(served, roles.SEARCH)
    restrict(served, {support.role: ["tickets"], other.role: ["handbook"]})
    with connect(support.dsn) as conn:
        for role in (other.role, roles.INGEST, roles.SURFACE, "postgres"):
            with pytest.raises(NOT_ALLOWED):
                conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(roles.SEARCH)))
        assert sources_seen(conn) == [{"tickets"}] * 4


def test_a_function_of_the_readers_sees_no_row_that_it_may_not_read(support: Login) -> None:
    """Cheap functions go first in a plan: not before the policy."""
    with connect(support.dsn) as conn:
        conn.execute(
            """
            CREATE FUNCTION pg_temp.tell(source text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
            BEGIN RAISE NOTICE 'seen %', source; RETURN true; END $$
            """
        )
        told: set[str | None] = set()
        conn.add_notice_handler(lambda notice: told.add(notice.message_primary))
        conn.execute("SELECT FROM live_chunks WHERE pg_temp.tell(source)")
        assert told == {"seen tickets"}


def test_switching_it_off_by_the_session_is_an_error(support: Login) -> None:
    with connect(support.dsn) as conn:
        conn.execute("SET row_security = off")
        with pytest.raises(NOT_ALLOWED, match="row-level security"):
            conn.execute("SELECT FROM live_chunks")


def test_loads_switches_and_checks_are_not_filtered(served: str, support: Login) -> None:
    with connect(login(served, roles.INGEST).dsn) as conn:
        roles.act_as_ingest(conn)
        assert conn.execute("SELECT count(*) FROM embedding_assets.chunks").fetchone() == (800,)
        HANDBOOK.edited().publish_to(conn)
        bind(conn, live="v2")
        bind(conn, live="v1")
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4
    with connect(support.dsn) as conn:
        assert sources_seen(conn) == [{"tickets"}] * 4


def test_a_model_made_anew_leaves_it_on(served: str, support: Login) -> None:
    """The view is dropped and made again where nothing is published."""
    with connect(served) as conn:
        roles.act_as_ingest(conn)
        conn.execute("UPDATE embedding_assets.generations SET state = 'retired'")
        for generation in (1, 2):
            conn.execute(
                sql.SQL("ALTER TABLE embedding_assets.chunks DETACH PARTITION {}").format(
                    names.generation_table(generation)
                )
            )
        ensure_models(conn, {**MODELS, "v1": Model("other-8", 8, "test")}, "v1")
        for toy in (HANDBOOK, TICKETS):
            toy.publish_to(conn)

    with connect(support.dsn) as conn:
        assert sources_seen(conn) == [{"tickets"}] * 4


def test_the_settings_are_followed_at_once_and_by_prepared_statements(served: str, support: Login) -> None:
    statement = "SELECT DISTINCT source FROM live_chunks ORDER BY 1"
    cases: list[tuple[Mapping[str, Sequence[str]] | Literal[False], list[str]]] = [
        ({support.role: ["tickets"]}, ["tickets"]),
        ({support.role: ["handbook"]}, ["handbook"]),
        ({}, []),
        (False, ["handbook", "tickets"]),
        ({support.role: ["handbook", "tickets"]}, ["handbook", "tickets"]),
    ]
    with connect(support.dsn) as conn:
        for readers, expected in cases:
            restrict(served, readers)
            for _ in range(7):  # from the sixth on the plan is a kept one
                assert [name for (name,) in conn.execute(statement, prepare=True)] == expected
            assert sources_seen(conn) == [set(expected)] * 4


def test_setting_it_as_it_is_takes_no_lock(served: str, support: Login) -> None:
    with psycopg.connect(served) as holder:
        holder.execute("LOCK TABLE embedding_assets.chunks IN EXCLUSIVE MODE")
        restrict(served, {support.role: ["tickets"]})
        restrict(served, {support.role: ["handbook"]})


def test_the_view_still_goes_by_the_index(support: Login) -> None:
    statement = "SELECT document_id FROM live_chunks ORDER BY embedding <=> %s::vector LIMIT 10"
    with connect(support.dsn) as conn:
        assert set(scans(conn, statement, [literal(query())]).values()) == {(0, 1)}
        plan = "\n".join(line for (line,) in conn.execute("EXPLAIN " + statement, [literal(query())]))
    assert "Index Scan using generation_2_v1" in plan
    assert plan.count("InitPlan") - plan.count("(InitPlan") == 1  # asked for once a query, not once a row


def test_the_functions_look_at_the_sources_alone_that_may_be_read(support: Login) -> None:
    with connect(support.dsn) as conn:
        assert scans(conn, "SELECT search(%s, 10)", [literal(query())]) == {"generation_2": (0, 1)}
        found = scans(conn, "SELECT search_hybrid(%s, 'chunk', 10)", [literal(query())])
        assert set(found) == {"generation_2", "generation_2_words", "generation_2_lexemes"}


def test_a_view_of_somebody_whom_postgres_exempts_is_refused(served: str) -> None:
    with psycopg.connect(served, autocommit=True) as admin:
        admin.execute("ALTER VIEW live_chunks OWNER TO postgres")
    with connect(served) as conn, pytest.raises(PermanentError, match="which Postgres exempts from policies"):
        roles.ensure_readers(conn, {"support_app": ["tickets"]})


def test_a_reader_that_does_not_exist_is_named(served: str, caplog: pytest.LogCaptureFixture) -> None:
    restrict(served, {"nobody's app": ["tickets"]})
    assert "roles that this database does not have: nobody's app" in caplog.text


def test_settings_that_say_nothing_leave_row_level_security_on_with_its_readers(served: str, support: Login) -> None:
    restrict(served, None)
    with connect(support.dsn) as conn:
        assert sources_seen(conn) == [{"tickets"}] * 4
    restrict(served, False)
    with connect(support.dsn) as conn:
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4


def test_settings_that_say_nothing_leave_row_level_security_off(served: str) -> None:
    reader = login(served, roles.SEARCH)
    restrict(served, None)
    with connect(reader.dsn) as conn:
        assert sources_seen(conn) == [{"handbook", "tickets"}] * 4


def test_row_level_security_binds_the_owner_that_a_view_gets_later_where_the_settings_say_nothing(
    served: str, support: Login
) -> None:
    with psycopg.connect(served, autocommit=True) as admin:
        admin.execute(f"ALTER VIEW live_chunks OWNER TO {roles.INGEST}".encode())
    restrict(served, None)
    with connect(support.dsn) as conn:
        assert conn.execute("SELECT DISTINCT source FROM live_chunks").fetchall() == [("tickets",)]


# The settings


def test_a_line_that_is_lost_opens_nothing_and_status_says_so_until_the_settings_say_off(sandbox: Sandbox) -> None:
    def has_it_on(**more: object) -> bool:
        box = replace(sandbox, more=more)
        for region in REGIONS:
            with box.deployment.prepared(region) as conn:
                on = roles.is_row_security_on(conn)
        rows = status(box.deployment, [SOURCE], REGIONS)
        said = [row.unsaid is not None and "`row_level_security: off`" in row.unsaid for row in rows]
        assert said == [on and "row_level_security" not in more] * len(REGIONS)
        return on

    assert not has_it_on()
    assert has_it_on(row_level_security={"nobody": []})
    assert has_it_on()
    assert not has_it_on(row_level_security=False)
    assert not has_it_on()


@pytest.mark.slow
def test_the_settings_decide_it_in_every_region_also_where_nothing_is_stale(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(sandbox.root / "dagster"))
    sandbox.write(refunds="Refunds take five days.")
    region = sandbox.dsns[REGIONS[0]]
    reader, other = login(region, roles.SEARCH), login(region, roles.SEARCH)

    for readers in (None, {reader.role: [SOURCE]}):
        box = replace(sandbox, more={"row_level_security": readers, "hybrid": {"language": "english"}})
        runs.materialize(box.deployment, Screen(stderr=True), sources=[SOURCE], regions=REGIONS)

    for name, dsn in sandbox.dsns.items():
        for role, expected in ((reader.role, {(SOURCE,)}), (other.role, set())):
            with connect(make_conninfo(dsn, user=role)) as conn:
                assert set(conn.execute("SELECT source FROM live_chunks").fetchall()) == expected
        assert [hit["document_id"] for hit in ask(box.deployment, name, "refund", k=3, hybrid=True)] == ["refunds.md"]


def test_settings_that_name_an_unknown_source_are_refused_with_what_was_meant(sandbox: Sandbox) -> None:
    box = replace(sandbox, more={"row_level_security": {"support_app": [SOURCE, SOURCE + "s"]}})
    file = sandbox.root / "settings.yaml"
    file.write_text(json.dumps(box.settings))
    with pytest.raises(
        SettingsError, match=rf"row_level_security.support_app: there is no source '{SOURCE}s'. Cure: write"
    ):
        load_settings(file)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("off", False), ('"off"', False), ("false", False), ("{}", {}), ("", None), ("null", None),
        ("{app: [" + SOURCE + "]}", {"app": (SOURCE,)}),
    ],
)  # fmt: skip
def test_row_level_security_is_off_by_a_word_alone(sandbox: Sandbox, written: str, expected: object) -> None:
    file = sandbox.root / "settings.yaml"
    file.write_text(yaml.safe_dump(sandbox.settings) + f"row_level_security: {written}\n")
    assert load_settings(file).row_level_security == expected


@pytest.mark.parametrize("written", ["on", "0", "none", "[app]", "disabled"])
def test_a_word_for_row_level_security_that_is_none_is_refused_with_those_there_are(
    sandbox: Sandbox, written: str
) -> None:
    file = sandbox.root / "settings.yaml"
    file.write_text(yaml.safe_dump(sandbox.settings) + f"row_level_security: {written}\n")
    with pytest.raises(SettingsError, match=r"row_level_security: not the sources .* Cure: write .* or off"):
        load_settings(file)


def test_a_role_without_a_list_of_sources_is_named_as_it_is_written(sandbox: Sandbox) -> None:
    file = sandbox.root / "settings.yaml"
    file.write_text(yaml.safe_dump(sandbox.settings) + f"row_level_security: {{app: {SOURCE}}}\n")
    with pytest.raises(SettingsError, match=r"row_level_security\.app: it should be a valid tuple"):
        load_settings(file)
