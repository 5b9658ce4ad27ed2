"""Commands that lead from one model to the next."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from embedding_assets.cli.shared import OUT, chosen, current_deployment, json_option, print_json, region_option
from embedding_assets.snapshots.slots import SLOTS, Slot

if TYPE_CHECKING:
    from embedding_assets.operations.deployment import Deployment
    from embedding_assets.operations.migration import Step, Version

_to_option = click.option("--to", type=click.Choice(SLOTS), help="The model of this slot.  [default: the one not live]")
_reason_option = click.option("--reason", metavar="TEXT", help="Why; it is recorded.")


@click.group()
def migration() -> None:
    """From one model to the next, without a failed query.

    \b
    bind the next model to the other slot, and materialize: it is filled beside the live one
    plan       what that takes, before anything is bought
    status     its gates: what has to be right before it may be live
    promote    makes it the live one; rollback is the same switch back
    retire     empties the slot of the model before, after the validation window
    """


@migration.command("plan")
@click.option("--to", type=click.Choice(SLOTS), required=True, help="The slot that the model is bound to.")
@json_option
def plan_(to: Slot, as_json: bool) -> None:
    """What the model of a slot takes before it is filled: nothing is bought, and nothing written.

    Bind it in the settings first. Texts that no part has a vector of yet are counted once each; their tokens, money and
    time at the quota; the bytes of a store, and of each region's table and index.

    With --json a list of {source, slot, model, chunks, texts, tokens, usd, hours, stored_bytes, table_bytes,
    index_bytes}; hours is null where the model has no quota.
    """
    from embedding_assets.cli import migrations_shown
    from embedding_assets.operations.plan import plan

    plans = list(plan(current_deployment(), to))
    print_json([one._asdict() for one in plans]) if as_json else OUT.print(migrations_shown.plans_table(plans))


@migration.command()
@_to_option
@region_option
@json_option
def status(to: Slot | None, region: str | None, as_json: bool) -> None:
    """The models of each region, and what keeps the next one from being live.

    A gate is green, red (promote refuses), or unknown. Those of a slot that is live already are what it would have to
    pass again. Exit code 1 while a gate is red.

    With --json a list of {region, source, gate, state, value, needed, why, cure}; source is empty where the gate is of
    the whole region; value, needed and cure are null where there is none.
    """
    from embedding_assets.cli import migrations_shown
    from embedding_assets.errors import PipelineError
    from embedding_assets.operations import migration as operations
    from embedding_assets.operations.gates import Gate, gates

    deployment = current_deployment()
    regions = chosen(region, deployment.settings.regions, "region")
    found: list[Gate] = []
    for name in regions:
        try:
            slot = to or operations.candidate(deployment, name)
        except PipelineError as error:
            found.append(Gate(name, "", "reachable", "unknown", None, None, str(error), None))
            continue
        if slot is not None:
            found += gates(deployment, name, slot)
    if as_json:
        print_json([gate.as_json() for gate in found])
    else:
        OUT.print(migrations_shown.versions_table(_versions(deployment, regions)))
        if found:
            OUT.print()
            OUT.print(migrations_shown.gates_table(found))
        else:
            OUT.print("One model is bound: bind the next one to the other slot, and materialize.")
    sys.exit(1 if any(gate.state == "red" for gate in found) else 0)


def _versions(deployment: "Deployment", regions: Sequence[str]) -> "Iterator[Version]":
    from embedding_assets.errors import PipelineError
    from embedding_assets.operations.migration import versions

    for name in regions:
        try:
            yield from versions(deployment, name)
        except PipelineError as error:
            OUT.print(f"{name}: {error}", markup=False, style="red")


@migration.command()
@region_option
@json_option
def history(region: str | None, as_json: bool) -> None:
    """What each region's registry was changed by: when, by which role, and why.

    With --json a list of {region, changed_at, role, change, slot, model, reason, evidence, forced}, oldest first;
    evidence are the gates as they were.
    """
    from embedding_assets.cli import migrations_shown
    from embedding_assets.operations.migration import changes

    deployment = current_deployment()
    found = [
        change for name in chosen(region, deployment.settings.regions, "region") for change in changes(deployment, name)
    ]
    print_json([change._asdict() for change in found]) if as_json else OUT.print(migrations_shown.changes_table(found))


@migration.command()
@click.option("--to", type=click.Choice(SLOTS), required=True, help="The slot whose model becomes the live one.")
@region_option
@click.option("--all", "everywhere", is_flag=True, help="All regions, one after the other.  [the default]")
@_reason_option
@click.option("--force", is_flag=True, help="Though a gate is red; it is recorded.")
@json_option
def promote(to: Slot, region: str | None, everywhere: bool, reason: str | None, force: bool, as_json: bool) -> None:
    """Make a model the live one: searches read it from then on.

    Refused while a gate is red in any of the regions, and says which. One transaction a region switches the view, the
    functions and the registry; readers wait for milliseconds. Region by region, stopping at the first that fails; the
    same command goes on from there.

    With --json a list of {region, did, failed, milliseconds}, the last being the most that readers waited.
    """
    from embedding_assets.operations.migration import promote as promoted

    if region is not None and everywhere:
        raise click.UsageError("say --region or --all, not both.")
    deployment = current_deployment()
    regions = chosen(region, deployment.settings.regions, "region")
    _tell(promoted(deployment, to, regions, reason=reason, force=force), as_json)


@migration.command()
@region_option
@_reason_option
@json_option
def rollback(region: str | None, reason: str | None, as_json: bool) -> None:
    """Undo the last promotion: the model before it is the live one again.

    The same switch back. With --json as promote.
    """
    from embedding_assets.operations.migration import roll_back

    deployment = current_deployment()
    _tell(roll_back(deployment, chosen(region, deployment.settings.regions, "region"), reason=reason), as_json)


@migration.command()
@click.argument("slot", type=click.Choice(SLOTS))
@region_option
@_reason_option
@click.option("--force", is_flag=True, help="Within the validation window, too; it is recorded.")
@json_option
def retire(slot: Slot, region: str | None, reason: str | None, force: bool, as_json: bool) -> None:
    """Empty SLOT, whose model is not live any more: its vectors and indexes go.

    Take its line out of the settings first. Refused within the validation window (migration: {validation_days: 7}),
    for a roll-back needs it. With --json as promote.
    """
    from embedding_assets.operations.migration import retire as retired

    deployment = current_deployment()
    regions = chosen(region, deployment.settings.regions, "region")
    _tell(retired(deployment, slot, regions, reason=reason, force=force), as_json)


def _tell(steps: "Iterable[Step]", as_json: bool) -> None:
    """Print each region's step as it comes. Exits with 1 where one failed."""
    done = []
    for step in steps:
        done.append(step)
        if not as_json:
            OUT.print(f"{step.region}: {step.did}", markup=False, style="red" if step.failed else "")
    if as_json:
        print_json([step._asdict() for step in done])
    sys.exit(1 if any(step.failed for step in done) else 0)
