"""What `migration` prints."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.table import Table

from embedding_assets.cli.terminal import plain
from embedding_assets.operations.gates import Gate
from embedding_assets.operations.migration import Change, Version
from embedding_assets.operations.plan import Plan

_SUMMED = ("texts", "tokens", "usd", "stored_bytes", "table_bytes", "index_bytes")
_STYLES = {"green": "green", "red": "red", "unknown": "yellow"}


def versions_table(versions: Iterable[Version]) -> Table:
    """A line a region and slot."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("region", "slot", "state", "model", "type", "live since"):
        table.add_column(name, overflow="fold")
    for one in versions:
        until = f"until {_at(one.superseded_at)}" if one.superseded_at else ""
        table.add_row(
            one.region,
            one.slot,
            one.state,
            plain(one.model or "–"),
            one.type or "–",
            _at(one.live_since) if one.state == "live" else until,
        )
    return table


def gates_table(gates: Sequence[Gate]) -> Table:
    """A line a gate."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("region", "source", "gate", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    for gate in gates:
        why = f"{gate.why}. Cure: {gate.cure}" if gate.cure else gate.why
        state = f"[{_STYLES[gate.state]}]{gate.state}[/]"
        table.add_row(gate.region, plain(gate.source or "all"), gate.gate, state, plain(why))
    return table


def plans_table(plans: Sequence[Plan]) -> Table:
    """A line a source, and one for all."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("source", overflow="fold")
    for name in ("texts", "tokens", "USD", "hours", "a store", "a table", "an index"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in plans:
        table.add_row(plain(one.source), *_figures(one))
    if len(plans) > 1:
        hours = [one.hours for one in plans if one.hours is not None]
        total = plans[0]._replace(
            **{name: sum(getattr(one, name) for one in plans) for name in _SUMMED}, hours=sum(hours) if hours else None
        )
        table.add_row("all", *_figures(total), style="bold")
    return table


def _figures(one: Plan) -> tuple[str, ...]:
    return (
        f"{one.texts:,}",
        f"{one.tokens:,}",
        f"{one.usd:,.2f}",
        "–" if one.hours is None else f"{one.hours:,.2f}",
        *(f"{size / 1e6:,.1f} MB" for size in (one.stored_bytes, one.table_bytes, one.index_bytes)),
    )


def changes_table(changes: Sequence[Change]) -> Table:
    """A line a change, oldest first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("region", "when (UTC)", "role", "change", "slot", "model", "reason"):
        table.add_column(name, overflow="fold")
    for one in changes:
        forced = "forced: " if one.forced else ""
        table.add_row(
            one.region,
            _at(one.changed_at),
            plain(one.role),
            one.change,
            one.slot,
            plain(one.model["name"]),
            plain(f"{forced}{one.reason or ''}"),
        )
    return table


def _at(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "–"
