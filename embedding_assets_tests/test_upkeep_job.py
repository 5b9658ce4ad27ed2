"""Upkeep as operators meet it: the schedule, the job, and the command."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner

from embedding_assets.cli import cli
from embedding_assets.operations import upkeep
from embedding_assets.operations.upkeep import UpkeepEntry, keep_up
from embedding_assets.orchestration.automation.upkeep import UPKEEP_JOB
from embedding_assets.orchestration.build import build_defs
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.locks import source_lock
from embedding_assets.telemetry.events import Event, LockAwaited
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.harness import PRIMARY, QUIET, REGIONS, SOURCE, Sandbox

EU = "eu-west-1"


def hours_around(now: datetime, distance: int = 0) -> str:
    """Two quiet hours with this moment in their middle, or so many hours away from it."""
    middle = now + timedelta(hours=distance)
    return f"{middle - timedelta(hours=1):%H:%M}-{middle + timedelta(hours=1):%H:%M}"


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    """Two documents served in two regions; now is in the quiet hours."""
    sandbox.write(lists="# Lists\n\nMutable sequences.", tuples="# Tuples\n\nImmutable sequences.")
    assert all(outcome.succeeded for outcome in sandbox.materialize())
    return replace(sandbox, more={"quiet_hours": hours_around(datetime.now(UTC))})


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def kill_rows(box: Sandbox, region: str) -> None:
    """Leave half of the region's rows dead."""
    with psycopg.connect(box.dsns[region]) as conn:
        conn.execute("DELETE FROM embedding_assets.generation_1 WHERE document_id = 'lists.md'")
    # Whatever the other connection did is counted once it has gone.
    with psycopg.connect(box.dsns[region], autocommit=True) as conn:
        conn.execute("ANALYZE embedding_assets.generation_1")


def stop_region(box: Sandbox, region: str) -> Sandbox:
    """The same deployment with a region whose server is not there."""
    return replace(box, dsns={**box.dsns, region: "postgresql://127.0.0.1:1/nowhere"})


def run(box: Sandbox, instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return (
        build_defs(box.deployment)
        .resolve_job_def(UPKEEP_JOB)
        .execute_in_process(
            instance=instance,
            run_config={**QUIET, "ops": {"keep_up": {"config": config}}},
            raise_on_error=False,
        )
    )


def told(result: dg.ExecuteInProcessResult) -> list[dict[str, Any]]:
    """The rows of the table in the run."""
    for event in result.all_events:
        metadata: Mapping[str, object] = {}
        if event.event_type is dg.DagsterEventType.STEP_OUTPUT:
            metadata = event.step_output_data.metadata
        elif event.event_type is dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data.user_failure_data
            metadata = data.metadata if data else metadata
        if table := metadata.get("upkeep"):
            assert isinstance(table, dg.TableMetadataValue)
            return [dict(record.data) for record in table.records]
    return []


def dead_rows(box: Sandbox, region: str) -> int:
    with psycopg.connect(box.dsns[region]) as conn:
        row = conn.execute(
            "SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = 'embedding_assets.generation_1'::regclass"
        ).fetchone()
    return int(row[0]) if row else -1


def test_a_run_mends_what_it_finds_and_says_what_it_saw_everywhere(box: Sandbox, instance: dg.DagsterInstance) -> None:
    kill_rows(box, EU)
    assert dead_rows(box, EU) == 1

    result = run(box, instance)

    assert result.success
    rows = {(row["region"], row["source"]): row for row in told(result)}
    assert rows.keys() == {(region, SOURCE) for region in REGIONS}
    assert rows[EU, SOURCE]["saw"] == "1 of 2 rows are dead (50%)"
    assert rows[EU, SOURCE]["did"].startswith("vacuumed (")
    assert rows[PRIMARY, SOURCE]["saw"].startswith("2 rows, 0 dead, v1 ")
    assert rows[PRIMARY, SOURCE]["did"] == "nothing"
    assert dead_rows(box, EU) == 0


def test_outside_the_quiet_hours_a_run_looks_at_nothing_unless_told(box: Sandbox, instance: dg.DagsterInstance) -> None:
    box = replace(box, more={"quiet_hours": hours_around(datetime.now(UTC), distance=12)})

    assert told(run(box, instance)) == []
    assert len(told(run(box, instance, now=True))) == 2


def test_a_region_that_is_away_is_named_and_the_others_are_kept_up(box: Sandbox, instance: dg.DagsterInstance) -> None:
    kill_rows(box, PRIMARY)

    result = run(stop_region(box, EU), instance)

    assert not result.success
    rows = {row["region"]: row for row in told(result)}
    assert rows[EU]["saw"].startswith("could not be reached: connecting to the region's database")
    assert rows[PRIMARY]["did"].startswith("vacuumed (")
    (failure,) = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_FAILURE]
    assert f"{EU}|all sources: could not be reached" in str(failure.step_failure_data)


