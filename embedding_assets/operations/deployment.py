"""Where this deployment's stores, databases and local files are: the settings, opened."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from embedding_assets import machine
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import Connection, connect, pipeline_errors
from embedding_assets.pgvector.indexes.hnsw import Means
from embedding_assets.pgvector.locks import QUEUE_SECONDS, SourceBusy
from embedding_assets.pgvector.options import Hnsw
from embedding_assets.pgvector.schema import language, migrations, roles
from embedding_assets.pgvector.schema.models import Model, ensure_models, is_bound, live_slot
from embedding_assets.settings.models import ModelVersion, Settings
from embedding_assets.snapshots.folders import private_folder
from embedding_assets.snapshots.slots import Slot
from embedding_assets.snapshots.stores import Store, opened
from embedding_assets.snapshots.tasks import Run
from embedding_assets.sources.reader import Reader, open_reader
from embedding_assets.telemetry.events import LockAwaited, Tell, unheard

_log = logging.getLogger(__name__)

_SLICE_SECONDS: Final = 1.0


def another_live_model(first: Slot, live: Slot | None) -> str | None:
    """A sentence on settings that name another live model than the region has, and the cure; None where they agree."""
    if live is None or live == first:
        return None
    return (
        f"live_model is {first} in the settings, and {live} is live. Nothing switches by that: it says only what a "
        f"region begins with. Cure: embedding-assets migration promote --to {first}, or write live_model: {live}"
    )


@dataclass(frozen=True)
class Deployment:
    """One set of settings and the folder that this machine's own files lie in."""

    settings: Settings
    home: Path
    _prepared: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """The regions that this one has prepared. A run, or a command with all its runs, has one deployment."""

    def store(self, region: str) -> Store:
        """The region's object store."""
        return opened(self.settings.regions[region].store)

    @property
    def primary(self) -> Store:
        """The store that embeddings are computed into."""
        return self.store(self.settings.primary_region)

    def dsn(self, region: str) -> str:
        """How to connect to the region's database; an embedded one is started if it does not run."""
        configured = self.settings.regions[region].dsn()
        return configured if configured is not None else embedded.dsn(self.home, region)

    def prepare(self, region: str, tell: Tell = unheard) -> None:
        """Bring the region's database to this version of its tables, and to what the settings say of it.

        That is its migrations, search surface and roles; then the models bound, the readers and the language. Writes
        nothing where it is so already. Raises PermanentError where it cannot be so.
        """
        migrations.migrate(self.dsn(region), tell)
        with self.connect(region) as conn:
            ensure_models(
                conn,
                self._models,
                self.settings.live_model,
                {name: source.chunking.model_dump(mode="json") for name, source in self.settings.sources.items()},
                self.settings.migration.validation_days,
            )
            self._note_another_live_model(conn, region)
            roles.ensure_readers(conn, self.settings.row_level_security)
            language.ensure_language(conn, self.settings.hybrid.language if self.settings.hybrid else None)
        self._prepared.add(region)

    def is_live(self, slot: Slot) -> bool:
        """Whether searches of any region read the slot. Raises TransientError where one can't be asked."""
        for region in self.settings.regions:
            with self.connect(region) as conn:
                if migrations.is_migrated(conn) and live_slot(conn) == slot:
                    return True
        return False

    def _note_another_live_model(self, conn: Connection, region: str) -> None:
        if (note := another_live_model(self.settings.live_model, live_slot(conn))) is not None:
            _log.warning("Region %s: %s", region, note)

    @contextmanager
    def connect(self, region: str) -> Iterator[Connection]:
        """A connection to the region's database as it is, for those who look; as the ingest role, if that may be.

        What Postgres raises meanwhile leaves it as TransientError or PermanentError, whoever asked.
        """
        with pipeline_errors(f"using the database of region {region}"), connect(self.dsn(region)) as conn:
            roles.act_as_ingest(conn)
            yield conn

    @contextmanager
    def prepared(self, region: str, tell: Tell = unheard) -> Iterator[Connection]:
        """The same for those who load and index, prepared at this deployment's first use of the region.

        Raises PermanentError where it is no longer as this version and these settings need it: runs of several versions
        and settings overlap in a rolling deployment, and none may take back what another one has prepared since.
        Raises TransientError where nothing is in it any more: the next try prepares it.
        """
        if region not in self._prepared:
            self.prepare(region, tell)
        with self.connect(region) as conn:
            with pipeline_errors(f"asking what region {region} is prepared for"):
                migrated = migrations.is_migrated(conn)
                as_prepared = migrated and is_bound(conn, self._models)
            if not migrated:
                self._prepared.discard(region)
                raise TransientError(
                    f"region {region}: its database was dropped or emptied while this run went on. Cure: "
                    "embedding-assets materialize, which prepares and fills it again"
                )
            if not as_prepared:
                raise PermanentError(
                    f"region {region}: its database was changed while this run went on: it has not the models of "
                    "these settings any more. Cure: have the same settings wherever this runs, then "
                    "embedding-assets materialize"
                )
            yield conn

    @property
    def _models(self) -> dict[Slot, Model]:
        return {
            slot: Model(
                binding.model,
                binding.dimensions,
                binding.provider,
                binding.halfvec,
                (binding.name, *binding.answers_as),
                binding.endpoint.model_dump(mode="json") if binding.endpoint else None,
            )
            for slot, binding in self.settings.models.items()
        }

    def reader(self, source: str) -> Reader:
        """What reads the source's documents."""
        return open_reader(source, self.settings.sources[source])

    def binding(self, slot: Slot) -> ModelVersion:
        """The model that a slot is bound to. Raises PermanentError where it is empty."""
        if slot not in self.settings.models:
            raise PermanentError(
                f"slot {slot} is empty in these settings. Cure: bind the model that it had under models.{slot}"
            )
        return self.settings.models[slot]

    @property
    def hnsw(self) -> dict[Slot, Hnsw]:
        """How each model version's index is built."""
        return {slot: binding.hnsw for slot, binding in self.settings.models.items()}

    def build_means(self, region: str) -> Means:
        """What a build of an index may use in the region's database."""
        place = self.settings.regions[region]
        memory: int | None = place.build_memory
        if memory is None and place.dsn() is None:
            memory = machine.memory() // 4  # this machine's: up to four runs build at once
        return Means(memory, place.build_workers)

    def runner(self, region: str, tell: Tell = unheard) -> Run:
        """Who works on tasks that write to the region's store, as the settings have it."""
        work = self.settings.work
        if work.backend == "local":
            # Imported here: commands that only look need not wait for what reads parts.
            from embedding_assets.work.pool import local

            return partial(local, tell=tell)
        # Imported here: the extra [celery] has what it needs.
        from embedding_assets.work.celery_runner import Workers

        return partial(Workers(work, self.stores, region), tell=tell)

    @property
    def stores(self) -> dict[str, str]:
        """The URL of each region's store."""
        return {name: region.store for name, region in self.settings.regions.items()}

    def catalog(self, source: str) -> Path:
        """What the last look at the source found."""
        return self.home / "catalogs" / f"{source}.sqlite"

    @property
    def ledger(self) -> Path:
        """What the runs have used of their budgets."""
        return self.home / "budgets" / "runs.sqlite"

    @property
    def journals(self) -> Path:
        """Vectors that no part holds yet."""
        return self.home / "journals"

    @contextmanager
    def sole_writer(self, *partition: str, tell: Tell = unheard) -> Iterator[None]:
        """Wait until no other process of this machine writes the partition.

        Tells each second who does. Raises SourceBusy after `QUEUE_SECONDS`. Only saves work: across machines the
        snapshot log and the database's own locks decide.
        """
        path = self.home / "locks" / ("-".join(partition) + ".lock")
        private_folder(path.parent)
        lock, holder = FileLock(path), path.with_suffix(".holder")
        began = time.monotonic()
        while True:
            try:
                lock.acquire(timeout=_SLICE_SECONDS)
                break
            except Timeout:
                waited = time.monotonic() - began
            by = holder.read_text("utf-8", "replace") if holder.is_file() else "a process that left no name"
            tell(LockAwaited("|".join(partition), waited, by))
            if waited >= QUEUE_SECONDS:
                raise SourceBusy(
                    f"{'|'.join(partition)}: another run on this machine has been at work on it for over "
                    f"{QUEUE_SECONDS:g} s: {by}. Cure: let it end, or end it, and run this again"
                )
        try:
            with suppress(OSError):  # on a full disk nobody is told who; the run goes on
                holder.write_text(f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", "utf-8")
            yield
        finally:
            lock.release()
