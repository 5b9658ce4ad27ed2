"""The demo: real documents of this machine, made searchable in two regions, and what that took."""

import time
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from embedding_assets.cli import runs, terminal
from embedding_assets.cli.screen import Screen
from embedding_assets.demo.input import write_demo_input
from embedding_assets.operations import search
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.status import status
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.settings.default import default_settings
from embedding_assets.snapshots.names import CHUNKS, RAW_DOCS, REPLICA, TABLE, VECTORS

QUESTIONS: Final = (
    "How do I catch an exception and run clean-up code whatever happens?",
    "What is the difference between a list and a tuple?",
    "a library for talking to a PostgreSQL database",
)


def run(home: Path, console: Screen) -> dict[str, Any]:
    """Write the input, materialize everything, ask three questions in each region; the summary, also as values."""
    start = time.monotonic()
    deployment = Deployment(default_settings(home), home)
    sources, regions = sorted(deployment.settings.sources), sorted(deployment.settings.regions)
    write_demo_input(home)
    console.print(f"[bold]Materializing[/] {', '.join(sources)} for {', '.join(regions)}")
    # All is read again, so that a second demo has its runs too, and shows that they change nothing.
    outcomes = runs.materialize(deployment, console, sources=sources, regions=regions, reread=True)
    succeeded = all(outcome.succeeded for outcome in outcomes)
    report = _report(deployment, outcomes, time.monotonic() - start)
    report["succeeded"] = succeeded
    console.print()
    if not succeeded:
        console.print("The demo did not succeed: see the errors above.", style="bold red")
        return report
    console.print(terminal.status_table(status(deployment, sources, regions)))
    console.print()
    console.print(_summary(report))
    report["searches"] = []
    for question in QUESTIONS:
        console.print(f"\n[bold]{terminal.plain(question)}[/]")
        for region in regions:
            hits = search.search(deployment, region, question, k=3)
            report["searches"].append({"region": region, "text": question, "hits": hits})
            console.print(f"[dim]{region}[/]")
            console.print(terminal.hits_table(hits, narrow=console.is_terminal))
    if report["nothing_changed"]:
        console.print("\n[bold green]Nothing changed:[/] no text embedded, no byte written to a store or a table.")
    console.print(
        '\nNext: `make ui` shows these runs; `.venv/bin/embedding-assets search "…" --region eu-west-1` asks more.'
    )
    return report


def _report(deployment: Deployment, outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    def total(asset: str, name: str) -> int:
        return sum(int(outcome.metadata.get(asset, {}).get(name, 0)) for outcome in outcomes)

    checks = [check for outcome in outcomes for check in outcome.checks]
    report: dict[str, Any] = {
        "documents": total(RAW_DOCS, "documents"),
        "chunks": total(CHUNKS, "chunks"),
        "vectors": sum(total(asset, f"vectors_{asset[-2:]}") for asset in VECTORS),
        "embedded_now": sum(total(asset, "new") for asset in VECTORS),
        "parts_written": total(RAW_DOCS, "parts_written"),
        "bytes_copied": total(REPLICA, "bytes_copied"),
        "rows_loaded": total(TABLE, "rows_loaded"),
        "rows_per_region": {
            region: sum(row.rows for row in status(deployment, sorted(deployment.settings.sources), [region]))
            for region in sorted(deployment.settings.regions)
        },
        "checks": len(checks),
        "checks_passed": sum(check.passed for check in checks),
        "bytes": sum(
            entry.bytes for region in deployment.settings.regions for entry in deployment.store(region).entries("parts")
        ),
        "seconds": round(seconds, 1),
    }
    report["nothing_changed"] = not any(
        report[name] for name in ("embedded_now", "parts_written", "bytes_copied", "rows_loaded")
    )
    return report


def _summary(report: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("documents", f"{report['documents']:,}")
    table.add_row("chunks", f"{report['chunks']:,}")
    table.add_row("vectors", f"{report['vectors']:,} (two models), {report['embedded_now']:,} computed now")
    rows = ", ".join(f"{region} {rows:,}" for region, rows in report["rows_per_region"].items())
    table.add_row("rows per region", f"{rows}; {report['rows_loaded']:,} loaded now")
    table.add_row("checks", f"{report['checks_passed']} of {report['checks']} passed")
    table.add_row("bytes in stores", f"{report['bytes']:,}; {report['bytes_copied']:,} copied now")
    table.add_row("seconds", f"{report['seconds']}")
    return table
