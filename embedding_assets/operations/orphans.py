"""Orphans: sources that databases or stores hold, and the settings do not have; and how one is forgotten.

A source that is taken out of the settings goes on being found until it is forgotten: a line lost from a file by mistake
must not delete what it cost to make.
"""

import re
import shutil
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from embedding_assets.errors import PermanentError, PipelineError
from embedding_assets.operations import outcomes
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.findings import Finding, Kind, Where
from embedding_assets.operations.regions import RegionState, ask
from embedding_assets.operations.status import SourceStatus, is_current
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.locks import drop_source_lock
from embedding_assets.pgvector.publishing.forget import Held, held
from embedding_assets.pgvector.publishing.forget import forget as drop
from embedding_assets.pgvector.schema.migrations import ensure_migrated, has_tables
from embedding_assets.snapshots.garbage import aside_of
from embedding_assets.snapshots.names import JOURNALS, REPLICA, TABLE, Name
from embedding_assets.snapshots.slots import SLOTS
from embedding_assets.snapshots.stores import Store

_KINDS: Final = ("snapshots", "parts", JOURNALS)
"""Folders of a store, in the order in which a source leaves it: what no log names is garbage, whoever crashed."""

_NAME: Final = TypeAdapter[str](Name)


class Orphan(NamedTuple):
    """What a region has of a source that the settings do not have."""

    source: str
    region: str
    rows: int
    """That readers find."""
    dead_letters: int
    in_store: bool

    def __str__(self) -> str:
        holdings = [f"rows that readers find ({self.rows:,})"] if self.rows else []
        holdings += [f"dead letters ({self.dead_letters:,})"] if self.dead_letters else []
        holdings += ["snapshots or parts in its store"] if self.in_store else []
        return f"{self.region} has {', '.join(holdings) or 'records'} of source {self.source}"


def orphans(deployment: Deployment, region_names: Sequence[str]) -> list[Orphan]:
    """Every orphan of every region. A database or store that can't be asked is left out: others tell of that."""
    return [orphan for name in region_names for orphan in _of(ask(deployment, name, []))]


def _of(region: RegionState) -> Iterator[Orphan]:
    known = region.settings.sources
    rows = {each.source: each for each in region.held}
    stored: set[str] = set()
    with suppress(PipelineError):
        stored = {source for source, _ in _stored(region.store, known)} if region.store else set()
    for source in sorted((rows.keys() | stored) - known.keys()):
        _, served, letters = rows.get(source, Held(source, 0, 0))
        yield Orphan(source, region.name, served, letters, source in stored)


def findings(deployment: Deployment, regions: Sequence[RegionState]) -> list[Finding]:
    """The orphans of regions that have been asked as findings, each with its cure."""
    return [
        Finding(
            Kind.ORPHAN,
            Where(one.source, one.region, TABLE if one.rows else REPLICA),
            f"{one}, which the settings do not have",
            cure(deployment, one.source),
        )
        for region in regions
        for one in _of(region)
    ]


def status_rows(deployment: Deployment, regions: Sequence[RegionState]) -> list[SourceStatus]:
    """The orphans of regions that have been asked, as `status` shows them, below the sources of the settings."""
    return [
        SourceStatus(
            source=one.source,
            region=one.region,
            rows=one.rows,
            orphan=True,
            problem=f"{one}, which the settings do not have. Cure: {cure(deployment, one.source)}",
        )
        for region in regions
        for one in _of(region)
    ]


def cure(deployment: Deployment, source: str) -> str:
    """What is to be done about an orphan."""
    successor = _successor(deployment, source)
    if successor is not None:
        return f"embedding-assets materialize, which forgets it once {successor} serves everywhere in its place"
    return (
        f"embedding-assets forget {source}, or put it back into the settings; if it was renamed, give the new one "
        f"`renamed_from: {source}`; if it is another project's, give each project a store and a database of its own"
    )


