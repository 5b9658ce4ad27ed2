"""What the command line shows: progress while a run is under way, and tables of what came of it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import dagster as dg
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from embedding_assets.cli.screen import Screen
from embedding_assets.operations.status import SourceStatus
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.pgvector.dead_letters import DeadLetter
from embedding_assets.snapshots.names import CHUNKS, RAW_DOCS, REPLICA, TABLE, VECTORS

_TELL_SECONDS: Final = 10.0


class BarProgress:
    """Progress as bars on the terminal, for as long as a phase lasts; one that reports again goes on with its bar."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def show(self, context: dg.AssetExecutionContext, phase: str, done: int, total: int | None, detail: str) -> None:
        """See `ProgressDisplay`."""
        count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        if not self._bars.console.is_terminal:
            if done == total:  # what it came to is told in a moment
                return
            self._tell(f"{phase}: {count} {detail}")
            return
        if phase not in self._tasks:
            # With its fields: it is drawn at once.
            self._tasks[phase] = self._bars.add_task(phase, total=total, count=count, detail=detail)
        self._bars.update(
            self._tasks[phase], completed=done, total=total, visible=done != total, count=count, detail=detail
        )

    def _tell(self, line: str) -> None:
        """Where nobody sees bars, a line now and then says that it goes on, and how."""
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
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
    """What the run came to, of the figures that it could tell."""
    found = outcome.metadata
    told: list[str] = []
    told += [
        _changes(what, found[asset][f"{what}s"], found[asset])
        for asset, what in ((RAW_DOCS, "document"), (CHUNKS, "chunk"))
        if f"{what}s" in found.get(asset, {})
    ]
    passed_over = found.get(RAW_DOCS, {}).get("passed_over", 0)
    if passed_over:
        told.append(f"{passed_over:,} passed over ({plain(found[RAW_DOCS].get('passed_over_first', '…'))})")
    bought = [found[asset]["new"] for asset in VECTORS if "new" in found.get(asset, {})]
    if bought:
        told.append(f"{counted(sum(bought), 'vector')} computed")
    if found.get(REPLICA, {}).get("bytes_copied"):  # the primary's replica is its own store: nothing ever
        told.append(f"{_size(found[REPLICA]['bytes_copied'])} copied")
    if "rows_loaded" in found.get(TABLE, {}):
        gone = found[TABLE].get("rows_deleted", 0)
        told.append(f"{counted(found[TABLE]['rows_loaded'], 'row')} loaded" + (f", {gone:,} deleted" if gone else ""))
    return ", ".join(told)


def counted(number: int, thing: str) -> str:
    """A number of things in words, such as `1 row` and `1,024 rows`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"


def _changes(what: str, total: int, counts: Mapping[str, Any]) -> str:
    if "new" not in counts:  # they could not be counted
        return counted(total, what)
    parts = [f"{counts[word]:,} {word}" for word in ("new", "changed", "removed") if counts[word]]
    return f"{counted(total, what)} ({', '.join(parts) or 'unchanged'})"


def troubles(outcomes: Sequence[Outcome]) -> list[Text]:
    """What went wrong, a sentence each: errors in red, warnings in yellow."""
    found = [Text(f"{outcome.partition}: {error}", "red") for outcome in outcomes for error in outcome.errors]
    for outcome in outcomes:
        for check in outcome.checks:
            if not check.passed:
                warns = check.severity == "WARN"
                figures = check.description or ", ".join(f"{name} {value}" for name, value in check.metadata.items())
                line = (
                    f"{outcome.partition}: check {check.asset}/{check.name} {'warns' if warns else 'failed'}: {figures}"
                )
                found.append(Text(line, "yellow" if warns else "red"))
    return found


def status_table(rows: Sequence[SourceStatus]) -> Table:
    """What `status` prints."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("source", "region"):
        table.add_column(name)
    for name in ("documents", "chunks", "rows", "rejected"):
        table.add_column(name, justify="right")
    for name in ("live", "index", "serves"):
        table.add_column(name)
    for row in rows:
        if row.error:
            serves = "[red]can't be asked[/]"
        elif row.orphan:
            serves = "[yellow]orphan[/]"
        elif row.lag_seconds is None:
            serves = "[yellow]nothing yet[/]"
        elif not row.current:
            serves = f"[yellow]behind by {_ago(row.lag_seconds)}[/]"
        else:
            serves = "[yellow]degraded[/]" if row.degraded else "[green]current[/]"
        table.add_row(
            row.source,
            row.region,
            f"{row.documents:,}",
            f"{row.chunks:,}",
            f"{row.rows:,}",
            f"{row.rejected:,}",
            row.live_model or "–",
            row.index,
            serves,
        )
    return table


