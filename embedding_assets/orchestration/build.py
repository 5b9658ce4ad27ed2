"""The whole of it for Dagster: assets, jobs, schedules, sensors and resources of one deployment."""

import dagster as dg

from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.assets import build_assets
from embedding_assets.orchestration.automation.jobs import region_job, source_job
from embedding_assets.orchestration.automation.migration import migration_jobs, promotes_by_itself
from embedding_assets.orchestration.automation.reconciliation import before_the_daily_round, reconciliation_job
from embedding_assets.orchestration.automation.schedules import daily, weekly
from embedding_assets.orchestration.automation.sensors import region_log, run_failure_alert, source_sweep
from embedding_assets.orchestration.automation.upkeep import hourly_upkeep, upkeep_job
from embedding_assets.orchestration.automation.watch import after_the_daily_round, watch_job
from embedding_assets.orchestration.resources.progress import ProgressDisplay, Telemetry
from embedding_assets.orchestration.resources.snapshots import SnapshotIOManager


def build_defs(deployment: Deployment, progress: ProgressDisplay | None = None) -> dg.Definitions:
    """Fresh definitions for these settings."""
    settings = deployment.settings
    return dg.Definitions(
        assets=build_assets(settings),
        jobs=[source_job(), region_job(), reconciliation_job(), upkeep_job(), watch_job(), *migration_jobs()],
        schedules=[
            *daily(settings),
            weekly(settings),
            before_the_daily_round(),
            hourly_upkeep(settings),
            after_the_daily_round(),
        ],
        sensors=[
            source_sweep(),
            *(region_log(region) for region in sorted(settings.regions)),
            run_failure_alert(),
            *([promotes_by_itself()] if settings.migration.promote == "automatically" else []),
        ],
        resources={
            "deployment": deployment,
            "snapshots": SnapshotIOManager(deployment),
            "telemetry": Telemetry(progress),
        },
        executor=dg.in_process_executor,
    )
