"""Garbage collection: what no retained snapshot names goes, once it is older than a grace period.

Runs go on meanwhile, in other processes and on other machines: between a look and a deletion a run may find a part by
its name, renew it and commit it. So nothing is destroyed at once. A part is set aside first, and goes for good when a
later collection, a grace period after, still finds nobody who names it. One that a run did name is put back: by this
collection, by the next, or by whoever misses it (`operations.healing`).
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from embedding_assets.snapshots import log
from embedding_assets.snapshots.log import entry_path
from embedding_assets.snapshots.stores import Entry, Store

_ASIDE: Final = "aside"
_TIME: Final = "%Y%m%dT%H%M%SZ"
_ASIDE_NAME: Final = re.compile(rf"{_ASIDE}/(?P<time>\d{{8}}T\d{{6}}Z)/(?P<was>parts/[^/]+/[^/]+/.+)")
_LOG_NAME: Final = re.compile(r"snapshots/([^/]+)/([^/]+)/([^/]+)")


class Collected(NamedTuple):
    """What a collection removed."""

    log_entries: int
    set_aside: int
    """Parts that a later collection deletes, unless somebody names them until then."""
    put_back: int
    """Parts set aside that a snapshot names."""
    deleted: int
    """Parts that had been set aside a grace period ago."""
    bytes: int
    """Of the parts deleted."""


def set_aside(store: Store, path: str, now: datetime) -> None:
    """Move an object to where a collection a grace period later finds it, and whoever misses it until then.

    The time is in its name: a store's own copy may keep the time of the original.
    """
    store.move(path, f"{_ASIDE}/{now.astimezone(UTC).strftime(_TIME)}/{path}")


class _Aside(NamedTuple):
    """An object that was set aside: what lies in the store now, when that was done, and where it lay."""

    entry: Entry
    at: datetime
    was: str


def _all_aside(store: Store) -> Iterator[_Aside]:
    """Other files in the folder are nobody's."""
    for entry in store.entries(_ASIDE):
        named = _ASIDE_NAME.fullmatch(entry.path)
        with suppress(ValueError):  # 99 is no month
            if named is not None:
                yield _Aside(entry, datetime.strptime(named["time"], _TIME).replace(tzinfo=UTC), named["was"])


def aside(store: Store, path: str) -> list[str]:
    """Where objects of this path lie that were set aside, the newest first."""
    return sorted((one.entry.path for one in _all_aside(store) if one.was == path), reverse=True)


def aside_of(store: Store, source: str) -> list[str]:
    """Where all objects of a source lie that were set aside."""
    return sorted(one.entry.path for one in _all_aside(store) if one.was.split("/")[2] == source)


def collect(store: Store, *, keep: int, grace: timedelta, now: datetime | None = None) -> Collected:
    """Keep the newest `keep` snapshots of every log and whatever is younger than `grace`; the rest goes.

    The grace period covers runs that are under way, so it has to be longer than they take: their parts are written
    before any snapshot names them, and they read the snapshots that they began with for as long after those were
    superseded. What time it is the store says, as it says when its objects were written: a machine whose clock is
    ahead would take all for old. Log entries go before the parts that only they named, so that a crash leaves nothing
    that names what is gone.
    """
    now = now or store.clock()
    oldest_kept = now - grace
    named, stale_entries = _retained(store, keep, oldest_kept)
    store.delete(stale_entries)
    # Of steps that were killed: nobody looks for these answers any more.
    store.delete([found.path for found in store.entries("answers") if found.modified < oldest_kept])
    moved = 0
    for entry in store.entries("parts"):
        if entry.path not in named and _is_older(store, entry, oldest_kept):
            set_aside(store, entry.path, now)
            moved += 1
    # Whoever committed while parts were set aside is seen now.
    named, _ = _retained(store, keep, oldest_kept)
    put_back, deleted = _settle(store, named, oldest_kept)
    return Collected(len(stale_entries), moved, put_back, len(deleted), sum(entry.bytes for entry in deleted))


def _retained(store: Store, keep: int, oldest_kept: datetime) -> tuple[set[str], list[str]]:
    """(the paths of the parts that retained snapshots name, the paths of the entries to go)."""
    logs: dict[tuple[str, str], dict[int, Entry]] = defaultdict(dict)
    for entry in store.entries("snapshots"):
        named_as = _LOG_NAME.fullmatch(entry.path)  # other files are nobody's
        if named_as is not None and (number := log.number_of(named_as[3])) is not None:
            logs[named_as[1], named_as[2]][number] = entry
    named: set[str] = set()
    stale: list[str] = []
    for (asset, source), entries in logs.items():
        newer: Entry | None = None
        whole = 0
        for number in sorted(entries, reverse=True):
            # A head may be old: its age counts from when the next one took its place. One head always stays.
            if newer is not None and whole >= max(keep, 1) and newer.modified < oldest_kept:
                stale.append(entry_path(asset, source, number))
                continue
            snapshot = log.entry(store, asset, source, number)
            if snapshot is not None:
                newer = entries[number]
                whole += 1
                named.update(layer.path(source) for layer in snapshot.layers)
    return named, stale


def _is_older(store: Store, entry: Entry, oldest_kept: datetime) -> bool:
    """Whether a part is old, and still is a moment before it is set aside: a run may have renewed it since."""
    if entry.modified >= oldest_kept:
        return False
    modified = store.modified(entry.path)
    return modified is not None and modified < oldest_kept


def _settle(store: Store, named: Collection[str], oldest_kept: datetime) -> tuple[int, list[Entry]]:
    """Put back what was set aside and is named; delete what was set aside a grace period ago and is not."""
    put_back = 0
    deleted: list[Entry] = []
    for one in _all_aside(store):
        if one.was in named:
            data = store.get(one.entry.path)
            put_back += data is not None and store.put_if_absent(one.was, data)
            store.delete([one.entry.path])
        elif one.at < oldest_kept:
            deleted.append(one.entry)
    store.delete([entry.path for entry in deleted])
    return put_back, deleted
