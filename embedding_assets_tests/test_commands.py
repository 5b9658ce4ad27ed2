"""The command lines, as a user types them: what they print, how they end, and what they never print."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from embedding_assets.cli import cli, looks, run_display
from embedding_assets.cli import terminal as terminal_module
from embedding_assets.cli.run_display import progress_bars
from embedding_assets.cli.runs import is_well
from embedding_assets.cli.screen import Screen
from embedding_assets.operations.status import SourceStatus
from embedding_assets.orchestration.automation.jobs import SOURCE_JOB
from embedding_assets.orchestration.driver import Check, Outcome
from embedding_assets.orchestration.resources.progress import Progress
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.dead_letters import DeadLetter
from embedding_assets.pgvector.reading.search import Hit
from embedding_assets.settings.home import CONFIG
from embedding_assets.snapshots import log
from embedding_assets.snapshots.garbage import Collected
from embedding_assets.snapshots.names import REGION_ASSETS, SOURCE_ASSETS
from embedding_assets_tests.support.harness import PRIMARY, PROJECT, REGIONS, SOURCE, Sandbox
from embedding_assets_tests.support.standin import KEY_VARIABLE, Standin

BIN = Path(sys.executable).parent
EU = "eu-west-1"
API_KEY, PASSWORD = "sk-a-secret-key", "a-secret-password"

SOURCE_LINE = (
    "dagster asset materialize -m embedding_assets.definitions --partition {} "
    "--select raw_docs,chunks,embeddings_v1,embeddings_v2"
)
REGION_LINE = (
    "dagster asset materialize -m embedding_assets.definitions --partition '{}|{}' "
    "--select s3_replica,pgvector_table,hnsw_index"
)

# A trigger of somebody else's, on every generation's table: what is stored is not what was sent.
SPOIL = """
CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.content := NEW.content || '!'; RETURN NEW; END $$;
CREATE FUNCTION spoil_new_tables() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE made record;
BEGIN
    FOR made IN SELECT object_identity AS name FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' LOOP
        EXECUTE 'CREATE TRIGGER spoil BEFORE INSERT ON ' || made.name
            || ' FOR EACH ROW EXECUTE FUNCTION public.spoil()';
    END LOOP;
END $$;
CREATE EVENT TRIGGER spoil ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION spoil_new_tables();
"""


@dataclass
class Ran:
    """A command that ended: what it was, how, and what it printed."""

    line: str
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Terminal:
    """A user's shell on a sandbox, in a folder that is not the project's."""

    box: Sandbox
    environment: dict[str, str]
    folder: Path

    def run(self, line: str, *more: str, **variables: str) -> Ran:
        command = [*shlex.split(line), *more]
        ended = subprocess.run(
            [BIN / command[0], *command[1:]],
            env={**self.environment, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        return Ran(line, ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def databases(postgres: Path) -> Iterator[dict[str, str]]:
    """A migrated database for each region, for the module; the DSNs have a password."""
    names = {region: f"commands_{region}" for region in REGIONS}
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        for name in names.values():
            admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template").format(sql.Identifier(name)))
        yield {
            region: embedded.dsn(postgres, name).replace("postgres@", f"postgres:{PASSWORD}@")
            for region, name in names.items()
        }
        for name in names.values():
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def provider() -> Iterator[Standin]:
    with Standin.started() as standin:
        standin.reset(keys=[API_KEY])
        yield standin


@pytest.fixture(scope="module")
def terminal(databases: dict[str, str], provider: Standin, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """Paths with spaces, one model of a provider with a key, the databases' DSNs in the environment."""
    root = tmp_path_factory.mktemp("commands") / "with spaces"
    api = {
        "provider": "openai",
        "name": "standin-model",
        "dimensions": 64,
        "base_url": provider.base_url,
        "api_key_env": KEY_VARIABLE,
    }
    box = Sandbox(root, databases)
    box = replace(box, models={**box.models, "v2": api})
    box.write(
        lists="# Lists\n\nLists are mutable sequences of items.",
        tuples="# Tuples\n\nTuples are immutable sequences.",
        guide__dicts="# Dictionaries\n\nMappings from keys to values.",
    )
    variables = {region: f"DATABASE_{region.replace('-', '_').upper()}" for region in REGIONS}
    environment = box.environment(
        **{KEY_VARIABLE: API_KEY}, **{variables[region]: databases[region] for region in REGIONS}
    )
    settings = box.settings
    for region in REGIONS:
        settings["regions"][region]["database"] = f"env:{variables[region]}"
    Path(environment[CONFIG]).write_text(json.dumps(settings))
    (root / "elsewhere").mkdir()
    return Terminal(box, environment, root / "elsewhere")


