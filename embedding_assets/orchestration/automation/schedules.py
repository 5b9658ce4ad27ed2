"""The daily round: everything is looked at once a day, whatever the sensors saw or missed; once a week it is read."""

from typing import Any

import dagster as dg

from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.orchestration.partitions import by_region_and_source, by_source
from embedding_assets.settings.models import Settings
from embedding_assets.snapshots.names import RAW_DOCS


def daily(settings: Settings) -> list[dg.ScheduleDefinition]:
    """All sources at 03:00 UTC, then every region and source at 04:00; what is current costs a look."""
    return [
        _every_partition("daily_sources", "0 3 * * *", SOURCE_JOB, by_source(settings)),
        _every_partition("daily_regions", "0 4 * * *", REGION_JOB, by_region_and_source(settings)),
    ]


def weekly(settings: Settings) -> dg.ScheduleDefinition:
    """All sources read to the last byte each Sunday, as the quiet hours begin: no mark tells everything."""
    begin = settings.quiet_hours.begin
    at = f"{begin.minute} {begin.hour} * * 0"
    reread = {"ops": {RAW_DOCS: {"config": {"reread": True}}}}
    return _every_partition("weekly_reread", at, SOURCE_JOB, by_source(settings), reread)


def _every_partition(
    name: str, cron: str, job: str, partitions: dg.PartitionsDefinition[str], config: dict[str, Any] | None = None
) -> dg.ScheduleDefinition:
    @dg.schedule(name=name, cron_schedule=cron, job_name=job, default_status=dg.DefaultScheduleStatus.RUNNING)
    def round_(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        day, keys = context.scheduled_execution_time.date(), partitions.get_partition_keys()
        return [dg.RunRequest(f"{day} {key}", partition_key=key, run_config=config) for key in keys]

    return round_
