"""What the pipeline tells an administrator to run, followed word for word, and what it does until then."""

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector import programs
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.publishing.promotion import promote
from embedding_assets.pgvector.reading.search import search
from embedding_assets.pgvector.schema import roles
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets_tests.pgvector.test_roles import NOT_ALLOWED, Login, login, owned
from embedding_assets_tests.support.harness import PRIMARY, PROJECT, Sandbox
from embedding_assets_tests.support.toy import D1, D2, Source, assert_serves, edited, source

MODELS = {
    slot: {"provider": "openai", "name": "text-embedding-3-small", "dimensions": dimensions}
    for slot, dimensions in (("v1", D1), ("v2", D2))
}
FIRST = Source({shard: source().shards[shard][:20] for shard in range(2)})
SECOND = FIRST.changed({0: edited(FIRST.shards[0], 7)})
ASKED = SECOND.shards[0][7]

NewCluster = Callable[..., str]


def run(line: str, administrator: str = "postgres") -> subprocess.CompletedProcess[str]:
    """Run a line in the project's folder, as this role."""
    environment = {**os.environ, "PATH": f"{programs.binaries()}:{os.environ['PATH']}", "PGUSER": administrator}
    return subprocess.run(
        ["bash", "-c", line], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def follow(told: str, administrator: str = "postgres") -> None:
    """Do what a message says at its end."""
    _, found, line = told.partition("Cure: an administrator of the database runs, once, in the project's folder: ")
    assert found, told
    ran = run(line.partition("\n")[0], administrator)
    assert ran.returncode == 0, ran.stderr


def execute(dsn: str, *statements: str, **names: str) -> list[tuple[Any, ...]]:
    """Run statements with names in braces; the rows of the last."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            cursor = conn.execute(
                sql.SQL(statement).format(**{key: sql.Identifier(value) for key, value in names.items()})
            )
        return cursor.fetchall() if cursor.description else []


class Pipeline:
    """A pipeline by the role that it logs in as; what it logs, and the toy source that it keeps."""

    def __init__(self, folder: Path, logged_in: Login, log: pytest.LogCaptureFixture) -> None:
        self.role, self.dsn = logged_in
        self._folder, self._log = folder, log

    def load(self, wanted: Source = FIRST, **settings: Any) -> str:
        """Load a source the ordinary way, and have it found; what was said meanwhile to an administrator."""
        self._log.clear()
        uri = f"postgresql:///?{urlencode(conninfo_to_dict(self.dsn), quote_via=quote)}"
        box = Sandbox(self._folder, {PRIMARY: uri}, models=MODELS, more=settings)
        with self._log.at_level(logging.WARNING), box.deployment.prepared(PRIMARY) as conn:
            promote(conn, settings.get("live_model", "v1"))
            wanted.publish(conn)
        with connect(self.dsn) as conn:
            assert_serves(conn, wanted)
            assert bound_models(conn)[settings.get("live_model", "v1")].live
        return "\n".join(r.getMessage() for r in self._log.records if r.name.startswith("embedding_assets.pgvector"))

    def refused(self, **settings: Any) -> str:
        with pytest.raises(PermanentError) as error:
            self.load(**settings)
        return str(error.value)


@pytest.fixture
def pipeline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[[Login], Pipeline]:
    return lambda logged_in: Pipeline(tmp_path, logged_in, caplog)


def owners(dsn: str) -> set[str]:
    return {
        owner
        for (owner,) in execute(
            dsn,
            """
            SELECT relowner::regrole::text FROM pg_class WHERE relnamespace = 'embedding_assets'::regnamespace
            UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'embedding_assets'::regnamespace
            UNION SELECT proowner::regrole::text FROM pg_proc WHERE proname ~ '^search' AND pronamespace <> 11
            UNION SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'embedding_assets'
            """,
        )
    }


def assert_serves_applications(admin: str) -> None:
    """A role that is granted `embedding_search` searches and reads, and may do nothing else."""
    app = login(admin, roles.SEARCH)
    with connect(make_conninfo(app.dsn, options="-c search_path=public,extensions")) as conn:
        (hit,) = search(conn, ASKED.v1, 1)  # type: ignore[arg-type]
        assert (hit.document_id, hit.ordinal) == (ASKED.document_id, ASKED.ordinal)
        assert conn.execute("SELECT count(*) FROM live_chunks").fetchone() == (40,)
        assert conn.execute("SHOW hnsw.iterative_scan").fetchone() == ("strict_order",)
        for statement in (
            "SELECT FROM embedding_assets.chunks",
            "SELECT FROM embedding_assets.models",
            "DELETE FROM live_chunks",
            "CREATE TABLE public.mine ()",
            "CREATE TABLE embedding_assets.mine ()",
            "SET ROLE embedding_ingest",
            "SET ROLE embedding_surface",
        ):
            with pytest.raises(NOT_ALLOWED):
                conn.execute(statement.encode())


# From a role that may do nothing but log in


@pytest.mark.parametrize("owns", [True, False], ids=["its own database", "somebody else's database"])
def test_a_bare_role_does_all_of_it_once_an_administrator_has_run_the_line(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline], owns: bool
) -> None:
    admin = new_cluster("theirs", pgvector=False)
    bare = pipeline(owned(admin, "NOINHERIT") if owns else login(admin, options="NOINHERIT"))

    told = bare.refused()
    follow(told)

    assert 'permission denied to create extension "vector"' in told
    assert bare.load() == ""
    assert owners(admin) == {roles.INGEST}
    assert bare.load(SECOND) == ""
    assert bare.load(SECOND, live_model="v2") == ""
    assert bare.load(SECOND, row_level_security={bare.role: []}) == ""
    assert bare.load(SECOND) == ""
    assert bare.load(SECOND, row_level_security="off") == ""
    assert_serves_applications(admin)


def test_an_administrator_who_is_no_superuser_may_run_it_too(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline]
) -> None:
    admin = new_cluster("managed")
    administrator = owned(admin, "CREATEROLE")
    bare = pipeline(login(admin))

    follow(bare.refused(), administrator.role)

    assert bare.load() == ""
    assert owners(admin) == {roles.INGEST}
    assert_serves_applications(admin)


def test_a_second_pipeline_on_the_cluster_follows_the_same_file(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline]
) -> None:
    admins = [new_cluster(f"theirs {n}", pgvector=False) for n in range(2)]
    first, second = (pipeline(login(admin)) for admin in admins)
    for admin, each in zip(admins, (first, second), strict=True):
        name = conninfo_to_dict(admin)["dbname"]
        execute(admin, "REVOKE CONNECT, TEMPORARY ON DATABASE {database} FROM PUBLIC", database=str(name))
        ran = run(f"psql -v pipeline={each.role} -f sql/roles.sql '{admin}'")
        assert ran.returncode == 0, ran.stderr

    for each, wanted in ((first, FIRST), (second, SECOND), (first, SECOND)):
        assert each.load(wanted) == ""
    with pytest.raises(PermanentError, match="permission denied for database"):
        connect(make_conninfo(admins[1], user=first.role))


def test_running_it_again_changes_nothing(new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline]) -> None:
    def state() -> list[tuple[Any, ...]]:
        return execute(
            admin,
            """
            SELECT oid::regclass::text, relowner::regrole::text, relacl::text FROM pg_class
            UNION ALL SELECT oid::regprocedure::text, proowner::regrole::text, proacl::text FROM pg_proc
            UNION ALL SELECT nspname, nspowner::regrole::text, nspacl::text FROM pg_namespace
            UNION ALL SELECT datname, datdba::regrole::text, datacl::text FROM pg_database
            UNION ALL SELECT roleid::regrole::text, member::regrole::text, pg_auth_members::text FROM pg_auth_members
            UNION ALL SELECT setdatabase::text, '', setconfig::text FROM pg_db_role_setting
            ORDER BY 1, 2, 3
            """,
        )

    admin = new_cluster("theirs", pgvector=False)
    bare = pipeline(login(admin))
    told = bare.refused()
    follow(told)
    bare.load()
    execute(admin, "ALTER DATABASE theirs SET hnsw.iterative_scan = relaxed_order")  # another choice than ours
    before = state()

    follow(told)

    assert state() == before
    assert bare.load(SECOND) == ""


def test_nothing_that_others_have_put_into_public_runs_with_the_administrators_rights(new_cluster: NewCluster) -> None:
    admin = new_cluster("theirs")
    execute(
        admin, "GRANT CREATE ON SCHEMA public TO PUBLIC", "ALTER DATABASE theirs SET search_path = public, pg_catalog"
    )
    execute(
        login(admin).dsn,
        """
        CREATE FUNCTION public.to_regrole(text) RETURNS regrole LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$
        """,
    )
    bare = login(admin)

    ran = run(f"psql -v pipeline={bare.role} -f sql/roles.sql '{admin}'")

    assert ran.returncode == 0, ran.stderr


def test_it_says_what_it_has_to_be_told(new_cluster: NewCluster) -> None:
    admin = new_cluster("theirs")

    ran = run(f"psql -f sql/roles.sql '{admin}'")

    assert ran.returncode != 0
    assert "Cure: psql -v pipeline=<its role> -f sql/roles.sql" in ran.stderr
    assert execute(admin, "SELECT to_regrole('embedding_ingest')") == [(None,)]


# After the pipeline has run with rights of its own


@pytest.mark.parametrize("superuser", [True, False], ids=["a superuser", "the database's owner"])
def test_what_ran_without_roles_goes_on_with_them(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline], superuser: bool
) -> None:
    admin = new_cluster("theirs")
    administrator = owned(admin, "CREATEROLE")
    own = pipeline(login(admin))
    execute(
        admin,
        "GRANT CREATE ON DATABASE theirs TO {role}",
        "GRANT CREATE ON SCHEMA public TO {role}",
        role=own.role,
    )

    told = own.load(row_level_security={own.role: [FIRST.name]})
    follow(told, "postgres" if superuser else administrator.role)

    assert f"works without its roles, as {own.role}: permission denied to create role" in told
    assert own.load(SECOND) == ""
    assert own.load(live_model="v2") == ""
    assert own.load(row_level_security="off") == ""
    assert owners(admin) == {roles.INGEST}
    assert_serves_applications(admin)


def test_another_login_role_goes_on_where_the_first_had_no_roles(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline]
) -> None:
    admin = new_cluster("theirs")
    first, second = pipeline(owned(admin, "")), pipeline(login(admin))
    first.load()
    told = second.refused()

    follow(told)

    assert second.load(SECOND) == ""
    assert owners(admin) == {roles.INGEST}


def test_the_owner_of_a_database_needs_nobody_for_iterative_scans(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline]
) -> None:
    admin = new_cluster("theirs")
    owner = pipeline(owned(admin, ""))

    told = owner.load()

    assert "too few rows" not in told
    assert execute(owner.dsn, "SHOW hnsw.iterative_scan") == [("strict_order",)]


# Half of what an administrator should have done

ROLES = ["CREATE ROLE embedding_ingest", "CREATE ROLE embedding_search", "CREATE ROLE embedding_surface"]
NESTED = [*ROLES, "GRANT embedding_surface TO embedding_ingest"]
PUBLIC = [
    "GRANT USAGE, CREATE ON SCHEMA public TO embedding_ingest",
    "GRANT CREATE ON SCHEMA public TO embedding_surface",
]
HALVES = {
    "nothing": [],
    "one role": ROLES[:1],
    "roles": ROLES,
    "roles and a membership": [*ROLES, "GRANT embedding_ingest TO {role}"],
    "roles and memberships": [*NESTED, "GRANT embedding_ingest TO {role}"],
    "a role that it may not become": [*NESTED, *PUBLIC, "GRANT embedding_ingest TO {role} WITH SET FALSE"],
    "a role whose rights it has not": [*NESTED, *PUBLIC, "GRANT embedding_ingest TO {role} WITH INHERIT FALSE"],
    "the view's role alone": [*NESTED, *PUBLIC, "GRANT embedding_surface TO {role}"],
    "all but the schema of pgvector": [
        *NESTED,
        *PUBLIC,
        "GRANT embedding_ingest TO {role}",
        "CREATE SCHEMA extensions",
        "ALTER EXTENSION vector SET SCHEMA extensions",
        "GRANT USAGE ON SCHEMA extensions TO {role}",
        "ALTER ROLE {role} SET search_path = public, extensions",
    ],
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_a_half_done_set_up_stops_no_region_that_its_own_rights_carry(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline], half: list[str]
) -> None:
    admin = new_cluster("theirs")
    own = pipeline(login(admin))
    execute(
        admin,
        "GRANT CREATE ON DATABASE theirs TO {role}",
        "GRANT CREATE ON SCHEMA public TO {role}",
        *half,
        role=own.role,
    )

    own.load()
    told = own.load(SECOND)
    follow(told)

    assert f"works without its roles, as {own.role}" in told
    assert own.load() == ""
    assert owners(admin) == {roles.INGEST}
    assert_serves_applications(admin)


@pytest.mark.parametrize("half", ["nothing", "one role", "roles and memberships", "all but the schema of pgvector"])
def test_where_its_own_rights_do_not_do_the_line_is_the_error(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline], half: str
) -> None:
    admin = new_cluster("theirs")
    bare = pipeline(login(admin))
    execute(admin, "SELECT 1", *HALVES[half], role=bare.role)

    follow(bare.refused())

    assert bare.load() == ""
    assert_serves_applications(admin)


@pytest.mark.parametrize(
    "taken",
    [
        "REVOKE CREATE ON SCHEMA public FROM embedding_ingest, embedding_surface",
        "REVOKE CREATE ON SCHEMA public FROM embedding_surface",
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC, embedding_search",
        "REVOKE embedding_surface FROM embedding_ingest",
        "ALTER VIEW live_chunks OWNER TO postgres",
    ],
)
def test_a_right_taken_away_is_missed_by_nobody_but_whom_it_was_taken_from(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline], taken: str
) -> None:
    admin = new_cluster("theirs")
    own = pipeline(login(admin))
    follow(own.refused())
    own.load()
    execute(
        admin,
        "GRANT CREATE, USAGE ON SCHEMA public TO {role}",
        taken,
        role=own.role,
    )

    told = own.load(SECOND)
    follow(told)

    assert own.load() == ""
    assert_serves_applications(admin)


def test_where_the_view_cannot_be_replaced_the_line_is_the_error(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline]
) -> None:
    admin = new_cluster("theirs")
    bare = pipeline(login(admin))
    follow(bare.refused())
    bare.load()
    execute(admin, "REVOKE embedding_surface FROM embedding_ingest")

    told = bare.refused(live_model="v2")
    follow(told)

    assert "must be owner of view live_chunks" in told
    assert bare.load(live_model="v2") == ""


def test_a_membership_taken_away_is_named_with_the_line_that_gives_it_back(
    new_cluster: NewCluster, pipeline: Callable[[Login], Pipeline]
) -> None:
    admin = new_cluster("theirs")
    bare = pipeline(login(admin))
    follow(bare.refused())
    bare.load()
    execute(admin, "REVOKE embedding_ingest FROM {role}", role=bare.role)

    follow(bare.refused())

    assert bare.load(SECOND) == ""
