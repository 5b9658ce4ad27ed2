"""The sensors. They only wake: what a run then does, it reads from the source and the logs, so that a lost, doubled or
late tick costs at most a look."""

import hashlib
import json
import time
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import dagster as dg

from embedding_assets.errors import PipelineError
from embedding_assets.operations import outcomes
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.status import serving
from embedding_assets.orchestration.automation.failures import reason
from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.orchestration.resources.alerts import ALERT_WEBHOOK, alert
from embedding_assets.settings.models import Settings
from embedding_assets.snapshots.names import SOURCE_ASSETS
from embedding_assets.snapshots.replication import target
from embedding_assets.sources.places import Item, PassedOver
from embedding_assets.sources.reader import Reader

# Dagster cuts a sensor off at 60 s: what was not looked at by then comes first in the next tick.
_BUDGET_SECONDS: Final = 30.0

# Between two runs asked for of what is wanted still: doubled each time, so that a database that is away for a minute
# costs two minutes, and one that is away for a week 170 runs.
_FIRST_PAUSE: Final = 60.0
_LONGEST_PAUSE: Final = 3600.0


def source_sweep() -> dg.SensorDefinition:
    """Looks at every source in turn and starts the run of each that looks changed."""

    @dg.sensor(
        name="source_sweep",
        job_name=SOURCE_JOB,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Starts a source's run when its items look changed: their names, or their marks.",
    )
    def sweep(context: dg.SensorEvaluationContext, deployment: dg.ResourceParam[Deployment]) -> dg.SensorResult:
        cursor = {name: Asked.read(entry) for name, entry in json.loads(context.cursor or "{}").items()}
        names = sorted(deployment.settings.sources)
        # Least recently looked at first: the cursor keeps its keys in that order.
        order = sorted(names, key=lambda name: list(cursor).index(name) if name in cursor else -1)
        requests_: list[dg.RunRequest] = []
        deadline = time.monotonic() + _BUDGET_SECONDS
        seen = {name: cursor[name] for name in cursor if name in names}
        for source in order:
            try:
                look = fingerprint(deployment.reader(source), deadline)
            except PipelineError as error:
                context.log.error(f"source {source} could not be looked at: {error}")
                outcomes.note(deployment.home, source, outcomes.SWEEP, error)
                # It has had its turn: one that takes long to fail must not be first in every tick.
                seen[source] = seen.pop(source, Asked(""))
                continue
            if outcomes.last(deployment.home, source, outcomes.SWEEP) is not None:
                outcomes.note(deployment.home, source, outcomes.SWEEP)
            if look is None:
                if source == order[0]:
                    context.log.warning(f"source {source} takes longer to list than a tick; the daily round reads it.")
                    seen[source] = seen.pop(source, Asked(""))
                else:
                    context.log.info(f"Out of time at {source}; it comes first in the next tick.")
                break
            wanted = f"{look} {_settings_of_source(deployment.settings, source)}"
            before = seen.pop(source, None)
            unchanged = before is not None and before.wanted == wanted
            seen[source], ask = _asked(before, wanted, settled=unchanged and not _may_pass(deployment, source))
            if ask and not _under_way(context.instance, SOURCE_JOB, source):
                requests_.append(dg.RunRequest(partition_key=source))
        return dg.SensorResult(run_requests=requests_, cursor=json.dumps({name: seen[name].entry for name in seen}))

    return sweep


def fingerprint(reader: Reader, deadline: float) -> str | None:
    """What a source looks like without opening a file: a hash over names and marks. None after the deadline, a
    time of the monotonic clock."""
    digest = hashlib.sha256(reader.version.encode())
    for item in reader.list_items():
        if time.monotonic() > deadline:
            return None
        if isinstance(item, PassedOver):
            continue
        digest.update(repr((item.name, item.mark) if isinstance(item, Item) else item).encode())
    return digest.hexdigest()


