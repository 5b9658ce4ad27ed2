"""The command `embedding-assets`. Every command has `--json`; exit codes: 0 done, 1 something is wrong, 2 wrong use."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import click

from embedding_assets.deployment import Deployment
from embedding_assets.errors import PipelineError
from embedding_assets.screen import Screen
from embedding_assets.settings import current_settings, home

if TYPE_CHECKING:
    from embedding_assets.pgvector.dead_letters import DeadLetter

_out, _err = Screen(), Screen(stderr=True)


def main() -> None:
    """Entry point: an error of the pipeline is a sentence on stderr and exit code 1, not a traceback."""
    try:
        cli()
    except PipelineError as error:
        _err.print("error:", style="bold red", end=" ")
        _err.print(str(error), markup=False)
        sys.exit(1)


def _deployment() -> Deployment:
    return Deployment(current_settings(), home())


def _chosen(given: str | None, known: Mapping[str, object], what: str) -> list[str]:
    if given is not None and given not in known:
        raise click.UsageError(f"there is no {what} {given!r}: the settings have {', '.join(sorted(known))}.")
    return [given] if given is not None else sorted(known)


def _print_json(value: object) -> None:
    # Escaped where the locale's encoding lacks characters: JSON has no question marks for them.
    click.echo(json.dumps(value, indent=2, ensure_ascii=not _out.encoding.startswith("utf"), default=str))


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON with stable fields instead of text.")
_source = click.option("--source", metavar="S", help="Only this source.  [default: all]")
_region = click.option("--region", metavar="R", help="Only this region.  [default: all]")
_one_region = click.option("--region", metavar="R", help="In this region.  [default: the primary]")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Keep every region's pgvector search table in step with document sources.

    \b
    Settings     EMBEDDING_ASSETS_CONFIG, a YAML file; without it the demo's two sources and two regions
    Local files  EMBEDDING_ASSETS_HOME, by default .embedding_assets/ in the project
    Exit codes   0 done; 1 something failed or differs; 2 wrong use
    """


@cli.command()
@_source
@_region
@click.option("--allow-deletes", is_flag=True, help="Let a source lose more documents than its max_deleted.")
@_json
def materialize(source: str | None, region: str | None, allow_deletes: bool, as_json: bool) -> None:
    """Bring sources up to date: a run for each, then one for each region that is behind.

    Every run is on the project's Dagster instance and shows in its UI. What is current is looked at, not done again.

    With --json a list of runs {partition, run_id, succeeded, seconds, metadata, checks, errors}: metadata by asset, and
    each check {asset, name, passed, blocking, severity, metadata, description}.
    """
    from embedding_assets import operations

    deployment = _deployment()
    outcomes = operations.materialize(
        deployment,
        _err if as_json else _out,
        sources=_chosen(source, deployment.settings.sources, "source"),
        regions=_chosen(region, deployment.settings.regions, "region"),
        allow_deletes=allow_deletes,
    )
    if as_json:
        _print_json([operations.outcome_json(outcome) for outcome in outcomes])
    sys.exit(0 if all(outcome.succeeded for outcome in outcomes) else 1)


@cli.command()
@_source
@_region
@_json
def status(source: str | None, region: str | None, as_json: bool) -> None:
    """What each region serves of each source, and how far it is behind. Exit code 1 if a region can't be asked.

    With --json a list of {source, region, snapshot, documents, chunks, rejected, root, rows, live_model, index,
    current, degraded, lag_seconds, error}: snapshot to rejected as the primary has them, root and rows as the region
    serves them, index one of valid, invalid and none, degraded a sentence where recall is below the target, lag_seconds
    null where nothing was ever materialized.
    """
    from embedding_assets import terminal
    from embedding_assets.status import status as look

    deployment = _deployment()
    rows = look(
        deployment,
        _chosen(source, deployment.settings.sources, "source"),
        _chosen(region, deployment.settings.regions, "region"),
    )
    if as_json:
        _print_json([row.model_dump() for row in rows])
    else:
        _out.print(terminal.status_table(rows))
        for note in terminal.status_notes(rows):
            _out.print(note)
    sys.exit(1 if any(row.error for row in rows) else 0)


