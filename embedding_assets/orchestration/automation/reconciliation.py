"""The daily reconciliation of the dead letters: what may heal is tried again, people are told of the rest."""

from functools import partial
from typing import Final

import dagster as dg

from embedding_assets.operations.dead_letters import reconcile
from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.resources.alerts import ALERT_WEBHOOK, alert

RECONCILIATION_JOB: Final = "reconcile_dead_letters"


@dg.op(name="reconcile")
def _reconcile(context: dg.OpExecutionContext, deployment: dg.ResourceParam[Deployment]) -> None:
    reconciled = reconcile(deployment, partial(alert, context.log))
    context.log.info(
        f"{reconciled.replayed} to be tried again by the sources' next runs, {reconciled.escalated} told to people"
    )
    context.add_output_metadata(reconciled._asdict())


def reconciliation_job() -> dg.JobDefinition:
    """The job; its one step talks to the primary region's database alone."""

    @dg.job(
        name=RECONCILIATION_JOB,
        description="Has what may heal tried again by the sources' next runs, and tells people of the rest: "
        f"in the log, and by the URL in {ALERT_WEBHOOK}.",
        executor_def=dg.in_process_executor,
    )
    def reconcile_dead_letters() -> None:
        _reconcile()

    return reconcile_dead_letters


def before_the_daily_round() -> dg.ScheduleDefinition:
    """An hour before all sources run, which then try again what was marked."""
    return dg.ScheduleDefinition(
        name="daily_reconciliation",
        job_name=RECONCILIATION_JOB,
        cron_schedule="0 2 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