def region_log(region: str) -> dg.SensorDefinition:
    """Starts a region's run of a source for as long as the region does not serve what the primary has."""

    @dg.sensor(
        name=f"{region.replace('-', '_')}_log",
        job_name=REGION_JOB,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Starts {region}'s run of a source that it does not serve as the primary has it and the settings "
        "say; one that failed comes back after a minute, two, four, at most an hour.",
    )
    def follow(context: dg.SensorEvaluationContext, deployment: dg.ResourceParam[Deployment]) -> dg.SensorResult:
        cursor = {name: Asked.read(entry) for name, entry in json.loads(context.cursor or "{}").items()}
        sources = sorted(deployment.settings.sources)
        seen = {source: cursor[source] for source in sources if source in cursor}
        requests_: list[dg.RunRequest] = []
        try:
            serves = serving(deployment, region, sources)
        except PipelineError as error:
            # A run could not ask either; the next tick does.
            context.log.error(f"{region} could not be looked at: {error}")
            return dg.SensorResult(cursor=context.cursor)
        for source in sources:
            try:
                root = target(deployment.primary, source)
            except PipelineError as error:
                context.log.error(f"{region}|{source} could not be looked at: {error}")
                continue
            if root is None:
                continue
            settings = _settings_of_region(deployment.settings, region)
            before, wanted = seen.get(source), f"{root} {settings}"
            # Where it serves what is wanted, only what the settings say besides can still be to do.
            settled = serves[source] and (before is None or before.wanted.endswith(settings) or before.wanted == wanted)
            seen[source], ask = _asked(before, wanted, settled=settled)
            key = dg.MultiPartitionKey({"region": region, "source": source})
            if ask and not _under_way(context.instance, REGION_JOB, key):
                requests_.append(dg.RunRequest(partition_key=key))
        return dg.SensorResult(run_requests=requests_, cursor=json.dumps({name: seen[name].entry for name in seen}))

    return follow


class Asked(NamedTuple):
    """What a sensor last asked for: of which content and settings, how often since, and when again at the earliest."""

    wanted: str
    attempts: int = 0
    not_before: float = 0.0
    """Seconds since the epoch."""

    @property
    def entry(self) -> list[Any]:
        """As the cursor has it."""
        return list(self)

    @classmethod
    def read(cls, entry: object) -> "Asked":
        """From a cursor; one of an older version counts as if nothing had been asked for."""
        match entry:
            case [str(wanted), int(attempts), int() | float() as not_before]:
                return cls(wanted, attempts, not_before)
        return cls("")


def _asked(before: Asked | None, wanted: str, *, settled: bool) -> tuple[Asked, bool]:
    """What the cursor says from now on, and whether to ask: at once for what is new, after a back-off for the same."""
    now = _now()
    if before is None or before.wanted != wanted:
        return Asked(wanted, 1, now + _FIRST_PAUSE), not settled
    if settled:
        return Asked(wanted), False
    if now < before.not_before:
        return before, False
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(before.attempts, 10))
    return Asked(wanted, before.attempts + 1, now + pause), True


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _under_way(instance: dg.DagsterInstance, job: str, partition: str) -> bool:
    """Whether a run of the partition waits or works: it does what another would."""
    statuses = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
    ]
    filters = dg.RunsFilter(job_name=job, tags={"dagster/partition": str(partition)}, statuses=statuses)
    return bool(instance.get_run_records(filters, limit=1))


def _may_pass(deployment: Deployment, source: str) -> bool:
    """Whether a stage of the source last failed with what another try may get over. What a guard or a budget has
    stopped waits for a person, or for the daily round: each try might cost a budget."""
    ends = [outcomes.last(deployment.home, source, stage) for stage in SOURCE_ASSETS]
    failed = [ended for ended in ends if ended is not None and ended.error is not None]
    return bool(failed) and not any(ended.permanent for ended in failed)


def _settings_of_source(settings: Settings, source: str) -> str:
    """A hash of what decides a source's chunks and vectors, beside its documents."""
    models = {slot: binding.identity() for slot, binding in settings.models.items()}
    return _hash({"chunking": settings.sources[source].chunking.model_dump(mode="json"), "models": models})


def _settings_of_region(settings: Settings, region: str) -> str:
    """A hash of what decides a region's tables, indexes and rights, beside its replica; secrets are only hashed."""
    decisive = settings.model_dump(mode="json", include={"target_recall", "hybrid", "row_level_security"})
    hnsw = {slot: binding.hnsw.model_dump(mode="json") for slot, binding in settings.models.items()}
    place = settings.regions[region]
    return _hash({**decisive, "hnsw": hnsw, "region": [place.store, place.database.get_secret_value()]})


def _hash(decisive: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:16]


def run_failure_alert() -> dg.SensorDefinition:
    """Says that a run failed: in the daemon's log, and to a webhook if one is set."""

    @dg.run_failure_sensor(
        name="run_failure_alert",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Logs why a run failed, and posts it to the URL in {ALERT_WEBHOOK}.",
    )
    def tell(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        reasons = "; ".join(map(reason, context.get_step_failure_events())) or context.failure_event.message
        partition = run.tags.get("dagster/partition", "no partition")
        alert(context.log, f"{run.job_name} of {partition} failed (run {run.run_id}): {reasons}")

    return tell