def status_notes(rows: Sequence[SourceStatus]) -> list[Text]:
    """What is wrong, a sentence each, below the table of `status`: each error once, for it is the region's."""
    errors = dict.fromkeys((row.region, row.error) for row in rows if row.error)
    notes = [Text(f"{region}: {printable(error)}", "red") for region, error in errors]
    notes += [Text(printable(row.problem), "yellow") for row in rows if row.orphan]
    looks = [row for row in rows if row.problem and not row.orphan]
    problems = dict.fromkeys((row.source, row.looked_at, row.problem) for row in looks)
    for source, looked_at, problem in problems:
        last = f"last read without trouble at {looked_at:%Y-%m-%d %H:%M} UTC" if looked_at else "never read yet"
        notes.append(Text(f"{source}: {last}. {printable(problem)}", "red"))
    unsaid = dict.fromkeys((row.region, row.unsaid) for row in rows if row.unsaid)
    notes += [Text(f"{region}: {what}", "yellow") for region, what in unsaid]
    return notes + [
        Text(f"{row.region}|{row.source} is degraded: {row.degraded}", "yellow") for row in rows if row.degraded
    ]


def hits_table(hits: Sequence[dict[str, Any]], *, narrow: bool) -> Table:
    """What `search` prints; `narrow` on a terminal, whose width is not to be exceeded."""
    # Expanded, with a ratio: the content gives way on a narrow terminal, and never the distance.
    table = Table(box=None, header_style="bold", pad_edge=False, expand=narrow)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("document", max_width=40 if narrow else None, overflow="ellipsis", no_wrap=True)
    table.add_column("content", overflow="ellipsis", no_wrap=True, ratio=1)
    for hit in hits:
        document = f"{hit['source']}/{hit['document_id']}#{hit['ordinal']}"
        table.add_row(f"{hit['distance']:.3f}", plain(document), plain(" ".join(str(hit["content"]).split())))
    return table


def letters_table(letters: Sequence[DeadLetter], *, narrow: bool) -> Table:
    """What `dead-letters list` prints: nothing of a message or a cure is cut; `narrow` on a terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    table.add_column("document", max_width=40 if narrow else None, overflow="ellipsis", no_wrap=True)
    table.add_column("error", no_wrap=True)
    table.add_column("message", overflow="fold")
    table.add_column("cure", overflow="fold")
    for letter in letters:
        table.add_row(
            str(letter.id),
            letter.state,
            _stage(letter),
            plain(f"{letter.source}/{letter.document_id or letter.payload}"),
            letter.error_class,
            plain(letter.message),
            plain(letter.cure),
        )
    return table


def letter_details(letter: DeadLetter, text: str | None) -> Table:
    """What `dead-letters show` prints."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    told = {
        "id": letter.id,
        "state": letter.state,
        "source": letter.source,
        "stage": _stage(letter),
        "document": letter.document_id or "unknown",
        "chunk": letter.chunk_id or "none",
        "payload": letter.payload,
        "error": letter.error_class,
        "message": letter.message,
        "cure": letter.cure,
        "attempts": f"{letter.attempts}, replayed {letter.replays} times",
        "first seen": f"{letter.first_seen:%Y-%m-%d %H:%M:%S %Z}",
        "last seen": f"{letter.last_seen:%Y-%m-%d %H:%M:%S %Z}",
        "text": text if text is not None else "not in the store",
    }
    for name, value in told.items():
        table.add_row(name, plain(value))
    return table


def _stage(letter: DeadLetter) -> str:
    return f"{letter.stage}_{letter.model_version}" if letter.model_version else letter.stage


def printable(text: object) -> str:
    """Text from outside, kept from being read as commands by the terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))


def plain(text: object) -> str:
    """Text from outside, kept from being read as markup by Rich or as commands by the terminal."""
    return escape(printable(text))


def _ago(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
