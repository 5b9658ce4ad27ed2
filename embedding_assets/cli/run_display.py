"""What the command line shows of runs: progress while one is under way, and a line on what came of it.

Apart from the tables of `terminal`: a run knows Dagster, whose import takes a second that other commands do not have.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from embedding_assets.cli.screen import Screen
from embedding_assets.cli.terminal import counted, plain, printable
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.orchestration.resources.progress import Progress as StepProgress
from embedding_assets.snapshots.names import CHUNKS, RAW_DOCS, REPLICA, TABLE, VECTORS

_LINE_SECONDS: Final = 10.0


class BarProgress:
    """Progress as bars on the terminal, for as long as a phase lasts; one that reports again goes on with its bar."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._printed_at = time.monotonic()

    def show(self, progress: StepProgress) -> None:
        """See `ProgressDisplay`."""
        phase, done, total, detail = progress._replace(detail=printable(progress.detail))
        count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        if not self._bars.console.is_terminal:
            if done != total:  # what it came to is printed in a moment
                self._print_line(f"{phase}: {count} {detail}")
            return
        if phase not in self._tasks:
            # With its fields: it is drawn at once.
            self._tasks[phase] = self._bars.add_task(phase, total=total, count=count, detail=detail)
        self._bars.update(
            self._tasks[phase], completed=done, total=total, visible=done != total, count=count, detail=detail
        )

    def _print_line(self, line: str) -> None:
        """Where nobody sees bars, a line now and then says that it goes on, and how."""
        now = time.monotonic()
        if now - self._printed_at >= _LINE_SECONDS:
            self._printed_at = now
            self._bars.console.print(line, markup=False)

    def print(self, line: str) -> None:
        """A line of markup that stays, above the bars."""
        self._bars.console.print(line)


@contextmanager
def progress_bars(screen: Screen) -> Iterator[BarProgress]:
    """Bars on a terminal, and a line every ten seconds on anything else."""
    # The last column gives way on a narrow terminal, and the names never.
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn(
            "{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
    )
    with Progress(*columns, console=screen, transient=True, expand=True, disable=not screen.is_terminal) as bars:
        yield BarProgress(bars)


def outcome_line(outcome: Outcome) -> str:
    """One run in a line, such as `✓ reference  4.1 s  79 documents, 512 chunks, 1,024 vectors new`."""
    mark = "[green]✓[/]" if outcome.succeeded else "[bold red]✗[/]"
    checks = f"{sum(check.passed for check in outcome.checks)}/{len(outcome.checks)} checks"
    return f"{mark} {plain(outcome.partition):<24} {outcome.seconds:6.1f} s  {checks}  {_story(outcome)}".rstrip()


def _story(outcome: Outcome) -> str:
    """What the run came to, as far as its figures are known."""
    figures = outcome.metadata
    parts = [
        _changes(what, figures[asset][f"{what}s"], figures[asset])
        for asset, what in ((RAW_DOCS, "document"), (CHUNKS, "chunk"))
        if f"{what}s" in figures.get(asset, {})
    ]
    passed_over = figures.get(RAW_DOCS, {}).get("passed_over", 0)
    if passed_over:
        parts.append(f"{passed_over:,} passed over ({plain(figures[RAW_DOCS].get('passed_over_first', '…'))})")
    bought = [figures[asset]["new"] for asset in VECTORS if "new" in figures.get(asset, {})]
    if bought:
        parts.append(f"{counted(sum(bought), 'vector')} computed")
    if figures.get(REPLICA, {}).get("bytes_copied"):  # the primary's replica is its own store: nothing ever
        parts.append(f"{_size(figures[REPLICA]['bytes_copied'])} copied")
    if "rows_loaded" in figures.get(TABLE, {}):
        gone = figures[TABLE].get("rows_deleted", 0)
        parts.append(
            f"{counted(figures[TABLE]['rows_loaded'], 'row')} loaded" + (f", {gone:,} deleted" if gone else "")
        )
    return ", ".join(parts)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"


def _changes(what: str, total: int, counts: Mapping[str, Any]) -> str:
    if "new" not in counts:  # they could not be counted
        return counted(total, what)
    parts = [f"{counts[word]:,} {word}" for word in ("new", "changed", "removed") if counts[word]]
    return f"{counted(total, what)} ({', '.join(parts) or 'unchanged'})"
