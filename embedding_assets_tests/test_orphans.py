"""A source that is taken out of the settings, or renamed: it is named until it is forgotten, and then it is gone."""

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict

from embedding_assets.cli import cli
from embedding_assets.errors import PermanentError
from embedding_assets.operations.orphans import forget, orphans
from embedding_assets.pgvector.connection import connect
from embedding_assets.settings.models import Settings
from embedding_assets.snapshots.garbage import set_aside
from embedding_assets_tests.conftest import databases
from embedding_assets_tests.support.harness import PRIMARY, REGIONS, SOURCE, Sandbox

OLD, NEW = "notes", "memos"


@dataclass
class Shell:
    """Commands of this process on a sandbox, whose sources besides the handbook are what a test says."""

    box: Sandbox
    patch: pytest.MonkeyPatch
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def settled(self) -> Sandbox:
        return Sandbox(self.box.root, self.box.dsns, sources=self.sources)

    def has(self, **sources: Mapping[str, Any]) -> "Shell":
        folder = self.box.root / "folder"
        self.sources = {name: {"kind": "files", "path": str(folder), **more} for name, more in sources.items()}
        for name, value in self.settled.environment().items():
            self.patch.setenv(name, value)
        return self

    def run(self, line: str, code: int = 0) -> Result:
        ran = CliRunner().invoke(cli, shlex.split(line))
        assert ran.exit_code == code, (line, ran.output, ran.exception)
        return ran

    def served(self) -> set[tuple[str, str]]:
        """(region, source) of all rows that readers find."""
        return {(region, row[0]) for region in REGIONS for row in self.box.rows(region)}

    def locks(self, region: str) -> int:
        """How many tables that are locks the region's database has."""
        with connect(self.box.dsns[region]) as conn:
            query = "SELECT count(*) FROM pg_class WHERE relname ~ '^lock_' AND relkind = 'r'"
            return int(conn.execute(query).fetchall()[0][0])

    def files_of(self, source: str) -> list[str]:
        """All files of the stores and of the home that are the source's."""
        stored = [path for path in self.box.objects() if f"/{source}/" in path]
        home = self.box.root / "home"
        journals = home.glob(f"journals/{source}-v[12]-[0-9a-f]*")  # not of a source named {source}-v1
        return stored + [path.name for path in (*journals, *home.glob(f"catalogs/{source}.*"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, postgres: Path) -> Iterator[Sandbox]:
    """The handbook and the notes, both served in both regions, for every test to copy: making them takes six runs."""
    with databases(postgres) as new_database, pytest.MonkeyPatch.context() as patch:
        box = Sandbox(tmp_path_factory.mktemp("made"), {region: new_database() for region in REGIONS})
        box.write(refunds="Refunds take five days.")
        (box.root / "folder").mkdir()
        for number in range(3):
            (box.root / "folder" / f"{number}.md").write_text(f"This is note {number}.")
        shell = Shell(box, patch).has(notes={})
        shell.run("materialize")
        assert shell.served() == {(region, source) for region in REGIONS for source in (SOURCE, OLD)}
        yield box


@pytest.fixture
def shell(made: Sandbox, tmp_path: Path, postgres: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """The handbook and the notes, both served in both regions."""
    with databases(postgres) as new_database:
        dsns = {region: new_database(str(conninfo_to_dict(dsn)["dbname"])) for region, dsn in made.dsns.items()}
        shutil.copytree(made.root, tmp_path, dirs_exist_ok=True)
        yield Shell(Sandbox(tmp_path, dsns), monkeypatch).has(notes={})


@pytest.mark.slow
def test_a_source_taken_out_of_the_settings_is_an_orphan_until_it_is_forgotten(shell: Shell) -> None:
    shell.has()
    assert f"embedding-assets forget {OLD}" in shell.run("materialize").output

    rows = json.loads(shell.run("status --json", code=1).stdout)
    orphaned = [row for row in rows if row["orphan"]]
    assert [(row["source"], row["region"], row["rows"], row["current"]) for row in orphaned] == [
        (OLD, region, 3, False) for region in REGIONS
    ]
    found = json.loads(shell.run("verify --json", code=1).stdout)["differences"]
    assert [(one["kind"], one["source"], one["region"]) for one in found] == [("orphan", OLD, r) for r in REGIONS]
    assert f"embedding-assets forget {OLD}" in found[0]["cure"]
    shell.settled.deployment.primary.put_if_absent("parts/chunks/A person's own/notes.txt", b"no source's")

    part = next(path for path in shell.files_of(OLD) if path.startswith(f"{PRIMARY}/parts/"))
    set_aside(shell.settled.deployment.primary, part.removeprefix(f"{PRIMARY}/"), datetime.now(UTC))
    leftover = f"journals/embeddings_v1/{OLD}/{'0' * 16}/{'0' * 64}.parquet"
    shell.settled.deployment.primary.put_if_absent(leftover, b"of a run that was stopped")

    shell.run(f"forget {OLD} --yes")

    assert shell.served() == {(region, SOURCE) for region in REGIONS}
    assert shell.files_of(OLD) == []
    assert shell.files_of(SOURCE)
    assert {region: shell.locks(region) for region in REGIONS} == dict.fromkeys(REGIONS, 2)  # schema's, handbook's
    shell.run("status"), shell.run("verify")
    assert "nothing of a source notes is left" in shell.run(f"forget {OLD} --yes").output


def test_a_forgetting_that_stops_anywhere_leaves_an_orphan_that_the_next_one_finishes(shell: Shell) -> None:
    deployment = shell.has().settled.deployment
    for _ in range(9):
        # Each call gets to its first word, and dies: databases first, so that readers have none of it at once.
        if next(forget(deployment, OLD, REGIONS), None) is None:
            break
        gone = {region for region in REGIONS if (region, OLD) not in shell.served()}
        assert gone
        if shell.files_of(OLD):
            assert {one.source for one in orphans(deployment, REGIONS)} <= {OLD}

    assert shell.served() == {(region, SOURCE) for region in REGIONS}
    assert shell.files_of(OLD) == []
    assert orphans(deployment, REGIONS) == []
    assert {region: shell.locks(region) for region in REGIONS} == dict.fromkeys(REGIONS, 2)


def test_one_region_can_forget_alone(shell: Shell) -> None:
    shell.has().run(f"forget {OLD} --region {PRIMARY} --yes")

    assert {region for region, source in shell.served() if source == OLD} == set(REGIONS) - {PRIMARY}
    assert {one.region for one in orphans(shell.settled.deployment, REGIONS)} == set(REGIONS) - {PRIMARY}


def test_nothing_is_forgotten_that_the_settings_have_or_that_nobody_confirmed(shell: Shell) -> None:
    with pytest.raises(PermanentError, match="take it out of the settings"):
        list(forget(shell.settled.deployment, OLD, REGIONS))
    with pytest.raises(PermanentError, match="no name of a source"):
        list(forget(shell.settled.deployment, "../stores", REGIONS))
    assert "Cure: add --yes" in shell.has().run(f"forget {OLD}", code=2).output
    assert (PRIMARY, OLD) in shell.served()


def test_forgetting_leaves_what_is_of_a_source_with_a_similar_name(shell: Shell) -> None:
    shell.has(notes={}, **{"notes-v1": {}, "note": {}})
    shell.run("materialize --source notes-v1"), shell.run("materialize --source note")
    before = {name: shell.files_of(name) for name in ("notes-v1", "note")}

    shell.has(**{"notes-v1": {}, "note": {}}).run(f"forget {OLD} --yes")

    assert {name: shell.files_of(name) for name in before} == before
    assert shell.files_of(OLD) == []


def test_a_rename_that_is_told_buys_nothing_and_the_old_name_goes_once_the_new_one_serves(shell: Shell) -> None:
    shell.has(memos={"renamed_from": OLD})
    with pytest.raises(PermanentError, match=f"materialize --source {NEW}"):
        list(forget(shell.settled.deployment, OLD, REGIONS))

    half = json.loads(shell.run(f"materialize --source {NEW} --region {PRIMARY} --json").stdout)
    assert {run["metadata"][asset]["new"] for run in half[:1] for asset in ("embeddings_v1", "embeddings_v2")} == {0}
    assert {region for region, source in shell.served() if source == OLD} == set(REGIONS)
    shell.run("materialize")

    assert shell.served() == {(region, source) for region in REGIONS for source in (SOURCE, NEW)}
    assert shell.files_of(OLD) == []
    shell.run("status"), shell.run("verify")


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ({"a": {}, "b": {"renamed_from": "a"}}, "source a is still here"),
        ({"b": {"renamed_from": "a"}, "c": {"renamed_from": "a"}}, "b was renamed from a as well"),
    ],
)
def test_a_rename_that_cannot_be_is_refused(sandbox: Sandbox, sources: dict[str, dict[str, str]], told: str) -> None:
    given = {name: {"kind": "files", "path": "/docs", **more} for name, more in sources.items()}
    with pytest.raises(ValueError, match=told):
        Settings.model_validate({**sandbox.settings, "sources": given})
