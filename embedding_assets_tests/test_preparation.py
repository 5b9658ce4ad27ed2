"""What a region's database is brought to before anything is written into it: how often, by whom, and in which order."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner

from embedding_assets.cli import cli
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.operations import dead_letters
from embedding_assets.operations.search import search
from embedding_assets.operations.status import is_current, status
from embedding_assets.orchestration import driver
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.schema import migrations
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets.telemetry.events import Tell
from embedding_assets_tests.support.asked import Asked, name_of
from embedding_assets_tests.support.harness import MODELS, PRIMARY, SOURCE, Sandbox

EU = "eu-west-1"
OTHER_V2 = {**MODELS, "v2": {"provider": "local", "name": "wordllama-256", "dimensions": 256}}


@pytest.fixture
def migrated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The databases that were asked for their migrations in order to be migrated, a name each time."""
    names: list[str] = []
    migrate = migrations.migrate

    def noted(dsn: str, tell: Tell) -> None:
        names.append(name_of(dsn))
        migrate(dsn, tell)

    monkeypatch.setattr(migrations, "migrate", noted)
    return names


@pytest.fixture
def empty(sandbox: Sandbox, postgres: Path) -> Iterator[Sandbox]:
    """A deployment whose second region has a database with nothing in it."""
    admin = embedded.dsn(postgres, "postgres")
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute("CREATE DATABASE unprepared")
        yield replace(sandbox, dsns={**sandbox.dsns, EU: embedded.dsn(postgres, "unprepared")})
        conn.execute("DROP DATABASE unprepared WITH (FORCE)")


def newest_transaction(dsn: str) -> object:
    """What moves with everything that the cluster is told to write."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return conn.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())").fetchone()


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The migrations of a version that has one more."""
    folder = tmp_path / "newer"
    shutil.copytree(migrations.MIGRATIONS, folder)
    (folder / "9999_future.sql").write_text("SELECT 1;")
    return folder


# How often


def test_a_command_prepares_a_region_once_whatever_the_number_of_sources(sandbox: Sandbox, migrated: list[str]) -> None:
    box = replace(sandbox, sources={"notes": {"kind": "files", "path": str(sandbox.root)}})
    box.write(refunds="Refunds take five days.")
    deployment = box.deployment

    deployment.prepare(PRIMARY)  # as `materialize` does, before it runs anything
    with dg.DagsterInstance.ephemeral() as instance:
        outcomes = list(
            driver.materialize(
                deployment,
                instance,
                sources=[SOURCE, "notes"],
                regions=[PRIMARY],
                is_current=lambda region, source: is_current(deployment, region, source),
            )
        )

    assert [outcome.succeeded for outcome in outcomes] == [True] * 4
    assert migrated == [name_of(box.dsns[PRIMARY])]


def test_what_is_prepared_is_asked_about_and_not_written(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment, name = sandbox.deployment, name_of(sandbox.dsns[EU])
    deployment.prepare(EU)
    before, asked = newest_transaction(sandbox.dsns[EU]), Asked(monkeypatch)

    sandbox.deployment.prepare(EU)
    of_a_run = asked.statements[name]
    asked.forget()
    with deployment.prepared(EU):
        pass
    of_an_asset = asked.statements[name]

    assert newest_transaction(sandbox.dsns[EU]) == before
    assert of_a_run <= 24
    assert of_an_asset <= 12


def test_a_run_that_begins_with_the_table_prepares_a_database_with_nothing_in_it(empty: Sandbox) -> None:
    with empty.deployment.prepared(EU) as conn:
        assert bound_models(conn)["v1"].live


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT 1 / 0", PermanentError),
        ("SET statement_timeout = 1; SELECT pg_sleep(60)", TransientError),
    ],
    ids=["refused", "cut off"],
)
def test_what_postgres_says_to_whoever_connects_is_an_error_of_the_pipeline_with_its_cure(
    sandbox: Sandbox, statement: str, error: type[PermanentError] | type[TransientError]
) -> None:
    with (
        pytest.raises(error, match=rf"using the database of region {EU}: .* Cure: "),
        sandbox.deployment.connect(EU) as conn,
    ):
        conn.execute(statement.encode())


