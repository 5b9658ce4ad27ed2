"""Commands that keep stores, databases and this machine in order."""

import sys
from datetime import timedelta

import click

from embedding_assets.cli.shared import ERR, OUT, chosen, current_deployment, json_option, print_json, region_option
from embedding_assets.settings.home import home


@click.command()
@region_option
@click.option("--keep", type=click.IntRange(1), default=10, show_default=True, help="Snapshots kept of each log.")
@click.option("--grace-hours", type=click.IntRange(1), default=24, show_default=True, help="Nothing younger goes.")
@json_option
def gc(region: str | None, keep: int, grace_hours: int, as_json: bool) -> None:
    """Delete from the stores what no retained snapshot names.

    With --json what went, by region: {log_entries, set_aside, put_back, deleted, bytes}.
    """
    from embedding_assets.cli.terminal import counted
    from embedding_assets.snapshots.garbage import collect

    deployment = current_deployment()
    collected = {
        name: collect(deployment.store(name), keep=keep, grace=timedelta(hours=grace_hours))._asdict()
        for name in chosen(region, deployment.settings.regions, "region")
    }
    if as_json:
        print_json(collected)
    else:
        for name, what in collected.items():
            OUT.print(
                f"{name}: {counted(what['log_entries'], 'snapshot')} and {counted(what['deleted'], 'part')} deleted, "
                f"{counted(what['bytes'], 'byte')}. {counted(what['set_aside'], 'part')} set aside for the next time, "
                f"{what['put_back']:,} put back"
            )


@click.command()
@region_option
@json_option
def prepare(region: str | None, as_json: bool) -> None:
    """Bring databases to this version, and to the settings.

    Migrations, the search surface and the roles; then the models bound, the readers and the language. Every run does so
    by itself when it first comes upon a region: this is for what is to be done before new processes are started, such
    as an init container. What is so already is left alone. Exit code 1 if a region can't be so; the others are.

    With --json a list of {region, prepared, error}; error is null where it is prepared.
    """
    from embedding_assets.cli.terminal import printable
    from embedding_assets.errors import PipelineError
    from embedding_assets.telemetry.log import waits_logged

    deployment = current_deployment()
    errors: dict[str, str | None] = {}
    for name in chosen(region, deployment.settings.regions, "region"):
        try:
            deployment.prepare(name, waits_logged())
            errors[name] = None
        except PipelineError as error:
            errors[name] = str(error)
        if not as_json:
            outcome = printable(errors[name] or "prepared")
            OUT.print(f"{name}: {outcome}", markup=False, style="red" if errors[name] else "")
    if as_json:
        print_json([{"region": name, "prepared": not error, "error": error} for name, error in errors.items()])
    sys.exit(1 if any(errors.values()) else 0)


@click.command()
@click.argument("source")
@region_option
@click.option("--yes", is_flag=True, help="Without asking.")
@json_option
def forget(source: str, region: str | None, yes: bool, as_json: bool) -> None:
    """Remove all that regions have of SOURCE, an orphan.

    That is a source which the settings no longer have.
    Rows and dead letters, snapshots and parts, and this home's files of it. Readers see all of it or nothing. What it
    cost to make is gone: a rename is told by `renamed_from` in the settings instead. Called again after a crash it does
    the rest.

    With --json a list of sentences, one for each thing removed.
    """
    from embedding_assets.operations import orphans

    deployment = current_deployment()
    regions = chosen(region, deployment.settings.regions, "region")
    if not yes:
        for one in orphans.orphans(deployment, regions):
            if one.source == source:
                ERR.print(str(one), markup=False)
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to be asked. Cure: add --yes.")
        click.confirm(f"Remove all of {source} from {', '.join(regions)}?", abort=True, err=True)
    done = list(orphans.forget(deployment, source, regions))
    if as_json:
        print_json(done)
    else:
        for line in done or [f"nothing of a source {source} is left"]:
            OUT.print(line, markup=False)


@click.command()
@region_option
@click.option("--now", is_flag=True, help="Outside the quiet hours, too.")
@json_option
def upkeep(region: str | None, now: bool, as_json: bool) -> None:
    """Mend tables and indexes that need it, in the quiet hours.

    Readers go on meanwhile.
    Dead rows are vacuumed, bloated or drifted indexes rebuilt, what killed builds left is dropped. Vacuuming HNSW takes
    long: it repairs the graph. The schedule runs this each hour; exit code 1 if a region or source could not be kept
    up.

    With --json a list of {region, source, saw, did, failed}; source is empty where it concerns the whole region.
    """
    from embedding_assets.operations.upkeep import UpkeepEntry, is_quiet, keep_up
    from embedding_assets.telemetry.log import waits_logged

    deployment = current_deployment()
    regions = chosen(region, deployment.settings.regions, "region")
    done: list[UpkeepEntry] = []
    if now or is_quiet(deployment):
        for entry in keep_up(deployment, regions, lambda: now or is_quiet(deployment), waits_logged()):
            done.append(entry)
            if not as_json:
                line = f"{entry.region}|{entry.source or 'all sources'}: {entry.saw}. Did: {entry.did}."
                OUT.print(line, markup=False, style="red" if entry.failed else "")
    else:
        ERR.print(f"not in the quiet hours, {deployment.settings.quiet_hours} UTC: --now does it now", markup=False)
    if as_json:
        print_json([entry._asdict() for entry in done])
    sys.exit(1 if any(entry.failed for entry in done) else 0)


@click.command()
@json_option
def stop(as_json: bool) -> None:
    """Stop the embedded Postgres. It starts again by itself when it is needed."""
    from embedding_assets.pgvector import embedded

    embedded.stop(home())
    if as_json:
        print_json({"stopped": True})


@click.command("dagster-home")
@json_option
def dagster_home(as_json: bool) -> None:
    """Make and print the DAGSTER_HOME of this project's runs."""
    from embedding_assets.orchestration.driver import dagster_home as prepare

    folder = prepare(home())
    print_json({"dagster_home": str(folder)}) if as_json else click.echo(folder)
