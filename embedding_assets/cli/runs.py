"""`materialize`: every run shown as it ends."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from embedding_assets.cli import run_display, terminal
from embedding_assets.cli.screen import Screen
from embedding_assets.errors import PipelineError
from embedding_assets.operations import orphans
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.regions import ask
from embedding_assets.operations.status import is_current
from embedding_assets.orchestration import driver
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.telemetry.log import waits_logged


def materialize(
    deployment: Deployment,
    screen: Screen,
    *,
    sources: Sequence[str],
    regions: Sequence[str],
    allow_deletes: bool = False,
    reread: bool = False,
) -> list[Outcome]:
    """Bring everything that is stale up to date, and show each run as it ends.

    A region whose database was away, or cannot be as the settings say, fails last and by itself, as an outcome without
    a run, where no run of it has had the same trouble or has found it gone.
    """
    refused: list[Outcome] = []
    for region in regions:
        # Who may read what follows the settings now, also where nothing is stale.
        start = time.monotonic()
        try:
            deployment.prepare(region, waits_logged())
        except PipelineError as error:
            refused.append(Outcome(region, "", succeeded=False, seconds=time.monotonic() - start, errors=[str(error)]))
    outcomes: list[Outcome] = []
    with driver.open_instance(deployment.home) as instance, run_display.progress_bars(screen) as bars:
        for outcome in driver.materialize(
            deployment,
            instance,
            sources=sources,
            regions=regions,
            is_current=lambda region, source: is_current(deployment, region, source),
            allow_deletes=allow_deletes,
            reread=reread,
            progress=bars,
        ):
            bars.print(run_display.outcome_line(outcome))
            outcomes.append(outcome)
    were_run = {outcome.partition.partition("|")[0] for outcome in outcomes if "|" in outcome.partition}
    outcomes += [outcome for outcome in refused if outcome.partition not in were_run]
    if all(outcome.succeeded for outcome in outcomes):
        for line in orphans.forget_renamed(deployment):
            screen.print(line, markup=False)
    for trouble in run_display.troubles(outcomes):
        screen.print(trouble)
    if set(sources) == deployment.settings.sources.keys():
        for finding in orphans.findings(deployment, [ask(deployment, region, []) for region in regions]):
            screen.print(terminal.printable(finding), markup=False, style="yellow")
    return outcomes


def is_well(outcome: Outcome) -> bool:
    """Whether the run succeeded and no check failed that does not merely warn."""
    return outcome.succeeded and all(check.passed or check.severity == "WARN" for check in outcome.checks)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """A run as `materialize --json` prints it; pictures and tables are for the UI."""
    figures = {
        asset: {name: value for name, value in metadata.items() if _is_printed(value)}
        for asset, metadata in outcome.metadata.items()
    }
    return asdict(replace(outcome, metadata=figures))


def _is_printed(value: object) -> bool:
    return isinstance(value, str | int | float) and "base64," not in str(value)