def test_a_database_that_is_dropped_in_the_middle_of_a_run_is_prepared_again_by_its_next_attempt(
    empty: Sandbox, postgres: Path
) -> None:
    deployment = empty.deployment
    with deployment.prepared(EU):
        pass
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute("DROP DATABASE unprepared WITH (FORCE)")
        admin.execute("CREATE DATABASE unprepared")

    with pytest.raises(TransientError, match=r"dropped or emptied while this run went on\. Cure:"):
        deployment.prepared(EU).__enter__()

    with deployment.prepared(EU) as conn:
        assert bound_models(conn)["v1"].live


# Who looks


def test_who_only_looks_writes_nothing_into_a_database_with_nothing_in_it(empty: Sandbox) -> None:
    primary = replace(empty, dsns={EU: empty.dsns[PRIMARY], PRIMARY: empty.dsns[EU]}).deployment
    before = newest_transaction(empty.dsns[EU])

    (row,) = status(primary, [SOURCE], [PRIMARY])
    with pytest.raises(PermanentError, match="serves nothing yet"):
        search(primary, PRIMARY, "a question", k=1)
    assert dead_letters.listed(primary, None, dead_letters.OPEN) == []
    with pytest.raises(PermanentError, match="no dead letter 7"):
        dead_letters.show(primary, 7)

    assert (row.error, row.rows) == (None, 0)
    assert newest_transaction(empty.dsns[EU]) == before


# A rolling deployment


def test_a_run_of_an_older_version_is_refused_once_a_newer_one_has_migrated(
    sandbox: Sandbox, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = sandbox.deployment
    with older.prepared(EU):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", newer)
        sandbox.deployment.prepare(EU)

    for refused in (older, sandbox.deployment):  # in the middle of its run, and at the beginning of the next
        with pytest.raises(PermanentError, match=r"newer version of this project has migrated .*9999_future.* Cure:"):
            refused.prepared(EU).__enter__()

    monkeypatch.setattr(migrations, "MIGRATIONS", newer)  # the cure
    with older.prepared(EU):
        pass


def test_a_run_does_not_take_back_the_models_that_another_one_has_bound_since(sandbox: Sandbox) -> None:
    before, since = sandbox.deployment, replace(sandbox, models=OTHER_V2).deployment
    with before.prepared(EU):
        pass
    since.prepare(EU)

    with pytest.raises(PermanentError, match=r"was changed while this run went on.* Cure:"):
        before.prepared(EU).__enter__()

    with connect(sandbox.dsns[EU]) as conn:
        assert bound_models(conn)["v2"].model.dimensions == 256
    with since.prepared(EU):  # the cure
        pass


# The command


def test_the_command_prepares_what_it_can_and_names_the_region_that_cannot_be(
    empty: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = replace(empty, dsns={**empty.dsns, PRIMARY: "postgresql://nobody@127.0.0.1:9/nothing"})

    def prepare(box: Sandbox, *more: str) -> tuple[int, str]:
        for name, value in box.environment().items():
            monkeypatch.setenv(name, value)
        ran = CliRunner().invoke(cli, ["prepare", *more])
        return ran.exit_code, ran.stdout

    code, printed = prepare(away, "--json")

    assert code == 1
    told = {entry["region"]: (entry["prepared"], entry["error"]) for entry in json.loads(printed)}
    assert told[EU] == (True, None)
    assert not told[PRIMARY][0]
    assert "connecting to the region's database" in told[PRIMARY][1]
    (row,) = status(empty.deployment, [SOURCE], [EU])
    assert (row.error, row.live_model) == (None, "v1")
    assert prepare(empty) == (0, f"{EU}: prepared\n{PRIMARY}: prepared\n")
