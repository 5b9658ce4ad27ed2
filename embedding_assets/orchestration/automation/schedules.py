"""The daily round: everything is looked at once a day, whatever the sensors saw or missed."""

import dagster as dg

from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.orchestration.partitions import by_region_and_source, by_source
from embedding_assets.settings.models import Settings


def daily(settings: Settings) -> list[dg.ScheduleDefinition]:
    """All sources at 03:00 UTC, then every region and source at 04:00; what is current costs a look."""
    return [
        _every_partition("daily_sources", "0 3 * * *", SOURCE_JOB, by_source(settings)),
        _every_partition("daily_regions", "0 4 * * *", REGION_JOB, by_region_and_source(settings)),
    ]


def _every_partition(name: str, cron: str, job: str, partitions: dg.PartitionsDefinition[str]) -> dg.ScheduleDefinition:
    @dg.schedule(name=name, cron_schedule=cron, job_name=job, default_status=dg.DefaultScheduleStatus.RUNNING)
    def round_(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        day = context.scheduled_execution_time.date()
        return [dg.RunRequest(f"{day} {key}", partition_key=key) for key in partitions.get_partition_keys()]

    return round_