@pytest.fixture(scope="module")
def first(terminal: Terminal) -> list[Ran]:
    """The documented lines, in order, on an empty deployment."""
    return [
        terminal.run(SOURCE_LINE.format(SOURCE)),
        terminal.run(REGION_LINE.format(EU, SOURCE)),
        terminal.run("embedding-assets materialize --json"),
    ]


def test_the_lines_for_ci_materialize_a_source_and_then_a_region(first: Sequence[Ran], terminal: Terminal) -> None:
    assert [ran.code for ran in first] == [0, 0, 0], first
    assert len(terminal.box.rows(EU)) == 3
    assert terminal.box.rows(EU) == terminal.box.rows(PRIMARY)


def test_materialize_does_what_is_left_and_tells_of_each_run(first: Sequence[Ran]) -> None:
    runs = {run["partition"]: run for run in first[-1].json}

    assert list(runs) == [SOURCE, f"{PRIMARY}|{SOURCE}"]  # the other region is current
    for run in runs.values():
        assert run.keys() == {"partition", "run_id", "succeeded", "seconds", "metadata", "checks", "errors"}
        assert (run["succeeded"], run["errors"]) == (True, [])
        assert all(check["passed"] for check in run["checks"])
        fields = {"asset", "name", "passed", "blocking", "severity", "metadata", "description"}
        assert all(check.keys() == fields for check in run["checks"])
    assert runs[SOURCE]["metadata"].keys() == set(SOURCE_ASSETS)
    assert runs[f"{PRIMARY}|{SOURCE}"]["metadata"].keys() == set(REGION_ASSETS)
    assert runs[SOURCE]["metadata"]["embeddings_v2"]["new"] == 0
    assert "base64" not in first[-1].out


def test_status_tells_what_each_region_serves(first: Sequence[Ran], terminal: Terminal) -> None:
    ran = terminal.run("embedding-assets status --json")

    assert ran.code == 0
    roots = terminal.box.roots()
    looked_at = ran.json[0]["looked_at"]
    assert datetime.fromisoformat(looked_at) <= datetime.now(UTC)
    assert ran.json == [
        {
            "source": SOURCE,
            "region": region,
            "snapshot": 1,
            "documents": 3,
            "chunks": 3,
            "rejected": 0,
            "root": roots[region],
            "rows": 3,
            "live_model": "v1",
            "index": "valid",
            "current": True,
            "orphan": False,
            "degraded": None,
            "unsaid": None,
            "lag_seconds": 0,
            "looked_at": looked_at,
            "problem": None,
            "error": None,
        }
        for region in REGIONS
    ]


def test_search_finds_the_nearest_first(first: Sequence[Ran], terminal: Terminal) -> None:
    ran = terminal.run(
        f"embedding-assets search 'mutable sequences of items' --region {EU} --source {SOURCE} -k 2 --json"
    )

    assert ran.code == 0
    hits = ran.json
    assert [hit["document_id"] for hit in hits] == ["lists.md", "tuples.md"]
    assert all(hit.keys() == {"source", "document_id", "ordinal", "content", "metadata", "distance"} for hit in hits)
    assert hits[0]["content"] == "# Lists\n\nLists are mutable sequences of items."
    assert 0 <= hits[0]["distance"] < hits[1]["distance"] < 2


