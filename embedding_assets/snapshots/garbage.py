"""Garbage collection: what no retained snapshot names goes, once it is older than a grace period."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from embedding_assets.snapshots import log
from embedding_assets.snapshots.stores import Entry, Store


class Collected(NamedTuple):
    """What a collection removed."""

    log_entries: int
    parts: int
    bytes: int


def collect(store: Store, *, keep: int, grace: timedelta, now: datetime | None = None) -> Collected:
    """Keep the newest `keep` snapshots of every log and whatever is younger than `grace`; delete the rest.

    The grace period covers runs that are under way, so it has to be longer than they take: their parts are written
    before any snapshot names them, and they read the snapshots that they began with for as long after those were
    superseded. Log entries go before the parts that only they named, so that a crash leaves nothing that names what
    is gone.
    """
    oldest_kept = (now or datetime.now(UTC)) - grace
    logs: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for found in store.entries("snapshots"):
        _, asset, source, _ = found.path.split("/")
        logs[asset, source].append(found)
    named: set[str] = set()
    stale_entries: list[str] = []
    for (asset, source), entries in logs.items():
        ordered = sorted(entries, key=lambda found: found.path, reverse=True)
        for place, found in enumerate(ordered):
            # A head may be old: its age counts from when the next one took its place. One head always stays.
            if place >= max(keep, 1) and ordered[place - 1].modified < oldest_kept:
                stale_entries.append(found.path)
                continue
            number = int(found.path.rpartition("/")[2].removesuffix(".json"))
            snapshot = log.entry(store, asset, source, number)
            if snapshot is not None:
                named.update(part.path(source) for part in snapshot.parts)
    store.delete(stale_entries)
    stale = [f for f in store.entries("parts") if f.path not in named and f.modified < oldest_kept]
    store.delete([found.path for found in stale])
    return Collected(len(stale_entries), len(stale), sum(found.bytes for found in stale))
