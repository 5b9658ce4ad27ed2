"""The snapshot log: numbered immutable entries in a store; appending one is the only commit there is."""

import logging
import re
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.draft import Draft
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store

_log = logging.getLogger(__name__)

_ENTRY: Final = re.compile(r"\d{10}\.json")
_LARGEST_ENTRY: Final = 1 << 30  # bytes; 25,000 parts with eight deltas each take 130 MB, and a replica has three such


class CommitConflict(TransientError):
    """Another writer committed something else in between. Running again starts from what it committed."""


def head(store: Store, asset: str, source: str) -> Snapshot | None:
    """The current snapshot of an asset's source in this store; None before the first commit."""
    snapshot, _ = _head_and_newest(store, asset, source)
    return snapshot


def newest(store: Store, snapshot: Snapshot) -> Snapshot:
    """The head of a snapshot's own log. What was read before a lock was waited for may be it no longer."""
    return head(store, snapshot.asset, snapshot.source) or snapshot


def numbers(store: Store, asset: str, source: str) -> list[int]:
    """The numbers of the log's entries, ascending. Other files in its folder are nobody's."""
    names = (listed.path.rpartition("/")[2] for listed in store.entries(_folder(asset, source)))
    return sorted(number for name in names if (number := number_of(name)) is not None)


def number_of(name: str) -> int | None:
    """The number that a file of a log's folder is the entry of, if it is one."""
    return int(name.removesuffix(".json")) if _ENTRY.fullmatch(name) else None


def entry(store: Store, asset: str, source: str, number: int) -> Snapshot | None:
    """One entry of the log. None if there is no such number, or nothing whole under it.

    A file that is empty or cut short was left by a crash of the disk it lies on: nobody was told that it is committed.

    Raises:
        PermanentError: the entry is not a snapshot of the format that this version reads, or is another log's.
    """
    path = entry_path(asset, source, number)
    data = store.get(path, at_most=_LARGEST_ENTRY)
    if data is None:
        return None
    try:
        fields = from_json(data)
    except ValueError:
        _log.warning("store %s: %s is cut short, and stepped over", store.url, path)
        return None
    cure = (
        "Cure: if a newer version wrote it, run that one; else restore the file, or delete it, and the entry before it "
        "counts."
    )
    try:
        snapshot = Snapshot.model_validate(fields)
    except ValidationError as error:
        raise PermanentError(
            f"store {store.url}: {path} is no snapshot that this version can read ({error.error_count()} errors, "
            f"first: {error.errors()[0]['msg']}). {cure}"
        ) from error
    if (snapshot.asset, snapshot.source, snapshot.number) != (asset, source, number):
        raise PermanentError(
            f"store {store.url}: {path} says that it is entry {snapshot.number} of {snapshot.asset!r} of source "
            f"{snapshot.source!r}. {cure}"
        )
    return snapshot


def _head_and_newest(store: Store, asset: str, source: str) -> tuple[Snapshot | None, int]:
    """The head, and the largest number in the log, which is another where the newest entry is cut short."""
    listed = numbers(store, asset, source)
    newest_first = (entry(store, asset, source, number) for number in reversed(listed))
    return next((snapshot for snapshot in newest_first if snapshot is not None), None), max(listed, default=0)


def append(store: Store, draft: Draft, *, derived_in: Store | None = None) -> Snapshot:
    """Commit a draft; the committed entry.

    A draft that says what the head says is not written again. Of two writers racing with the same content, in whatever
    layers, both get the one entry.

    Args:
        derived_in: the store with the logs of its upstream, where that is another one.

    Raises:
        CommitConflict: another writer committed another content since the draft was begun, or its upstream moved on.
    """
    current, newest = _head_and_newest(store, draft.asset, draft.source)
    if current is not None and current.same_content(draft):
        return current
    if current != draft.after:
        if current is not None and current.says_the_same(draft):
            return current
        raise _conflict(draft, newest)
    for asset, root in draft.upstream.items():
        upstream = head(derived_in or store, asset, draft.source)
        if upstream is None or upstream.root != root:
            raise CommitConflict(
                f"{draft.asset} of source {draft.source} was derived from {asset} {root[:12]}…, and another run has "
                "committed a newer one since. Nothing is lost. Cure: run again, to build on it."
            )
    number = newest + 1
    committed = draft.numbered(number, datetime.now(UTC).isoformat(timespec="seconds"))
    failpoint(Failpoint.BEFORE_LOG)
    written = store.put_if_absent(
        entry_path(draft.asset, draft.source, number), committed.model_dump_json(indent=1).encode()
    )
    failpoint(Failpoint.AFTER_LOG)
    current = head(store, draft.asset, draft.source)
    # A number that garbage collection freed can be written, and is nobody's head.
    if current is not None and ((written and current == committed) or current.says_the_same(draft)):
        return current
    raise _conflict(draft, number)


def _conflict(draft: Draft, number: int) -> CommitConflict:
    return CommitConflict(
        f"{draft.asset} of source {draft.source}: another run committed snapshot {number} first, with other "
        "content. Nothing is lost. Cure: run again, to build on it."
    )


def entry_path(asset: str, source: str, number: int) -> str:
    """Where an entry lies. Ten digits, so that names sort as numbers do in every tool."""
    return f"{_folder(asset, source)}/{number:010d}.json"


def _folder(asset: str, source: str) -> str:
    return f"snapshots/{asset}/{source}"
