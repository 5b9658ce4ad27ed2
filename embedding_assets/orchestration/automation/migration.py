"""From one model to the next from the UI: a job for each step, and a sensor that promotes by itself if that is set."""

from collections.abc import Iterable
from typing import Final

import dagster as dg
from pydantic import Field

from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.gates import gates
from embedding_assets.operations.migration import Step, candidate, promote, retire, roll_back
from embedding_assets.orchestration.resources.alerts import alert
from embedding_assets.snapshots.slots import SLOTS, Slot

PROMOTE_JOB: Final = "promote_model"
ROLL_BACK_JOB: Final = "roll_back_model"
RETIRE_JOB: Final = "retire_model"

_EACH_SECONDS: Final = 600


class PromoteConfig(dg.Config):
    """Which model becomes the live one."""

    to: str
    """The slot: v1 or v2."""
    regions: list[str] = Field(default_factory=list)
    """All where it is empty."""
    reason: str = ""
    force: bool = False
    """Though a gate is red; it is recorded."""


class RollBackConfig(dg.Config):
    """Where the last promotion is undone."""

    regions: list[str] = Field(default_factory=list)
    reason: str = ""


class RetireConfig(dg.Config):
    """Which slot is emptied."""

    slot: str
    """v1 or v2; the settings must not bind a model to it any more."""
    regions: list[str] = Field(default_factory=list)
    reason: str = ""
    force: bool = False
    """Within the validation window, too; it is recorded."""


@dg.op(name="promote")
def _promote(context: dg.OpExecutionContext, config: PromoteConfig, deployment: dg.ResourceParam[Deployment]) -> None:
    to, regions = _slot(config.to), _regions(deployment, config.regions)
    _tell(context, promote(deployment, to, regions, reason=config.reason or None, force=config.force))


@dg.op(name="roll_back")
def _roll_back(
    context: dg.OpExecutionContext, config: RollBackConfig, deployment: dg.ResourceParam[Deployment]
) -> None:
    _tell(context, roll_back(deployment, _regions(deployment, config.regions), reason=config.reason or None))


@dg.op(name="retire")
def _retire(context: dg.OpExecutionContext, config: RetireConfig, deployment: dg.ResourceParam[Deployment]) -> None:
    slot, regions = _slot(config.slot), _regions(deployment, config.regions)
    _tell(context, retire(deployment, slot, regions, reason=config.reason or None, force=config.force))


def migration_jobs() -> list[dg.JobDefinition]:
    """A job for each step; what is to be done stands in the run's config."""

    @dg.job(
        name=PROMOTE_JOB,
        description="Makes a model the live one, region by region, if no gate is red; as migration promote does.",
        executor_def=dg.in_process_executor,
    )
    def promote_model() -> None:
        _promote()

    @dg.job(
        name=ROLL_BACK_JOB,
        description="Undoes the last promotion: the same switch back; as the command migration rollback.",
        executor_def=dg.in_process_executor,
    )
    def roll_back_model() -> None:
        _roll_back()

    @dg.job(
        name=RETIRE_JOB,
        description="Empties the slot of a model that is not live any more; as the command migration retire.",
        executor_def=dg.in_process_executor,
    )
    def retire_model() -> None:
        _retire()

    return [promote_model, roll_back_model, retire_model]


def promotes_by_itself() -> dg.SensorDefinition:
    """Promotes a model whose gates are green in every region. In the definitions only where the settings say so."""

    @dg.sensor(
        name="promotes_by_itself",
        job_name=PROMOTE_JOB,
        minimum_interval_seconds=_EACH_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Promotes the model that is not live once every gate is green in all regions; never one back that "
        "was live before.",
    )
    def sensor(deployment: dg.ResourceParam[Deployment]) -> dg.RunRequest | dg.SkipReason:
        regions = sorted(deployment.settings.regions)
        try:
            slots = {candidate(deployment, region, never_live=True) for region in regions}
        except PipelineError as error:
            return dg.SkipReason(f"a region can't be asked: {error}")
        if len(slots) != 1 or None in slots:
            return dg.SkipReason("no region, or not every one, has a model that was never live yet")
        (to,) = slots
        assert to is not None
        waits = [gate for region in regions for gate in gates(deployment, region, to) if gate.state != "green"]
        if waits:
            return dg.SkipReason(f"{len(waits)} gates are not green, such as {waits[0]}")
        config = PromoteConfig(to=to, reason="every gate is green, and the settings say: promote automatically")
        return dg.RunRequest(
            f"{to}-{deployment.settings.models[to].name}", run_config=dg.RunConfig({"promote": config})
        )

    return sensor


def _slot(given: str) -> Slot:
    for slot in SLOTS:
        if slot == given:
            return slot
    raise dg.Failure(f"there is no slot {given!r}. Cure: write {' or '.join(SLOTS)}", allow_retries=False)


def _regions(deployment: Deployment, given: list[str]) -> list[str]:
    known = sorted(deployment.settings.regions)
    if unknown := sorted({*given} - {*known}):
        raise dg.Failure(
            f"there is no region {', '.join(map(repr, unknown))}. Cure: write some of {', '.join(known)}",
            allow_retries=False,
        )
    return sorted(given) or known


def _tell(context: dg.OpExecutionContext, steps: Iterable[Step]) -> None:
    done = list(steps)
    for step in done:
        (context.log.error if step.failed else context.log.info)(f"{step.region}: {step.did}")
    context.add_output_metadata(
        {
            "regions": dg.MetadataValue.table(
                records=[dg.TableRecord(step._asdict()) for step in done],
                schema=dg.TableSchema(columns=[dg.TableColumn(name) for name in Step._fields]),
            )
        }
    )
    if failed := [step for step in done if step.failed]:
        said = "; ".join(f"{step.region}: {step.did}" for step in failed)
        alert(context.log, f"{context.job_name}: {said}")
        raise dg.Failure(said, allow_retries=False)