def test_no_secret_is_printed_or_kept(first: Sequence[Ran], terminal: Terminal) -> None:
    """Not in what the commands print, nor in any file under the home (Dagster's events and logs) or in the stores."""
    away = terminal.run(
        f"embedding-assets search anything --region {EU}",
        DATABASE_EU_WEST_1=f"postgresql://somebody:{PASSWORD}@127.0.0.1:9/nowhere?connect_timeout=5",
    )

    assert away.code == 1
    for ran in (*first, away):
        assert API_KEY not in ran.out + ran.err, ran.line
        assert PASSWORD not in ran.out + ran.err, ran.line
    for file in terminal.box.root.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert API_KEY.encode() not in content, file
            assert PASSWORD.encode() not in content, file


_LOADED = """
import sys
from embedding_assets.__main__ import main
try:
    main()
finally:
    print(*(name for name in ("dagster", "pyarrow", "numpy", "boto3") if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("line", ["--version", "search --help", "dsn", "status --json", "search immutable --json"])
def test_a_command_that_only_looks_loads_nothing_that_takes_long(
    first: Sequence[Ran], terminal: Terminal, line: str
) -> None:
    needed = ["numpy"] if line.startswith("search immutable") else []  # its question is a vector

    ran = subprocess.run(
        [sys.executable, "-c", _LOADED, *shlex.split(line)],
        env=terminal.environment,
        cwd=terminal.folder,
        capture_output=True,
        text=True,
        check=True,
    )

    assert ran.stderr.split() == needed


def test_an_error_is_one_sentence_on_stderr(first: Sequence[Ran], terminal: Terminal) -> None:
    ran = terminal.run(f"embedding-assets status --region {EU}", **{CONFIG: "no such file.yaml"})

    assert ran.code == 1
    assert ran.out == ""
    assert ran.err == (
        "error: no such file.yaml: the settings cannot be read: No such file or directory. "
        f"Cure: name a readable YAML file in {CONFIG}.\n"
    )


# verify and gc, on a copy of what the first lines made


def invoke(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, line: str) -> Ran:
    """The same command in this process, which is quicker by its start."""
    for name, value in terminal.environment.items():
        monkeypatch.setenv(name, value)
    ended = CliRunner().invoke(cli, shlex.split(line)[1:])
    return Ran(line, ended.exit_code, ended.stdout, ended.stderr)


def test_verify_finds_nothing_where_all_is_well(first: Sequence[Ran], terminal: Terminal) -> None:
    ran = terminal.run("embedding-assets verify --json")
    assert (ran.code, ran.json) == (0, {"differences": []})


@pytest.mark.parametrize("harm", ["deleted", "flipped"])
@pytest.mark.parametrize("region", REGIONS)
def test_verify_names_a_part_that_is_harmed(
    first: Sequence[Ran], terminal: Terminal, monkeypatch: pytest.MonkeyPatch, harm: str, region: str
) -> None:
    replica = log.head(terminal.box.deployment.store(region), "s3_replica", SOURCE)
    assert replica is not None
    part = terminal.box.root / "stores" / region / replica.layers[0].path(SOURCE)
    data = part.read_bytes()
    try:
        part.unlink() if harm == "deleted" else part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        ran = invoke(terminal, monkeypatch, f"embedding-assets verify --region {region} --json")
    finally:
        part.write_bytes(data)

    assert ran.code == 1
    (found,) = ran.json["differences"]
    assert found.keys() == {"kind", "source", "region", "asset", "path", "shard", "what", "cure"}
    assert found["kind"] == ("part missing" if harm == "deleted" else "part damaged")
    assert (found["source"], found["region"], found["path"]) == (SOURCE, region, replica.layers[0].path(SOURCE))


@pytest.mark.parametrize("column", ["content", "embedding_v1", "metadata"])
def test_verify_names_a_table_whose_row_somebody_changed(
    first: Sequence[Ran], terminal: Terminal, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    changed = {
        "content": sql.SQL("'changed'"),
        "metadata": sql.SQL("jsonb_build_object('changed', true)"),
        "embedding_v1": sql.SQL("(SELECT array_agg(-x)::vector FROM unnest(embedding_v1::real[]) AS x)"),
    }[column]
    where = sql.SQL("WHERE source = 'handbook' AND document_id = 'lists.md'")
    read = sql.SQL("SELECT {}::text FROM embedding_assets.chunks {}").format(sql.Identifier(column), where)
    write = sql.SQL("UPDATE embedding_assets.chunks SET {} = {} {}")
    with psycopg.connect(terminal.box.dsns[EU], autocommit=True) as conn:
        was = conn.execute(read).fetchone()
        assert was is not None
        try:
            conn.execute(write.format(sql.Identifier(column), changed, where))
            ran = invoke(terminal, monkeypatch, "embedding-assets verify --json")
        finally:
            conn.execute(write.format(sql.Identifier(column), sql.Placeholder(), where), was)

    assert ran.code == 1
    (difference,) = ran.json["differences"]
    assert (difference["kind"], difference["region"], difference["shard"]) == ("rows differ", EU, 0)
    assert difference["what"].startswith("content differs: fingerprint ")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("UPDATE {} SET content = 'forged'", "1 shards replaced by the replica's rows"),
        ("UPDATE {} SET digest = 0", "1 shards replaced by the replica's rows"),
        ("UPDATE {} SET embedding_v1 = embedding_v1 + embedding_v1", "1 shards replaced by the replica's rows"),
        ("DELETE FROM {}", "1 shards replaced by the replica's rows"),
        (
            "INSERT INTO {0} SELECT * FROM jsonb_populate_recordset(NULL::{0}, (SELECT jsonb_agg(to_jsonb(c) || "
            "jsonb_build_object('chunk_id', gen_random_uuid(), 'shard', 5)) FROM {0} AS c))",
            "1 shards replaced by the replica's rows",
        ),
        (
            "ALTER TABLE {} DROP CONSTRAINT generation_1_pkey",
            "index generation_1_pkey is missing or invalid: built again",
        ),
        (
            "DROP INDEX embedding_assets.generation_1_shard",
            "index generation_1_shard is missing or invalid: built again",
        ),
        ("DROP INDEX embedding_assets.generation_1_v1", "index generation_1_v1 is missing or invalid: built again"),
    ],
)
def test_verify_repairs_a_table_that_somebody_harmed(
    first: Sequence[Ran], terminal: Terminal, monkeypatch: pytest.MonkeyPatch, harm: str, told: str
) -> None:
    before = terminal.box.rows(EU)
    with psycopg.connect(terminal.box.dsns[EU], autocommit=True) as conn:
        conn.execute(sql.SQL(harm).format(sql.SQL("embedding_assets.generation_1")))
    assert invoke(terminal, monkeypatch, "embedding-assets verify --json").code == 1

    ran = invoke(terminal, monkeypatch, "embedding-assets verify --repair --json")

    assert (ran.code, ran.json["differences"]) == (0, [])
    (done,) = ran.json["repaired"]
    assert (done["region"], done["source"], done["failed"]) == (EU, SOURCE, False)
    assert done["did"].startswith(told)
    assert {finding["region"] for finding in done["findings"]} == {EU}
    assert terminal.box.rows(EU) == before
    again = invoke(terminal, monkeypatch, "embedding-assets verify --repair --json")
    assert (again.code, again.json) == (0, {"repaired": [], "differences": []})


def test_a_table_that_is_behind_its_replica_is_for_the_next_run_to_load(
    first: Sequence[Ran], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(terminal.box.dsns[EU], autocommit=True) as conn:
        serving = conn.execute("SELECT id, target_root FROM embedding_assets.generations").fetchone()
        assert serving is not None
        try:
            conn.execute("UPDATE embedding_assets.generations SET target_root = 'an older one'")
            ran = invoke(terminal, monkeypatch, "embedding-assets verify --repair --json")
        finally:
            conn.execute("UPDATE embedding_assets.generations SET target_root = %s", serving[1:])

    (found,) = ran.json["differences"]
    assert (ran.code, ran.json["repaired"]) == (1, [])
    assert (found["kind"], found["what"]) == ("behind", "the table was not loaded from this replica")
    assert found["cure"] == f"embedding-assets materialize --source {SOURCE} --region {EU}"


@pytest.mark.parametrize("harm", ["deleted", "flipped"])
@pytest.mark.parametrize(("harmed", "whole"), [(EU, PRIMARY), (PRIMARY, EU)])
def test_verify_repairs_a_part_from_any_region_that_has_it(
    first: Sequence[Ran],
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    harm: str,
    harmed: str,
    whole: str,
) -> None:
    replica = log.head(terminal.box.deployment.store(harmed), "s3_replica", SOURCE)
    assert replica is not None
    path = replica.layers[0].path(SOURCE)
    part, other = (terminal.box.root / "stores" / region / path for region in (harmed, whole))
    part.unlink() if harm == "deleted" else part.write_bytes(
        bytes([other.read_bytes()[0] ^ 1]) + other.read_bytes()[1:]
    )

    ran = invoke(terminal, monkeypatch, "embedding-assets verify --repair")

    assert ran.code == 0
    assert f"{harmed}|{SOURCE}: {path} was lost or damaged, and was put back from " in ran.out
    assert caplog.messages == []  # it is said once
    assert part.read_bytes() == other.read_bytes()


def test_verify_goes_on_past_a_log_that_cannot_be_read(
    first: Sequence[Ran], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = terminal.box.root / "stores" / EU / log.entry_path("s3_replica", SOURCE, 1)
    content = entry.read_text()
    try:
        entry.write_text("{}")
        ran = invoke(terminal, monkeypatch, "embedding-assets verify")
    finally:
        entry.write_text(content)

    assert ran.code == 1
    assert f"{EU}|{SOURCE}: the replica could not be compared" in ran.out
    assert ran.out.endswith("\n1 difference\n")


def test_gc_deletes_nothing_that_is_young_or_named(
    first: Sequence[Ran], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = terminal.box.objects()
    ran = invoke(terminal, monkeypatch, "embedding-assets gc --keep 1 --grace-hours 1 --json")
    assert (ran.code, ran.json) == (0, {region: dict.fromkeys(Collected._fields, 0) for region in REGIONS})
    assert terminal.box.objects() == before


def test_dsn_is_what_psql_takes(first: Sequence[Ran], terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = invoke(terminal, monkeypatch, f"embedding-assets dsn --region {EU}")
    described = invoke(terminal, monkeypatch, "embedding-assets dsn --json")

    with psycopg.connect(printed.out.strip()) as conn:
        assert conn.execute("SELECT count(*) FROM live_chunks").fetchone() == (3,)
    assert described.json == {"region": PRIMARY, "dsn": terminal.box.dsns[PRIMARY]}


# What is wrong


@pytest.mark.slow
def test_a_partition_that_there_is_not_fails_the_line(terminal: Terminal) -> None:
    assert terminal.run(SOURCE_LINE.format("nowhere")).code != 0


@pytest.mark.slow
def test_a_failed_step_fails_the_line_with_its_reason(first: Sequence[Ran], terminal: Terminal) -> None:
    away = terminal.box.dsns[EU].replace("/commands_", "/nobody_made_")
    ran = terminal.run(REGION_LINE.format(EU, SOURCE), DATABASE_EU_WEST_1=away)

    assert ran.code == 1
    assert f'database "nobody_made_{EU}" does not exist' in ran.err
    assert PASSWORD not in ran.out + ran.err


def test_a_failed_blocking_check_fails_the_line_and_nothing_is_served(sandbox: Sandbox) -> None:
    sandbox.write(lists="# Lists\n\nMutable sequences.")
    with dg.DagsterInstance.ephemeral() as instance:
        assert sandbox.execute(SOURCE_JOB, SOURCE, instance).success
    with psycopg.connect(sandbox.dsns[EU], autocommit=True) as conn:
        conn.execute(SPOIL)

    ran = Terminal(sandbox, sandbox.environment(), sandbox.root).run(REGION_LINE.format(EU, SOURCE))

    assert ran.code == 1
    assert "1 blocking asset check failed" in ran.err
    assert "pgvector_table: parity" in ran.err
    assert sandbox.rows(EU) == []


def test_materialize_tells_of_a_failed_run_in_a_sentence_with_its_cure(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sandbox.write(lists="# Lists", tuples="# Tuples")
    shell = Terminal(sandbox, sandbox.environment(), sandbox.root)
    assert invoke(shell, monkeypatch, "embedding-assets materialize").code == 0
    (sandbox.docs / "lists.md").unlink()

    refused = invoke(shell, monkeypatch, "embedding-assets materialize")
    told = refused.out.splitlines()
    allowed = invoke(shell, monkeypatch, f"embedding-assets materialize --source {SOURCE} --allow-deletes")

    assert refused.code == 1
    assert told[0].split()[:2] == ["✗", SOURCE]
    assert told[1].startswith(f"{SOURCE}: raw_docs: source {SOURCE}: 1 of 2 documents are gone (50%;")
    assert "Cure:" in told[1]
    assert len(told) == 2
    assert allowed.code == 0
    printed = capfd.readouterr()
    assert "Traceback" not in refused.out + refused.err + printed.out + printed.err


def test_status_tells_of_a_region_that_is_away_and_of_the_others(
    first: Sequence[Ran], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = terminal.box.dsns[EU].replace("/commands_", "/nobody_made_")
    elsewhere = replace(terminal, environment={**terminal.environment, "DATABASE_EU_WEST_1": away})

    ran = invoke(elsewhere, monkeypatch, "embedding-assets status --json")

    assert ran.code == 1
    there, here = ran.json
    assert (there["region"], there["current"], there["rows"]) == (EU, False, 0)
    assert "does not exist" in there["error"]
    assert PASSWORD not in ran.out
    assert (here["region"], here["current"], here["error"]) == (PRIMARY, True, None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("embedding-assets materialize --source nothing", "there is no source 'nothing': the settings have handbook."),
        ("embedding-assets status --region mars", "there is no region 'mars': the settings have eu-west-1, us-east-1."),
        ("embedding-assets search", "Missing argument 'TEXT'"),
        ("embedding-assets search x -k 0", "0 is not in the range"),
        ("embedding-assets search x --filter [1]", "--filter takes a JSON object"),
        ("embedding-assets gc --grace-hours 0", "0 is not in the range"),
        ("embedding-assets verify --all", "No such option"),
    ],
)
def test_wrong_use_is_told_with_exit_code_2(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    ran = invoke(terminal, monkeypatch, line)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
    assert ran.out == ""


def commands(group: click.Group, *before: str) -> list[str]:
    """Every command line below a group."""
    found: list[str] = []
    for name, command in sorted(group.commands.items()):
        line = [*before, name]
        found += commands(command, *line) if isinstance(command, click.Group) else [" ".join(line)]
    return found


@pytest.mark.parametrize("command", commands(cli))
def test_every_command_has_help_and_json(command: str) -> None:
    ended = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert ended.exit_code == 0
    assert "--json" in ended.stdout
    assert len(ended.stdout.split("Options:")[0].split()) > 10


def test_the_list_of_commands_cuts_no_sentence() -> None:
    assert "..." not in CliRunner().invoke(cli, ["--help"], terminal_width=80).stdout.partition("Commands:")[2]


def test_control_c_ends_a_command_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(looks, "current_deployment", interrupted)
    ended = CliRunner().invoke(cli, ["doctor"])

    assert ended.exit_code == 1
    assert isinstance(ended.exception, SystemExit)


def test_numbers_of_things_are_words() -> None:
    assert [terminal_module.counted(number, "row") for number in (0, 1, 1_024)] == ["0 rows", "1 row", "1,024 rows"]


def test_every_command_stands_in_the_readme_or_the_docs() -> None:
    import_module("embedding_assets.__main__")  # which adds the demo's command to the others
    pages = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
    written = "\n".join(page.read_text(encoding="utf-8") for page in pages)

    missing = [command for command in commands(cli) if not re.search(rf"embedding-assets {command}\b", written)]

    assert missing == []


@pytest.mark.parametrize(
    "line", ["--config {} status --json", "status --config {} --json", "dead-letters list --config {}"]
)
def test_config_names_the_settings_wherever_it_stands(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv(CONFIG, "no such file.yaml")
    for name, value in terminal.environment.items():
        if name != CONFIG:
            monkeypatch.setenv(name, value)
    given = shlex.quote(terminal.environment[CONFIG])

    ran = CliRunner().invoke(cli, shlex.split(line.format(given)))

    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception


def test_the_version_is_the_packages() -> None:
    assert version("embedding-assets") in CliRunner().invoke(cli, ["--version"]).output


def outcome(severity: str) -> Outcome:
    check = Check("raw_docs", "nothing_rejected", passed=False, blocking=False, severity=severity, metadata={})
    return Outcome("handbook", "run", succeeded=True, seconds=1.0, checks=[check])


def test_a_failed_check_fails_the_command_unless_it_merely_warns() -> None:
    assert not is_well(outcome("ERROR"))
    assert is_well(outcome("WARN"))


def test_without_a_terminal_a_line_every_ten_seconds_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(run_display, "time", SimpleNamespace(monotonic=lambda: now[0]))
    screen = Screen()
    with screen.capture() as printed, progress_bars(screen) as bars:
        for second in range(25):
            now[0] = float(second)
            bars.show(Progress("embeddings_v1 of handbook", second, 100, "provider down: waiting"))

    assert printed.get().splitlines() == [
        f"embeddings_v1 of handbook: {second}/100 provider down: waiting" for second in (10, 20)
    ]


def test_a_table_that_is_piped_cuts_no_message_and_no_cure() -> None:
    words = " ".join(["word"] * 200)
    fields: dict[str, Any] = dict.fromkeys(DeadLetter._fields, "")
    letter = DeadLetter(**(fields | {"model_version": None, "message": f"{words} message", "cure": f"{words} cure"}))
    screen = Screen()
    with screen.capture() as printed:
        screen.print(terminal_module.letters_table([letter], narrow=False))

    (_, line) = printed.get().splitlines()
    assert f"{words} message" in line
    assert f"{words} cure" in line


def test_the_help_documents_the_fields_of_json() -> None:
    fields = {
        "materialize": "partition, run_id, succeeded, seconds, metadata, checks, errors",
        "status": ", ".join(SourceStatus.model_fields),
        "search": ", ".join(Hit._fields),
        "verify": "differences",
        "dsn": "region, dsn",
        "gc": ", ".join(Collected._fields),
        "dead-letters list": ", ".join(DeadLetter._fields),
    }
    for command, expected in fields.items():
        assert f"{{{expected}}}" in " ".join(CliRunner().invoke(cli, [*command.split(), "--help"]).stdout.split())