def forget(deployment: Deployment, source: str, regions: Sequence[str]) -> Iterator[str]:
    """Remove all that these regions and, if they are all that there are, this home have of an orphan; what was done.

    First every database, so that nobody finds it any more, each in one transaction; then the stores, logs before parts
    and each log's head last. A crash at any point leaves less of it, and the next call does the rest.

    Raises:
        PermanentError: no name of a source, the settings have it, or what it was renamed to does not serve everywhere.
    """
    if not _is_name(source):
        raise PermanentError(f"{source!r} is no name of a source. Cure: embedding-assets status lists orphans")
    if source in deployment.settings.sources:
        raise PermanentError(
            f"the settings have source {source}: the next run would make it anew. Cure: take it out of the settings, "
            "then forget it"
        )
    successor = _successor(deployment, source)
    if successor is not None and not _serves_everywhere(deployment, successor):
        raise PermanentError(
            f"source {successor}, renamed from {source}, does not serve everywhere yet: until then readers have "
            f"{source} alone, and its vectors are taken over. Cure: embedding-assets materialize --source {successor}"
        )
    for region in regions:
        with deployment.connect(region) as conn:
            if has_tables(conn) and (rows := _forget_rows(conn, source)) is not None:
                yield f"{region}: {rows:,} rows and all records of it removed from the database"
    for region in regions:
        if objects := _forget_objects(deployment.store(region), source):
            yield f"{region}: {objects} objects deleted from the store"
    if set(regions) == set(deployment.settings.regions) and (files := list(_forget_files(deployment.home, source))):
        yield f"this home: {', '.join(files)} deleted"


def forget_renamed(deployment: Deployment) -> Iterator[str]:
    """Forget the old name of each source with `renamed_from` that serves everywhere: nobody need be asked again."""
    regions = sorted(deployment.settings.regions)
    renamed = {
        settings.renamed_from: name for name, settings in deployment.settings.sources.items() if settings.renamed_from
    }
    if not renamed:
        return
    left = {one.source for one in orphans(deployment, regions)}
    for old, new in renamed.items():
        if old in left and _serves_everywhere(deployment, new):
            for line in forget(deployment, old, regions):
                yield f"{old}, renamed to {new}: {line}"


def _successor(deployment: Deployment, source: str) -> str | None:
    renamed = deployment.settings.sources.items()
    return next((name for name, settings in renamed if settings.renamed_from == source), None)


def _serves_everywhere(deployment: Deployment, source: str) -> bool:
    return all(is_current(deployment, region, source) for region in deployment.settings.regions)


def _forget_rows(conn: Connection, source: str) -> int | None:
    ensure_migrated(conn)
    there = next((one for one in held(conn) if one.source == source), None)
    if there is None:
        drop_source_lock(conn, source)  # which a crash may have left
        return None
    drop(conn, source)
    return there.rows


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def _stored(store: Store, known: Container[str]) -> Iterator[tuple[str, str]]:
    """(source, folder) of what a store has of sources that are not known.

    Empty folders, as a disk has, are nothing; what no source can be called is somebody else's.
    """
    for kind in _KINDS:
        for asset in store.folders(kind):
            for folder in store.folders(asset):
                source = folder.rpartition("/")[2]
                if source not in known and _is_name(source) and next(store.entries(folder), None) is not None:
                    yield source, folder


def _forget_objects(store: Store, source: str) -> int:
    deleted = 0
    for kind in _KINDS:
        for asset in store.folders(kind):
            # By name: entries of a log go oldest first, so that its head stays the head to the last.
            paths = sorted(found.path for found in store.entries(f"{asset}/{source}"))
            store.delete(paths)
            deleted += len(paths)
    # Last: collections go on meanwhile, and set aside what no log names any more.
    aside = aside_of(store, source)
    store.delete(aside)
    return deleted + len(aside)


def _forget_files(home: Path, source: str) -> Iterator[str]:
    slots = "|".join(SLOTS)
    ours = re.compile(
        rf"catalogs/{re.escape(source)}\.sqlite(-wal|-shm)?"
        rf"|journals/{re.escape(source)}-({slots})-[0-9a-f]{{16}}\.sqlite(-wal|-shm)?"
    )
    for path in sorted([*home.glob("catalogs/*"), *home.glob("journals/*")]):
        if ours.fullmatch(path.relative_to(home).as_posix()):
            path.unlink(missing_ok=True)
            yield path.name
    shutil.rmtree(outcomes.folder(home, source), ignore_errors=True)
