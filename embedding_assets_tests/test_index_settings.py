"""What the settings say of a model's index reaches what every region serves, and its build is seen while it lasts."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from embedding_assets.operations.status import is_current
from embedding_assets.orchestration.automation.jobs import REGION_JOB
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.orchestration.resources import progress
from embedding_assets.pgvector.indexes import hnsw
from embedding_assets.snapshots.slots import Slot
from embedding_assets.telemetry.events import IndexProgress
from embedding_assets_tests.support.harness import MODELS, PRIMARY, REGIONS, SOURCE, Sandbox


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    sandbox.write(lists="# Lists\n\nMutable sequences.", tuples="# Tuples\n\nImmutable sequences.")
    succeed(sandbox)
    return sandbox


def succeed(box: Sandbox) -> list[Outcome]:
    outcomes = box.materialize()
    assert all(outcome.succeeded for outcome in outcomes), [outcome.errors for outcome in outcomes]
    return outcomes


def wider(box: Sandbox) -> Sandbox:
    """The same deployment, whose v1 is to be indexed with more links."""
    return replace(box, models={**MODELS, "v1": {**MODELS["v1"], "hnsw": {"m": 24}}})


def options(box: Sandbox, region: str) -> dict[str, list[str]]:
    with psycopg.connect(box.dsns[region]) as conn:
        return dict(
            conn.execute("SELECT relname, reloptions FROM pg_class WHERE relname ~ '^generation_1_v[12]'").fetchall()
        )


def test_other_parameters_rebuild_the_index_that_every_region_serves_and_nothing_else(box: Sandbox) -> None:
    before = {region: box.rows(region) for region in REGIONS}
    changed = wider(box)
    assert not any(is_current(changed.deployment, region, SOURCE) for region in REGIONS)

    outcomes = succeed(changed)

    for region in REGIONS:
        assert options(box, region) == {
            "generation_1_v1": ["m=24", "ef_construction=200"],
            "generation_1_v2": ["m=16", "ef_construction=200"],
        }
        assert box.rows(region) == before[region]
        assert is_current(changed.deployment, region, SOURCE)
    told = {outcome.partition: outcome.metadata for outcome in outcomes}[f"{PRIMARY}|{SOURCE}"]
    assert told["pgvector_table"]["rows_loaded"] == 0
    assert (told["hnsw_index"]["v1_m"], "v1_build_seconds" in told["hnsw_index"]) == (24, True)
    assert "v2_build_seconds" not in told["hnsw_index"]


def test_a_build_is_seen_in_the_log_of_its_run(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an instance that keeps its log in a file, as a thread beside the run's own writes to it."""
    monkeypatch.setattr(hnsw, "_EVERY_SECONDS", 0.0005)
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0.0)  # also of a phase before which another one was seen
    overrides = {"telemetry": {"enabled": False}}
    with (
        dg.DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance,
        psycopg.connect(box.dsns[PRIMARY]) as writer,
    ):
        # A build beside readers waits for who may write: here until it is seen to, however quick it is.
        writer.execute("LOCK TABLE embedding_assets.generation_1 IN ROW EXCLUSIVE MODE")

        def seen(slot: Slot, phase: str, done: int, rows: int) -> IndexProgress:
            if phase.startswith("waiting for writers"):
                writer.rollback()
            return IndexProgress(slot, phase, done, rows)

        monkeypatch.setattr(hnsw, "IndexProgress", seen)
        result = wider(box).execute(REGION_JOB, f"{PRIMARY}|{SOURCE}", instance, assets=["hnsw_index"])
        messages = [entry.user_message for entry in instance.all_logs(result.run_id)]

    assert result.success
    assert any(f"hnsw_index v1 of {PRIMARY}|{SOURCE}: 2 of 2 vectors, built" in message for message in messages)
    assert any(" of 2 vectors, waiting for writers before build" in message for message in messages)
