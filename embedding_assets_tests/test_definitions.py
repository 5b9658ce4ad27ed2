"""What Dagster loads: that it loads anywhere without touching anything, and the whole of it, as recorded."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

from embedding_assets import definitions
from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.build import build_defs
from embedding_assets.settings.default import default_settings
from embedding_assets.settings.home import CONFIG
from embedding_assets.settings.models import SettingsError
from embedding_assets_tests.support.harness import PROJECT, Sandbox

BIN = Path(sys.executable).parent

# Prints every call of our own code that writes, connects or starts something. What packages of others do while they
# are imported (urllib3 tries whether there is IPv6) is theirs.
WATCHED = """
import os, sys

EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate",
          "socket.connect", "socket.bind", "socket.getaddrinfo", "sqlite3.connect",
          "subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND

def ours():
    frame = sys._getframe(2)
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        if f"{os.sep}embedding_assets{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False

def hook(event, arguments):
    if (event in EVENTS or event == "open" and arguments[2] & WRITES) and ours():
        print(event, arguments)

sys.addaudithook(hook)
from embedding_assets.definitions import defs
defs().resolve_all_asset_specs()
"""


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    """The definitions by the demo's settings, the same on every machine."""
    home = Path("/nowhere")
    return build_defs(Deployment(default_settings(home), home))


def test_the_definitions_validate_in_an_empty_environment() -> None:
    result = subprocess.run(
        [BIN / "dagster", "definitions", "validate"],  # finds workspace.yaml in the project's folder
        env={},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "embedding_assets.definitions" in result.stdout + result.stderr


def test_loading_them_writes_nothing_connects_to_nothing_and_starts_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED],
        env={},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_settings_that_cannot_be_used_fail_the_load_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("primary_region: us-east-1\nregions: {}\n")
    monkeypatch.setenv(CONFIG, str(file))
    with pytest.raises(SettingsError, match=f"{file}:2: regions:"):
        definitions.defs()


def test_each_call_makes_fresh_definitions(sandbox: Sandbox) -> None:
    one, other = build_defs(sandbox.deployment), build_defs(sandbox.deployment)
    assert not {id(asset) for asset in one.assets or ()} & {id(asset) for asset in other.assets or ()}


def test_the_graph_is_as_recorded(defs: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    """Keys, dependencies, partitions, checks, retries, pools, kinds, groups, jobs, schedules, sensors.

    After a change that is meant: `pytest embedding_assets_tests/test_definitions.py --snapshot-update`, and the
    difference is part of the review.
    """
    described = {
        "assets": {asset.key.to_user_string(): described_asset(asset) for asset in assets_of(defs)},
        "jobs": {job.name: {"selection": str(job.selection), "tags": job.tags} for job in asset_jobs(defs)},
        "op_jobs": sorted(job.name for job in defs.jobs or () if isinstance(job, dg.JobDefinition)),
        "schedules": {schedule.name: described_schedule(schedule) for schedule in schedules_of(defs)},
        "sensors": {sensor.name: described_sensor(sensor) for sensor in sensors_of(defs)},
        "executor": defs.executor.name if isinstance(defs.executor, dg.ExecutorDefinition) else None,
    }
    assert described == snapshot(extension_class=JSONSnapshotExtension)


def assets_of(defs: dg.Definitions) -> list[dg.AssetsDefinition]:
    return [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)]


def asset_jobs(defs: dg.Definitions) -> list[Any]:
    return [job for job in defs.jobs or () if not isinstance(job, dg.JobDefinition)]


def schedules_of(defs: dg.Definitions) -> list[dg.ScheduleDefinition]:
    return [schedule for schedule in defs.schedules or () if isinstance(schedule, dg.ScheduleDefinition)]


def sensors_of(defs: dg.Definitions) -> list[dg.SensorDefinition]:
    return list(defs.sensors or ())


def described_asset(asset: dg.AssetsDefinition) -> dict[str, Any]:
    (spec,) = asset.specs
    retry = asset.op.retry_policy
    return {
        "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
        "partitions": described_partitions(spec.partitions_def),
        "group": spec.group_name,
        "kinds": sorted(spec.kinds),
        "pool": asset.op.pool,
        "retries": retry
        and [retry.max_retries, retry.delay, retry.backoff and retry.backoff.name, retry.jitter and retry.jitter.name],
        "checks": {
            check.name: {
                "blocking": check.blocking,
                "description": check.description,
                "by_partition": check.partitions_def == spec.partitions_def,
            }
            for check in asset.check_specs
        },
        "description": " ".join((spec.description or "").split()),
    }


def described_partitions(partitions: dg.PartitionsDefinition[str] | None) -> Any:
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return {d.name: list(d.partitions_def.get_partition_keys()) for d in partitions.partitions_defs}
    return list(partitions.get_partition_keys()) if partitions else None


def described_schedule(schedule: dg.ScheduleDefinition) -> dict[str, Any]:
    return {
        "cron": schedule.cron_schedule,
        "timezone": schedule.execution_timezone or "UTC",
        "job": schedule.job_name,
        "status": schedule.default_status.name,
    }


def described_sensor(sensor: dg.SensorDefinition) -> dict[str, Any]:
    return {
        "type": sensor.sensor_type.name,
        "jobs": sorted(target.job_name for target in sensor.targets),
        "interval_seconds": sensor.minimum_interval_seconds,
        "status": sensor.default_status.name,
        "description": sensor.description,
    }


def test_dagster_yaml_allows_one_writer_a_partition_and_retries_crashes_alone() -> None:
    settings = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    assert settings["concurrency"]["runs"]["tag_concurrency_limits"] == [
        {"key": "dagster/partition", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    ]
    assert settings["run_retries"]["retry_on_asset_or_op_failure"] is False


def test_a_run_loads_no_tokenizer_model_or_client_before_it_has_something_to_send_them() -> None:
    heavy = ("bpe_openai", "tokenizers", "onnxruntime", "openai", "aiohttp", "boto3", "matplotlib", "yoyo")
    script = f"import sys, embedding_assets.cli.runs; print(*(name for name in {heavy} if name in sys.modules))"

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == []
