"""The daily question whether anything is behind: people are told of each partition that is, with its cure."""

from typing import Final

import dagster as dg

from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.orphans import forget_renamed
from embedding_assets.operations.watch import behind
from embedding_assets.orchestration.resources.alerts import ALERT_WEBHOOK, alert

WATCH_JOB: Final = "nothing_is_behind"


@dg.op(name="look")
def _look(context: dg.OpExecutionContext, deployment: dg.ResourceParam[Deployment]) -> None:
    for line in forget_renamed(deployment):
        context.log.info(line)
    problems = behind(deployment)
    context.add_output_metadata({"behind": len(problems)})
    if problems:
        alert(
            context.log, "\n".join([f"{len(problems)} things are behind, or of no source of the settings:", *problems])
        )
        raise dg.Failure(description="; ".join(problems), allow_retries=False)


def watch_job() -> dg.JobDefinition:
    """The job; its one step asks every region's store and database. It fails while anything is behind."""

    @dg.job(
        name=WATCH_JOB,
        description="Names each partition that is behind, and each source that is no longer in the settings, with its "
        f"cure: in the log, and by the URL in {ALERT_WEBHOOK}. Forgets the old names of renamed sources.",
        executor_def=dg.in_process_executor,
    )
    def nothing_is_behind() -> None:
        _look()

    return nothing_is_behind


def after_the_daily_round() -> dg.ScheduleDefinition:
    """Two hours after all regions were run."""
    return dg.ScheduleDefinition(
        name="daily_watch",
        job_name=WATCH_JOB,
        cron_schedule="0 6 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
