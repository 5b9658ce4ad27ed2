"""Makes sources current: a run for each source, then one for each region and source, on the project's own instance.

Dagster runs one partitions definition at a time; this drives the two jobs in order, so that each run shows in the UI.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.healing import has_lost
from embedding_assets.orchestration.assets.boundary import WAITS_INSIDE, was_stopped
from embedding_assets.orchestration.automation.failures import reason
from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.orchestration.build import build_defs
from embedding_assets.orchestration.resources.progress import ProgressDisplay
from embedding_assets.snapshots.folders import CURE, make_folder, private_folder
from embedding_assets.snapshots.names import RAW_DOCS

_INSTANCE_SETTINGS: Final = Path(__file__).parent / "dagster.yaml"


@dataclass(frozen=True)
class Check:
    """One asset check's verdict."""

    asset: str
    name: str
    passed: bool
    blocking: bool
    severity: str
    """`ERROR`, or `WARN` where a failed check does no harm yet."""
    metadata: dict[str, Any]
    description: str | None = None
    """In a sentence, where figures need one."""


@dataclass(frozen=True)
class Outcome:
    """One run: what it was about, how it ended, and what its assets said of it."""

    partition: str
    run_id: str
    succeeded: bool
    seconds: float
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def dagster_home(home: Path) -> Path:
    """DAGSTER_HOME, or the one under this home, with the project's dagster.yaml in it."""
    configured = os.environ.get("DAGSTER_HOME")
    folder = Path(configured) if configured else private_folder(home / "dagster")
    try:
        make_folder(folder)
        settings = folder / "dagster.yaml"
        if not settings.exists():
            shutil.copyfile(_INSTANCE_SETTINGS, settings)
    except OSError as error:
        cure = "Cure: set DAGSTER_HOME to a folder that this user may make and write." if configured else CURE
        raise PermanentError(f"{folder}: Dagster's records cannot be kept there: {error.strerror}. {cure}") from error
    os.environ["DAGSTER_HOME"] = str(folder)
    return folder


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance that `dagster_home` names, for runs in this process: their standard output is the terminal's.

    Dagster would have it go to a file, and a `tail` and a watcher for each stream of each step bring it back: bars stay
    unseen, and on Ctrl-C the watchers print their tracebacks.
    """
    as_it_is = {"module": "dagster.core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    folder = str(dagster_home(home))
    with _recorded():
        return dg.DagsterInstance.local_temp(folder, overrides={"compute_logs": as_it_is})


@contextmanager
def _recorded() -> Iterator[None]:
    """Raise TransientError where Dagster can't keep its records of runs: that is no fault of a source or a region."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        raise TransientError(
            f"Dagster's records of runs cannot be kept: {reason}. Cure: see that the disk of "
            f"{os.environ['DAGSTER_HOME']}, or the database that its dagster.yaml names, has room and may be written. "
            "Where its files are damaged, move it away: the records of past runs are lost with it, and nothing else."
        ) from error


def materialize(
    deployment: Deployment,
    instance: dg.DagsterInstance,
    *,
    sources: Sequence[str],
    regions: Sequence[str],
    is_current: Callable[[str, str], bool],
    allow_deletes: bool = False,
    reread: bool = False,
    progress: ProgressDisplay | None = None,
) -> Iterator[Outcome]:
    """Bring the sources up to date in the regions, a run at a time; yields each run as it ends.

    A source is always looked at. A region is run only where `is_current(region, source)` says no, and not after the
    source's own run failed. A run that is told to stop is the last.
    """
    defs = build_defs(deployment, progress)
    for source in sources:
        config = {"ops": {RAW_DOCS: {"config": {"allow_deletes": allow_deletes, "reread": reread}}}}

        def run(job: str, partition: str, config: dict[str, Any]) -> Outcome:
            return _run(defs, job, partition, instance, config)

        outcomes = _bring(run, source, config, regions, is_current)
        for outcome in outcomes:
            if not outcome.succeeded and not was_stopped(outcome.run_id) and has_lost(deployment, source):
                # What no store has whole was set aside meanwhile: the stages that made it make it again.
                yield from _bring(run, source, config, regions, is_current)
                break
            yield outcome
        if was_stopped(outcome.run_id):
            return


def _bring(
    run: Callable[[str, str, dict[str, Any]], Outcome],
    source: str,
    config: dict[str, Any],
    regions: Sequence[str],
    is_current: Callable[[str, str], bool],
) -> Iterator[Outcome]:
    outcome = run(SOURCE_JOB, source, config)
    yield outcome
    for region in regions if outcome.succeeded else ():
        if not is_current(region, source) and not was_stopped(outcome.run_id):
            outcome = run(REGION_JOB, f"{region}|{source}", {})
            yield outcome


def _run(
    defs: dg.Definitions, job: str, partition: str, instance: dg.DagsterInstance, config: dict[str, Any]
) -> Outcome:
    start = time.monotonic()
    with _recorded():
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            partition_key=partition,
            # The run's whole log is in the instance; the terminal is for the progress display.
            run_config=config | {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
            tags={WAITS_INSIDE: "true"},
        )
    metadata: dict[str, dict[str, Any]] = {}
    checks: list[Check] = []
    errors: list[str] = []
    for event in result.all_events:
        if event.is_step_materialization:
            materialization = event.step_materialization_data.materialization
            metadata[materialization.asset_key.to_user_string()] = {
                name: value.value for name, value in materialization.metadata.items()
            }
        elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            verdict = event.asset_check_evaluation_data
            checks.append(
                Check(
                    verdict.asset_key.to_user_string(),
                    verdict.check_name,
                    verdict.passed,
                    bool(verdict.blocking),
                    verdict.severity.value,
                    {name: value.value for name, value in verdict.metadata.items()},
                    verdict.description,
                )
            )
        elif event.is_step_failure and event.step_failure_data.error is not None:
            errors.append(reason(event))
    return Outcome(partition, result.run_id, result.success, time.monotonic() - start, metadata, checks, errors)
