"""The tables that the command line prints, and how text from outside is shown in them."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from embedding_assets.operations.status import SourceStatus
from embedding_assets.pgvector.dead_letters import DeadLetter


def counted(number: int, thing: str) -> str:
    """A number of things in words, such as `1 row` and `1,024 rows`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


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
    fields = {
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
    for name, value in fields.items():
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
