"""`materialize`: every run shown as it ends."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rich.text import Text

from embedding_assets.cli import terminal
from embedding_assets.cli.screen import Screen
from embedding_assets.errors import PipelineError
from embedding_assets.operations import orphans
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.regions import ask
from embedding_assets.operations.status import is_current
from embedding_assets.operations.unchanged import unchanged
from embedding_assets.sources.stage import Looked
from embedding_assets.telemetry.log import waits_logged

if TYPE_CHECKING:
    from embedding_assets.orchestration.driver import Outcome


def materialize(
    deployment: Deployment,
    screen: Screen,
    *,
    sources: Sequence[str],
    regions: Sequence[str],
    allow_deletes: bool = False,
    reread: bool = False,
) -> "list[Outcome]":
    """Bring everything that is stale up to date, and show each run as it ends; a source for which nothing is to be done
    has a line and no run, unless all is to be read.

    A region whose database was away, or cannot be as the settings say, fails last and by itself, as an outcome without
    a run, where no run of it has had the same trouble or has found it gone.
    """
    refused: list[tuple[str, float, PipelineError]] = []
    for region in regions:
        # Who may read what follows the settings now, also where nothing is stale.
        start = time.monotonic()
        try:
            deployment.prepare(region, waits_logged())
        except PipelineError as error:
            refused.append((region, time.monotonic() - start, error))
    asked = [ask(deployment, region, sources) for region in regions]
    settled = {} if reread or refused else dict(unchanged(deployment, sources, asked))
    for source, looked in settled.items():
        screen.print(_unchanged_line(source, looked), markup=False)
    outcomes: list[Outcome] = []
    if stale := [source for source in sources if source not in settled]:
        outcomes = _run(deployment, screen, stale, regions, refused, allow_deletes=allow_deletes, reread=reread)
        asked = []  # it is not so any more
    if all(outcome.succeeded for outcome in outcomes):
        for line in orphans.forget_renamed(deployment):
            screen.print(line, markup=False)
            asked = []
    for trouble in troubles(outcomes):
        screen.print(trouble)
    if set(sources) == deployment.settings.sources.keys():
        asked = asked or [ask(deployment, region, []) for region in regions]
        for finding in orphans.findings(deployment, asked):
            screen.print(terminal.printable(finding), markup=False, style="yellow")
    return outcomes


def _run(
    deployment: Deployment,
    screen: Screen,
    sources: Sequence[str],
    regions: Sequence[str],
    refused: Sequence[tuple[str, float, PipelineError]],
    **options: bool,
) -> "list[Outcome]":
    # Imported here: where nothing changed nobody waits for Dagster.
    from embedding_assets.cli import run_display
    from embedding_assets.orchestration import driver

    outcomes: list[Outcome] = []
    with driver.open_instance(deployment.home) as instance, run_display.progress_bars(screen) as bars:
        for outcome in driver.materialize(
            deployment,
            instance,
            sources=sources,
            regions=regions,
            is_current=lambda region, source: is_current(deployment, region, source),
            progress=bars,
            **options,
        ):
            bars.print(run_display.outcome_line(outcome))
            outcomes.append(outcome)
    were_run = {outcome.partition.partition("|")[0] for outcome in outcomes if "|" in outcome.partition}
    return outcomes + [
        driver.Outcome(region, "", succeeded=False, seconds=seconds, errors=[str(error)])
        for region, seconds, error in refused
        if region not in were_run
    ]


def _unchanged_line(source: str, looked: Looked) -> str:
    first = f" ({', '.join(looked.passed_over_first)})" if looked.passed_over else ""
    passed_over = f", {looked.passed_over:,} passed over{first}" if looked.passed_over else ""
    line = f"= {source:<24} nothing changed: {terminal.counted(looked.items, 'item')}{passed_over}"
    return terminal.printable(line)


def is_well(outcome: "Outcome") -> bool:
    """Whether the run succeeded and no check failed that does not merely warn."""
    return outcome.succeeded and all(check.passed or check.severity == "WARN" for check in outcome.checks)


def outcome_json(outcome: "Outcome") -> dict[str, Any]:
    """A run as `materialize --json` prints it; pictures and tables are for the UI."""
    figures = {
        asset: {name: value for name, value in metadata.items() if _is_printed(value)}
        for asset, metadata in outcome.metadata.items()
    }
    return asdict(replace(outcome, metadata=figures))


def _is_printed(value: object) -> bool:
    return isinstance(value, str | int | float) and "base64," not in str(value)


def troubles(outcomes: "Sequence[Outcome]") -> list[Text]:
    """What went wrong, a sentence each: errors in red, warnings in yellow."""
    sentences = [Text(f"{outcome.partition}: {error}", "red") for outcome in outcomes for error in outcome.errors]
    for outcome in outcomes:
        for check in outcome.checks:
            if not check.passed:
                warns = check.severity == "WARN"
                figures = check.description or ", ".join(f"{name} {value}" for name, value in check.metadata.items())
                line = (
                    f"{outcome.partition}: check {check.asset}/{check.name} {'warns' if warns else 'failed'}: {figures}"
                )
                sentences.append(Text(line, "yellow" if warns else "red"))
    return sentences