@cli.command()
@click.argument("text")
@_one_region
@_source
@click.option("-k", "k", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many.")
@click.option("--filter", "filter_json", default="{}", help="Only chunks whose metadata contain this JSON object.")
@click.option("--hybrid", is_flag=True, help="By the words of TEXT as well; the settings must enable it.")
@_json
def search(
    text: str, region: str | None, source: str | None, k: int, filter_json: str, hybrid: bool, as_json: bool
) -> None:
    """The chunks nearest to TEXT by the region's live model.

    With --json a list of {source, document_id, ordinal, content, metadata, distance}, nearest first; the distance is
    the cosine distance, from 0 to 2. With --hybrid also score, the highest first.
    """
    from embedding_assets import operations, terminal

    deployment = _deployment()
    if source is not None:
        _chosen(source, deployment.settings.sources, "source")
    place = _chosen(region or deployment.settings.primary_region, deployment.settings.regions, "region")[0]
    try:
        wanted = json.loads(filter_json)
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise click.UsageError('--filter takes a JSON object, such as \'{"team": "billing"}\'.')
    hits = operations.search(deployment, place, text, k=k, source=source, filter=wanted, hybrid=hybrid)
    if as_json:
        _print_json(hits)
    else:
        _out.print(terminal.hits_table(hits))


@cli.command()
@_source
@_region
@click.option("--repair", is_flag=True, help="Mend first what can be mended, and say what was.")
@_json
def verify(source: str | None, region: str | None, repair: bool, as_json: bool) -> None:
    """Read everything again and name what differs: parts, logs, tables. Exit code 1 if anything does.

    \b
    With --repair, while readers go on:
    parts of a replica, missing or damaged    copied from the primary again
    shards whose rows differ                  replaced by the replica's rows
    indexes, missing or invalid               built again
    What it cannot mend, such as a damaged part of the primary, is named with its cure.

    With --json {differences}, a sentence each; with --repair {repaired, differences}.
    """
    from embedding_assets import operations

    deployment = _deployment()
    sources = _chosen(source, deployment.settings.sources, "source")
    regions = _chosen(region, deployment.settings.regions, "region")
    repaired = operations.repair(deployment, sources, regions) if repair else []
    differences = operations.verify(deployment, sources, regions)
    if as_json:
        _print_json({"repaired": repaired, "differences": differences} if repair else {"differences": differences})
    else:
        for line in (*repaired, *differences):
            _out.print(line, markup=False)
        _out.print("everything is as recorded" if not differences else f"{len(differences)} differences")
    sys.exit(1 if differences else 0)


@cli.group("dead-letters")
def dead_letters() -> None:
    """Documents and chunks that could not be processed: what, why, and what becomes of them.

    \b
    pending    nobody looked at it yet; the daily reconciliation does
    replayed   the source's next run tries it again
    escalated  people were told
    resolved   it is gone, or somebody accepts that it stays out
    """


_letters = click.argument("ids", metavar="ID...", nargs=-1, type=int, required=True)


@dead_letters.command("list")
@_source
@click.option("--all", "with_resolved", is_flag=True, help="The resolved ones as well.")
@_json
def list_letters(source: str | None, with_resolved: bool, as_json: bool) -> None:
    """Every dead letter that is not resolved, seen last first.

    With --json a list of {id, source, stage, model_version, item, document_id, chunk_id, payload, error_class, message,
    attempts, replays, state, standing, first_seen, last_seen}: payload says where it can be read, standing whether the
    last run still found it dead.
    """
    from embedding_assets import dead_letters as letters

    found = letters.listed(_deployment(), source, [*letters.OPEN, "resolved"] if with_resolved else letters.OPEN)
    _print_letters(found, as_json)


@dead_letters.command("show")
@click.argument("letter_id", metavar="ID", type=int)
@_json
def show_letter(letter_id: int, as_json: bool) -> None:
    """One dead letter, and the text that it is about if the store has it.

    With --json the letter's fields and `text`.
    """
    from embedding_assets import dead_letters as letters
    from embedding_assets import terminal

    shown = letters.show(_deployment(), letter_id)
    if as_json:
        _print_json(shown.letter._asdict() | {"text": shown.text})
    else:
        _out.print(terminal.letter_details(shown.letter, shown.text))


@dead_letters.command("replay")
@_letters
@_json
def replay_letters(ids: tuple[int, ...], as_json: bool) -> None:
    """Have the next run of their source try these again: `embedding-assets materialize` runs it now."""
    _mark_letters(ids, "replayed", as_json)


@dead_letters.command("resolve")
@_letters
@_json
def resolve_letters(ids: tuple[int, ...], as_json: bool) -> None:
    """Accept that these stay out of search: they no longer count in the checks."""
    _mark_letters(ids, "resolved", as_json)


def _mark_letters(ids: tuple[int, ...], state: Literal["replayed", "resolved"], as_json: bool) -> None:
    from embedding_assets import dead_letters as letters

    _print_letters(letters.mark(_deployment(), ids, state), as_json)


def _print_letters(found: "Sequence[DeadLetter]", as_json: bool) -> None:
    from embedding_assets import terminal

    if as_json:
        _print_json([letter._asdict() for letter in found])
    elif found:
        _out.print(terminal.letters_table(found))
    else:
        _out.print("no dead letters")


@cli.command()
@click.option("--region", metavar="R", help="Of this region.  [default: the primary]")
@_json
def dsn(region: str | None, as_json: bool) -> None:
    """How to connect to a region's database: psql "$(embedding-assets dsn --region R)".

    A password that the settings have is part of it. With --json {region, dsn}.
    """
    deployment = _deployment()
    place = _chosen(region or deployment.settings.primary_region, deployment.settings.regions, "region")[0]
    uri = deployment.dsn(place)
    _print_json({"region": place, "dsn": uri}) if as_json else click.echo(uri)


@cli.command()
@_region
@click.option("--keep", type=click.IntRange(1), default=10, show_default=True, help="Snapshots kept of each log.")
@click.option("--grace-hours", type=click.IntRange(1), default=24, show_default=True, help="Nothing younger goes.")
@_json
def gc(region: str | None, keep: int, grace_hours: int, as_json: bool) -> None:
    """Delete from the stores what no retained snapshot names.

    With --json what went, by region: {log_entries, parts, bytes}.
    """
    from embedding_assets.snapshots.garbage import collect

    deployment = _deployment()
    collected = {
        name: collect(deployment.store(name), keep=keep, grace=timedelta(hours=grace_hours))._asdict()
        for name in _chosen(region, deployment.settings.regions, "region")
    }
    if as_json:
        _print_json(collected)
    else:
        for name, what in collected.items():
            _out.print(f"{name}: {what['log_entries']} snapshots and {what['parts']} parts, {what['bytes']:,} bytes")


@cli.command()
@_region
@click.option("--now", is_flag=True, help="Outside the quiet hours, too.")
@_json
def upkeep(region: str | None, now: bool, as_json: bool) -> None:
    """Look at the regions' tables and indexes, and mend what needs it, while readers go on; in the quiet hours.

    Dead rows are vacuumed, bloated or drifted indexes rebuilt, what killed builds left is dropped. Vacuuming HNSW takes
    long: it repairs the graph. The schedule runs this each hour; exit code 1 if a region or source could not be kept
    up.

    With --json a list of {region, source, saw, did, failed}; source is empty where it concerns the whole region.
    """
    from embedding_assets.upkeep import Upkept, is_quiet, keep_up

    deployment = _deployment()
    regions = _chosen(region, deployment.settings.regions, "region")
    done: list[Upkept] = []
    if now or is_quiet(deployment):
        for entry in keep_up(deployment, regions, lambda: now or is_quiet(deployment)):
            done.append(entry)
            if not as_json:
                line = f"{entry.region}|{entry.source or 'all sources'}: {entry.saw}. Did: {entry.did}."
                _out.print(line, markup=False, style="red" if entry.failed else "")
    else:
        _err.print(f"not in the quiet hours, {deployment.settings.quiet_hours} UTC: --now does it now", markup=False)
    if as_json:
        _print_json([entry._asdict() for entry in done])
    sys.exit(1 if any(entry.failed for entry in done) else 0)


@cli.command()
@_json
def demo(as_json: bool) -> None:
    """Real documents of this machine, searchable in two regions: input, all seven assets, checks, searches."""
    from embedding_assets import demo as show

    report = show.run(home(), _err if as_json else _out)
    if as_json:
        _print_json(report)
    sys.exit(0 if report["succeeded"] else 1)


@cli.command()
@_json
def stop(as_json: bool) -> None:
    """Stop the embedded Postgres. It starts again by itself when it is needed."""
    from embedding_assets.pgvector import embedded

    embedded.stop(home())
    if as_json:
        _print_json({"stopped": True})


@cli.command("dagster-home")
@_json
def dagster_home(as_json: bool) -> None:
    """Make and print the DAGSTER_HOME that this project's runs are recorded in."""
    from embedding_assets.driver import dagster_home as prepare

    folder = prepare(home())
    _print_json({"dagster_home": str(folder)}) if as_json else click.echo(folder)
