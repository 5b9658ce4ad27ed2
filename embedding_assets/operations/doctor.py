"""What has to be so before a run can go well: all that is missing at once, each with its cure. Changes nothing.

A store gets one small object, which is deleted again: whether one may write is known by writing alone.
"""

import locale
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from embedding_assets.errors import PermanentError, PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.schema.language import require_language
from embedding_assets.pgvector.schema.migrations import has_tables, is_migrated, require_pgvector
from embedding_assets.pgvector.schema.roles import act_as_ingest, way_out, with_way_out
from embedding_assets.snapshots.slots import SLOTS, Slot

_LEAST_FREE: Final = 1 << 30
"""Bytes free where the home lies: journals, catalogs, Dagster's records, an embedded database."""

_MOST_SKEW: Final = timedelta(minutes=5)
"""Between this machine's clock and another's. Garbage collection takes an hour at the least for old."""


class Examined(NamedTuple):
    """One thing that was looked at; the fields of `doctor --json`, which are stable."""

    what: str
    """Such as `database eu-west-1`."""
    well: bool
    trouble: str | None = None
    cure: str | None = None


def examine(deployment: Deployment) -> Iterator[Examined]:
    """Look at one thing after another; what is wrong with one keeps none from being looked at."""
    for what, look in _looks(deployment):
        try:
            look()
        except PipelineError as error:
            trouble, _, cure = str(error).partition(" Cure: ")
            yield Examined(
                what, False, trouble.rstrip("."), cure or "make it reachable from this machine, then ask again"
            )
        else:
            yield Examined(what, True)


def _looks(deployment: Deployment) -> Iterator[tuple[str, Callable[[], None]]]:
    settings = deployment.settings
    yield "locale", _locale
    yield "home", partial(_home, deployment.home)
    for slot in SLOTS:
        if slot in settings.models:
            yield f"model {slot}", partial(_model, deployment, slot)
    for source in sorted(settings.sources):
        yield f"source {source}", partial(_source, deployment, source)
    for region in sorted(settings.regions):
        yield f"store {region}", partial(_store, deployment, region)
        yield f"database {region}", partial(_database, deployment, region)


def _locale() -> None:
    encoding = locale.getpreferredencoding(do_setlocale=False)
    if encoding.lower().replace("-", "") != "utf8":
        raise PermanentError(f"names and texts of this process are {encoding}, not UTF-8. Cure: set LC_ALL=C.UTF-8")


def _home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=home):
            pass
        free = shutil.disk_usage(home).free
    except OSError as error:
        raise PermanentError(
            f"{home} cannot be written: {error.strerror}. Cure: name a folder that this user may write in "
            "EMBEDDING_ASSETS_HOME"
        ) from error
    if free < _LEAST_FREE:
        raise PermanentError(
            f"{free / 1e9:.1f} GB are free where {home} lies. Cure: make room for {_LEAST_FREE / 1e9:.1f} GB, or name "
            "another folder in EMBEDDING_ASSETS_HOME"
        )


def _model(deployment: Deployment, slot: Slot) -> None:
    binding = deployment.binding(slot)
    if binding.provider != "local" and binding.api_key_env and not os.environ.get(binding.api_key_env):
        raise PermanentError(
            f"{binding.api_key_env} is not set, which is to hold the key of {binding.name}. Cure: set it, or name "
            f"another variable in api_key_env of models.{slot}"
        )


def _source(deployment: Deployment, source: str) -> None:
    next(iter(deployment.reader(source).list_items()), None)


def _store(deployment: Deployment, region: str) -> None:
    store = deployment.store(region)
    # All that a run does in one: write, look, list, read, delete.
    now = store.clock()
    next(store.entries("snapshots"), None)
    store.get("snapshots/none")
    _clock(f"store {store.url}", now)


def _database(deployment: Deployment, region: str) -> None:
    with connect(deployment.dsn(region)) as conn, with_way_out(conn, "looking at the database"):
        require_pgvector(conn)
        (now,) = conn.execute("SELECT clock_timestamp()").fetchone() or (datetime.now(UTC),)
        _clock("the database's server", now)
        if deployment.settings.hybrid:
            require_language(conn, deployment.settings.hybrid.language)
        if has_tables(conn):
            if is_migrated(conn):
                act_as_ingest(conn)
            return
        (may_create,) = conn.execute(
            "SELECT has_database_privilege(current_database(), 'CREATE') "
            "OR to_regnamespace('embedding_assets') IS NOT NULL"
        ).fetchone() or (False,)
        if not may_create:
            raise PermanentError(f"{conn.info.user} may not create a schema in {conn.info.dbname!r}. {way_out(conn)}")


def _clock(whose: str, now: datetime) -> None:
    skew = abs(datetime.now(UTC) - now)
    if skew > _MOST_SKEW:
        raise PermanentError(
            f"the clock of {whose} and this machine's are {skew.total_seconds():.0f} s apart. "
            "Cure: have both set by NTP"
        )
