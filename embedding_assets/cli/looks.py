"""Commands that look and change nothing, `verify --repair` aside."""

import json
import sys

import click

from embedding_assets.cli.shared import (
    OUT,
    chosen,
    current_deployment,
    json_option,
    one_region_option,
    print_json,
    region_option,
    source_option,
)


@click.command()
@source_option
@region_option
@click.option(
    "--max-lag", metavar="SECONDS", type=click.IntRange(0), default=0, help="Behind by less is no error.  [default: 0]"
)
@json_option
def status(source: str | None, region: str | None, max_lag: int, as_json: bool) -> None:
    """What each region serves, and how far it is behind.

    Exit code 1 if anything is behind, by more than --max-lag, or can't be asked. A source is behind, too, that could
    not be read when that was last tried, that a guard has stopped, or of which a store has lost a file; one that rots
    and keeps its size is for verify to find. An orphan is a source that a region has something of, and the settings do
    not.

    With --json a list of {source, region, snapshot, documents, chunks, rejected, root, rows, live_model, index,
    current, orphan, degraded, lag_seconds, looked_at, unsaid, problem, error}: snapshot to rejected as the primary has
    them, root and rows as the region serves them, index one of valid, invalid and none, orphan whether the settings
    lack the source, degraded a sentence where recall is below the target, unsaid one where row-level security is on in
    the region's database and the settings do not say so, lag_seconds null where nothing was ever materialized,
    looked_at when the source was last read, problem a sentence where its newest documents are not in the
    primary, or files of it are lost.
    """
    from embedding_assets.cli import terminal
    from embedding_assets.operations import orphans
    from embedding_assets.operations.regions import ask
    from embedding_assets.operations.status import is_behind, of_regions

    deployment = current_deployment()
    sources = chosen(source, deployment.settings.sources, "source")
    regions = [ask(deployment, name, sources) for name in chosen(region, deployment.settings.regions, "region")]
    rows = of_regions(deployment, sources, regions)
    if source is None:
        rows += orphans.status_rows(deployment, regions)
    if as_json:
        print_json([row.model_dump() for row in rows])
    else:
        OUT.print(terminal.status_table(rows))
        for note in terminal.status_notes(rows):
            OUT.print(note)
    sys.exit(1 if any(row.error or is_behind(row, max_lag) for row in rows) else 0)


@click.command()
@click.argument("text")
@one_region_option
@source_option
@click.option("-k", "k", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many.")
@click.option("--filter", "filter_json", default="{}", help="Only chunks whose metadata contain this JSON object.")
@click.option("--hybrid", is_flag=True, help="By the words of TEXT as well; the settings must enable it.")
@json_option
def search(
    text: str, region: str | None, source: str | None, k: int, filter_json: str, hybrid: bool, as_json: bool
) -> None:
    """The chunks nearest to TEXT by the region's live model.

    With --json a list of {source, document_id, ordinal, content, metadata, distance}, nearest first; the distance is
    the cosine distance, from 0 to 2. With --hybrid also score, the highest first.
    """
    from embedding_assets.cli import terminal
    from embedding_assets.operations import search

    deployment = current_deployment()
    if source is not None:
        chosen(source, deployment.settings.sources, "source")
    place = chosen(region or deployment.settings.primary_region, deployment.settings.regions, "region")[0]
    try:
        wanted = json.loads(filter_json)
        json.dumps(wanted, ensure_ascii=False).encode()  # half a character, as "\\ud800", is none
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise click.UsageError('--filter takes a JSON object, such as \'{"team": "billing"}\'.')
    hits = search.search(deployment, place, text, k=k, source=source, filter=wanted, hybrid=hybrid)
    if as_json:
        print_json(hits)
    else:
        OUT.print(terminal.hits_table(hits, narrow=OUT.is_terminal))


@click.command()
@source_option
@region_option
@click.option("--repair", is_flag=True, help="Mend first what can be mended, and say what was.")
@json_option
def verify(source: str | None, region: str | None, repair: bool, as_json: bool) -> None:
    """Read everything again and name what differs.

    Parts, logs, tables. Exit code 1 if anything does.

    \b
    With --repair, while readers go on:
    parts of a replica, missing or damaged    copied from the primary again
    a replica that is lost or behind          replicated
    shards whose rows differ                  replaced by the replica's rows
    indexes, missing or invalid               built again
    What it cannot mend is named with its cure.

    With --json {differences}, a list of {kind, source, region, asset, path, shard, what, cure}; path and shard are null
    where it is not about one. With --repair {repaired, differences}, repaired a list of {source, region, did, failed,
    findings}, findings being what it was done about, as differences are what is left.
    """
    from embedding_assets.cli import terminal
    from embedding_assets.operations import orphans, verification
    from embedding_assets.operations.findings import Repair
    from embedding_assets.operations.regions import ask
    from embedding_assets.telemetry.log import waits_logged

    deployment = current_deployment()
    sources = chosen(source, deployment.settings.sources, "source")
    regions = chosen(region, deployment.settings.regions, "region")
    repairs: list[Repair] = []
    if repair:
        repairs, left = verification.verify_and_repair(deployment, sources, regions, waits_logged())
    else:
        left = verification.verify(deployment, sources, regions)
    if source is None:
        left += orphans.findings(deployment, [ask(deployment, name, []) for name in regions])
    if as_json:
        repaired = {"repaired": [done.as_json() for done in repairs]} if repair else {}
        print_json({**repaired, "differences": [finding.as_json() for finding in left]})
    else:
        for line in (*map(str, repairs), *map(str, left)):
            OUT.print(line, markup=False)
        OUT.print("everything is as recorded" if not left else terminal.counted(len(left), "difference"))
    sys.exit(1 if left else 0)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Name all that a run lacks at once, each with its cure.

    Exit code 1 if anything is missing.

    The locale, the home and its disk, keys, sources, stores (read, write, clock), databases (pgvector and its version,
    encoding, rights, migrations, clock). Nothing is changed.

    With --json a list of {what, well, trouble, cure}; trouble and cure are null where all is well.
    """
    from embedding_assets.cli.terminal import printable
    from embedding_assets.operations.doctor import examine

    examined = []
    for one in examine(current_deployment()):
        examined.append(one)
        if not as_json:
            verdict = "well" if one.well else f"{one.trouble}. Cure: {one.cure}"
            OUT.print(f"{one.what}: {printable(verdict)}", markup=False, style="" if one.well else "red")
    if as_json:
        print_json([one._asdict() for one in examined])
    sys.exit(0 if all(one.well for one in examined) else 1)


@click.command()
@click.option("--region", metavar="R", help="Of this region.  [default: the primary]")
@json_option
def dsn(region: str | None, as_json: bool) -> None:
    """How to connect to a region's database.

    As in: psql "$(embedding-assets dsn --region R)".
    A password that the settings have is part of it. With --json {region, dsn}.
    """
    deployment = current_deployment()
    place = chosen(region or deployment.settings.primary_region, deployment.settings.regions, "region")[0]
    uri = deployment.dsn(place)
    print_json({"region": place, "dsn": uri}) if as_json else click.echo(uri)
