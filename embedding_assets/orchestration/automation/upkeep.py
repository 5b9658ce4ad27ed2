"""The hourly upkeep of the regions' tables and indexes, which works in the quiet hours alone."""

from collections.abc import Sequence
from typing import Final

import dagster as dg

from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.upkeep import UpkeepEntry, is_quiet, keep_up
from embedding_assets.settings.models import Settings
from embedding_assets.telemetry.log import waits_logged

UPKEEP_JOB: Final = "upkeep"

_TABLE_ROWS: Final = 50


class UpkeepConfig(dg.Config):
    """Of a run started by hand."""

    now: bool = False
    """Outside the quiet hours, too."""


@dg.op(name="keep_up")
def _keep_up(context: dg.OpExecutionContext, config: UpkeepConfig, deployment: dg.ResourceParam[Deployment]) -> None:
    if not (config.now or is_quiet(deployment)):
        context.log.info(f"Not in the quiet hours, {deployment.settings.quiet_hours} UTC: nothing was looked at.")
        return
    entries: list[UpkeepEntry] = []
    regions, tell = sorted(deployment.settings.regions), waits_logged(context.log.warning)
    for entry in keep_up(deployment, regions, lambda: config.now or is_quiet(deployment), tell):
        entries.append(entry)
        say = context.log.error if entry.failed else context.log.info
        say(f"{entry.region}|{entry.source or 'all sources'}: {entry.saw}. Did: {entry.did}.")
    context.add_output_metadata({"upkeep": _table(entries)})
    if failed := [entry for entry in entries if entry.failed]:
        raise dg.Failure(
            description="; ".join(f"{entry.region}|{entry.source or 'all sources'}: {entry.saw}" for entry in failed),
            metadata={"upkeep": _table(entries)},
            allow_retries=False,  # the next hour is the retry
        )


def _table(entries: Sequence[UpkeepEntry]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        records=[dg.TableRecord(entry._asdict()) for entry in entries[:_TABLE_ROWS]],
        schema=dg.TableSchema(columns=[dg.TableColumn(name) for name in UpkeepEntry._fields]),
    )


def upkeep_job() -> dg.JobDefinition:
    """The job; its one step talks to every region's database."""

    @dg.job(
        name=UPKEEP_JOB,
        description="Looks at every region's tables and indexes, and mends what needs it while readers go on: dead "
        "rows are vacuumed, bloated or drifted indexes rebuilt, leftovers dropped. In the quiet hours, or `now`.",
        executor_def=dg.in_process_executor,
    )
    def upkeep() -> None:
        _keep_up()

    return upkeep


def hourly_upkeep(settings: Settings) -> dg.ScheduleDefinition:
    """A run on each hour of the quiet hours."""

    @dg.schedule(
        name="hourly_upkeep",
        cron_schedule="0 * * * *",
        job_name=UPKEEP_JOB,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    def hourly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        at = context.scheduled_execution_time
        if not settings.quiet_hours.contains(at):
            return dg.SkipReason(f"{at:%H:%M} is not in the quiet hours, {settings.quiet_hours} UTC.")
        return dg.RunRequest(f"{at:%Y-%m-%dT%H}")

    return hourly