def test_nothing_is_begun_once_the_quiet_hours_are_over(box: Sandbox) -> None:
    """They end after the source was looked at: what was found waits for its next turn, and so does the other region."""
    kill_rows(box, EU)
    answers = iter([True, False, False])

    did = list(keep_up(box.deployment, REGIONS, lambda: next(answers)))

    assert [(entry.source, entry.did) for entry in did] == [
        (SOURCE, "nothing, the time is up: its turn comes again"),
        ("", "the time is up"),
    ]
    assert dead_rows(box, EU) == 1


def test_a_source_that_is_being_loaded_has_its_turn_the_next_hour(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_assets.pgvector.indexes.upkeep.PATIENCE_SECONDS", 0.05)

    events: list[Event] = []
    with connect(box.dsns[EU]) as loader, source_lock(loader, SOURCE):
        did = list(keep_up(box.deployment, [EU], lambda: True, events.append))

    assert {wait.what for wait in of_kind(events, LockAwaited)} == {f"source '{SOURCE}'"}
    assert did == [UpkeepEntry(EU, SOURCE, "it is being loaded", "nothing, its turn comes again", failed=False)]


def test_a_region_that_serves_nothing_yet_is_no_failure(sandbox: Sandbox) -> None:
    empty = replace(sandbox, dsns={**sandbox.dsns, EU: sandbox.dsns[EU].replace("/test_", "/nothing_")})
    with psycopg.connect(sandbox.dsns[EU], dbname="postgres", autocommit=True) as admin:
        name = psycopg.conninfo.conninfo_to_dict(empty.dsns[EU])["dbname"]
        admin.execute(f"CREATE DATABASE {name}")
        did = list(keep_up(empty.deployment, [EU], lambda: True))
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    assert did == [UpkeepEntry(EU, "", "serves nothing yet", "nothing", failed=False)]


def test_the_schedule_asks_for_a_run_on_each_of_the_quiet_hours(sandbox: Sandbox, instance: dg.DagsterInstance) -> None:
    definitions = build_defs(replace(sandbox, more={"quiet_hours": "22:30-02:00"}).deployment)
    asked = []
    for hour in range(24):
        with dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=datetime(2026, 11, 21, hour, tzinfo=UTC),
            repository_def=definitions.get_repository_def(),
        ) as context:
            data = definitions.resolve_schedule_def("hourly_upkeep").evaluate_tick(context)
        asked += [(hour, request.run_key) for request in data.run_requests or ()]

    assert [hour for hour, _ in asked] == [0, 1, 23]
    assert len({key for _, key in asked}) == 3


def invoke(box: Sandbox, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    for name, value in box.environment().items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli, ["upkeep", *arguments])
    return result.exit_code, result.stdout


def test_the_command_prints_what_it_saw_and_did(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_rows(box, EU)

    code, printed = invoke(box, monkeypatch, "--region", EU, "--json")

    (entry,) = json.loads(printed)
    assert code == 0
    assert entry.keys() == {"region", "source", "saw", "did", "failed"}
    assert (entry["region"], entry["source"], entry["failed"]) == (EU, SOURCE, False)
    assert entry["did"].startswith("vacuumed")


def test_the_command_fails_where_a_region_is_away(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = invoke(stop_region(box, EU), monkeypatch, "--json")

    assert code == 1
    assert [entry["failed"] for entry in json.loads(printed)] == [True, False]


def test_the_command_works_by_hand_outside_the_quiet_hours(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "is_quiet", lambda _: False)

    assert invoke(box, monkeypatch, "--json") == (0, "[]\n")

    code, printed = invoke(box, monkeypatch, "--now")
    assert code == 0
    assert f"{EU}|{SOURCE}: 2 rows, 0 dead" in printed
