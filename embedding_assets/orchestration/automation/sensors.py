"""The sensors. They only wake: what a run then does, it reads from the source and the logs, so that a lost, doubled or
late tick costs at most a look."""

import hashlib
import json
import time
from typing import Final

import dagster as dg

from embedding_assets.errors import PipelineError
from embedding_assets.operations import outcomes
from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.automation.failures import reason
from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.orchestration.resources.alerts import ALERT_WEBHOOK, alert
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import REPLICA
from embedding_assets.snapshots.replication import target
from embedding_assets.sources.places import Item, PassedOver
from embedding_assets.sources.reader import Reader

# Dagster cuts a sensor off at 60 s: what was not looked at by then comes first in the next tick.
_BUDGET_SECONDS: Final = 30.0


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
        cursor: dict[str, str] = json.loads(context.cursor or "{}")
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
                seen[source] = seen.pop(source, "")
                continue
            if outcomes.last(deployment.home, source, outcomes.SWEEP) is not None:
                outcomes.note(deployment.home, source, outcomes.SWEEP)
            if look is None:
                if source == order[0]:
                    context.log.warning(f"source {source} takes longer to list than a tick; the daily round reads it.")
                    seen[source] = seen.pop(source, "")
                else:
                    context.log.info(f"Out of time at {source}; it comes first in the next tick.")
                break
            if seen.pop(source, None) != look:
                requests_.append(dg.RunRequest(partition_key=source))
            seen[source] = look
        return dg.SensorResult(run_requests=requests_, cursor=json.dumps(seen))

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
    """Starts a region's run of a source once the source's snapshots have moved."""

    @dg.sensor(
        name=f"{region.replace('-', '_')}_log",
        job_name=REGION_JOB,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Starts {region}'s run of a source when the snapshots that it replicates, or its replica, moved.",
    )
    def follow(context: dg.SensorEvaluationContext, deployment: dg.ResourceParam[Deployment]) -> dg.SensorResult:
        cursor: dict[str, tuple[str | None, str | None]] = json.loads(context.cursor or "{}")
        requests_: list[dg.RunRequest] = []
        for source in sorted(deployment.settings.sources):
            try:
                wanted = target(deployment.primary, source)
                replica = log.head(deployment.store(region), REPLICA, source)
            except PipelineError as error:
                context.log.error(f"{region}|{source} could not be looked at: {error}")
                continue
            if wanted is None:
                continue
            held = replica.root if replica else None
            asked_for, held_then = cursor.get(source, (None, None))
            # A replica that moved to anything but what is wanted was moved by somebody: it is put right as well.
            if wanted != asked_for or held not in (wanted, held_then):
                key = dg.MultiPartitionKey({"region": region, "source": source})
                requests_.append(dg.RunRequest(partition_key=key))
            cursor[source] = (wanted, held)
        return dg.SensorResult(run_requests=requests_, cursor=json.dumps(cursor))

    return follow


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
