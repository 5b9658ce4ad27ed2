"""What Dagster loads."""

import dagster as dg

from embedding_assets.assets import build_assets
from embedding_assets.automation.jobs import region_job, source_job
from embedding_assets.automation.reconciliation import before_the_daily_round, reconciliation_job
from embedding_assets.automation.schedules import daily
from embedding_assets.automation.sensors import region_log, run_failure_alert, source_sweep
from embedding_assets.automation.upkeep import hourly_upkeep, upkeep_job
from embedding_assets.deployment import Deployment
from embedding_assets.resources.progress import HarmlessProgress, LoggedProgress, ProgressDisplay
from embedding_assets.resources.snapshots import SnapshotIOManager
from embedding_assets.settings import current_settings, home


def build_defs(deployment: Deployment, progress: ProgressDisplay | None = None) -> dg.Definitions:
    """Fresh definitions for these settings."""
    settings = deployment.settings
    return dg.Definitions(
        assets=build_assets(settings),
        jobs=[source_job(), region_job(), reconciliation_job(), upkeep_job()],
        schedules=[*daily(settings), before_the_daily_round(), hourly_upkeep(settings)],
        sensors=[source_sweep(), *(region_log(region) for region in sorted(settings.regions)), run_failure_alert()],
        resources={
            "deployment": deployment,
            "snapshots": SnapshotIOManager(deployment),
            "progress": HarmlessProgress(progress or LoggedProgress()),
        },
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The project as its settings file, or the demo's defaults, describe it."""
    return build_defs(Deployment(current_settings(), home()))
