"""The command that makes sources current."""

import sys

import click

from embedding_assets.cli.shared import (
    ERR,
    OUT,
    chosen,
    current_deployment,
    json_option,
    print_json,
    region_option,
    source_option,
)


@click.command()
@source_option
@region_option
@click.option("--allow-deletes", is_flag=True, help="Let a source lose more documents than its max_deleted.")
@click.option("--reread", is_flag=True, help="Read every file of the sources, also those that look unchanged.")
@json_option
def materialize(source: str | None, region: str | None, allow_deletes: bool, reread: bool, as_json: bool) -> None:
    """Bring sources up to date, then each region that is behind.

    A run for each source, and one for each region and source. A source that is as it was read last, and that every
    region serves so, has none: its files are looked at, not opened, and the stores' listings are compared. With
    --reread it has one; verify reads what the stores and tables hold.

    Exit code 1 if a run failed, or a check that does not merely warn.

    Every run is on the project's Dagster instance and shows in its UI. What is current is looked at, not done again.

    With --json a list of runs {partition, run_id, succeeded, seconds, metadata, checks, errors}: metadata by asset, and
    each check {asset, name, passed, blocking, severity, metadata, description}. A source that needs no run has no
    entry. A region whose database cannot be as the settings say, where no run has come upon it, is the partition of an
    entry whose run_id is empty.
    """
    from embedding_assets.cli import runs

    deployment = current_deployment()
    outcomes = runs.materialize(
        deployment,
        ERR if as_json else OUT,
        sources=chosen(source, deployment.settings.sources, "source"),
        regions=chosen(region, deployment.settings.regions, "region"),
        allow_deletes=allow_deletes,
        reread=reread,
    )
    if as_json:
        print_json([runs.outcome_json(outcome) for outcome in outcomes])
    sys.exit(0 if all(runs.is_well(outcome) for outcome in outcomes) else 1)
