"""What could not be processed, between the stages that find it and the table that remembers it.

The snapshots say what is dead; the table in the primary region's database adds history, and what people decided. So a
database that can't be reached stops no run: it is told, and the next run of the stage puts it on record.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple
from uuid import UUID

from embedding_assets.errors import PermanentError, PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector import dead_letters as table
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.dead_letters import DeadLetter, State
from embedding_assets.pgvector.schema.migrations import ensure_migrated, is_migrated
from embedding_assets.snapshots import log
from embedding_assets.snapshots.layers import read_layer
from embedding_assets.snapshots.names import CHUNKS
from embedding_assets.snapshots.rejections import RejectedText, Rejection, may_heal
from embedding_assets.snapshots.snapshot import Snapshot

OPEN: Final[tuple[State, ...]] = ("pending", "replayed", "escalated")

MOST_REPLAYS: Final = 2
"""Times that the reconciliation has a letter tried again, a day apart, before it asks people."""

_HISTORY_DAYS: Final = 90

_warned: Final[set[str]] = set()
"""Warnings of this process: one of several stages, or sources, is enough for a database that is away."""


class StageRejections:
    """What a stage rejects while it runs, beside what was on record of it when it began."""

    def __init__(self, on_record: Sequence[DeadLetter]) -> None:
        self._on_record = on_record
        self.replayed = {letter.item for letter in on_record if letter.state == "replayed"}
        """Identities of those that somebody asked to try again."""
        self._accepted = {letter.item for letter in on_record if letter.state == "resolved"}
        self._noted: list[Rejection] = []
        self._complete = False

    @property
    def known(self) -> list[RejectedText]:
        """The texts on record that nobody asked to try again."""
        texts = [letter for letter in self._on_record if letter.kind == "text"]
        return [letter.as_rejected_text() for letter in texts if letter.item not in self.replayed]

    def unaccepted(self, rejected: Sequence[Rejection]) -> list[Rejection]:
        """Those of these that nobody has accepted as they are."""
        return [rejection for rejection in rejected if rejection.identity not in self._accepted]

    def note(self, rejection: Rejection) -> None:
        """Note a new one: it goes on record even if the run fails."""
        self._noted.append(rejection)

    def commit(self, snapshot: Snapshot) -> None:
        """Note what a committed snapshot rejects: that is all there is."""
        self._noted, self._complete = list(snapshot.rejected), True

    @property
    def has_news(self) -> bool:
        """Whether there is anything to put on record."""
        return bool(self._noted or (self._complete and self._on_record))

    def record(self, conn: Connection, source: str, stage: str, model_version: str | None) -> None:
        """Tell the table what came of the run."""
        table.record(conn, source, stage, model_version, self._noted, complete=self._complete)


@contextmanager
def rejections_of(
    deployment: Deployment, source: str, stage: str, model_version: str | None, warn: Callable[[str], None]
) -> Iterator[StageRejections]:
    """Those of a stage's run; what comes of them goes on record at the end, however the run ends."""
    try:
        with _table(deployment) as conn:
            rejections = StageRejections(table.standing(conn, source, stage, model_version))
    except PipelineError as error:
        # One wait for a database that does not answer is enough: nothing is put on record at the end either.
        warning = f"The dead letters on record can't be reached ({error}). Going on; the next run puts all on record."
        if warning not in _warned:
            _warned.add(warning)
            warn(warning)
        yield StageRejections([])
        return
    try:
        yield rejections
    finally:
        if rejections.has_news:
            try:
                with _table(deployment) as conn:
                    rejections.record(conn, source, stage, model_version)
            except PipelineError as error:
                warn(f"The dead letters of this run were not put on record ({error}). The next run does it.")


def listed(deployment: Deployment, source: str | None, states: Sequence[State]) -> list[DeadLetter]:
    """The letters in these states, seen last first."""
    with deployment.connect(deployment.settings.primary_region) as conn:
        return table.listed(conn, source, states) if is_migrated(conn) else []


def sources_with_open(deployment: Deployment) -> set[str]:
    """The sources of which letters are open: a run may have something to do with them."""
    with deployment.connect(deployment.settings.primary_region) as conn:
        return table.sources_with(conn, OPEN) if is_migrated(conn) else set()


class Shown(NamedTuple):
    """A letter and the text that it is about; None where the store no longer has it, or it never was a text."""

    letter: DeadLetter
    text: str | None


def show(deployment: Deployment, letter_id: int) -> Shown:
    """One letter, with its text. Raises PermanentError where there is no such letter."""
    with deployment.connect(deployment.settings.primary_region) as conn:
        (letter,) = _by_id(conn, [letter_id])
    return Shown(letter, _text_of(deployment, letter))


def mark(deployment: Deployment, ids: Sequence[int], state: State) -> list[DeadLetter]:
    """Give letters a state; what they are then. Raises PermanentError, and marks nothing, if one is not there."""
    with _table(deployment) as conn:
        _by_id(conn, ids)
        table.mark(conn, ids, state)
        return _by_id(conn, ids)


class Reconciled(NamedTuple):
    """What the reconciliation came to; all are numbers of letters."""

    replayed: int
    escalated: int
    withdrawn: int  # of sources that are no longer in the settings
    forgotten: int


def reconcile(deployment: Deployment, alert: Callable[[str], bool]) -> Reconciled:
    """Have tried again what may heal, tell people of the rest, and clear away what concerns nobody any more.

    `alert` is called once, with no connection open meanwhile: where it says that nobody could be told, the next
    reconciliation tells again.
    """
    with _table(deployment) as conn:
        pending = table.listed(conn, None, ["pending"])
        orphans = [letter for letter in pending if letter.source not in deployment.settings.sources]
        rest = [letter for letter in pending if letter.source in deployment.settings.sources]
        hopeful = [letter for letter in rest if may_heal(letter.error_class) and letter.replays < MOST_REPLAYS]
        for_people = [letter for letter in rest if letter not in hopeful]
        table.mark(conn, _ids(orphans), "resolved")
        table.mark(conn, _ids(hopeful), "replayed")
        forgotten = table.forget_resolved(conn, _HISTORY_DAYS)
    escalated: list[DeadLetter] = []
    if for_people and alert(describe(for_people)):
        with _table(deployment) as conn:
            still = set(_ids(table.listed(conn, None, ["pending"])))  # somebody may have seen to one meanwhile
            escalated = [letter for letter in for_people if letter.id in still]
            table.mark(conn, _ids(escalated), "escalated")
    return Reconciled(len(hopeful), len(escalated), len(orphans), forgotten)


def describe(letters: Sequence[DeadLetter]) -> str:
    """Letters for people: how many of what kind, and where to look."""
    kinds = Counter((letter.source, letter.stage, letter.error_class) for letter in letters)
    lines = [
        f"{count} × {error} in {stage} of source {source}" for (source, stage, error), count in kinds.most_common()
    ]
    what = "1 dead letter needs" if len(letters) == 1 else f"{len(letters)} dead letters need"
    return f"{what} a person: {'; '.join(lines)}. See: embedding-assets dead-letters list"


@contextmanager
def _table(deployment: Deployment) -> Iterator[Connection]:
    """The primary region's database with the table in it, whatever else of the settings it may refuse."""
    with deployment.connect(deployment.settings.primary_region) as conn:
        ensure_migrated(conn)
        yield conn


def _by_id(conn: Connection, ids: Sequence[int]) -> list[DeadLetter]:
    letters = table.by_id(conn, ids) if is_migrated(conn) else []
    if missing := sorted(set(ids) - {letter.id for letter in letters}):
        raise PermanentError(
            f"there is no dead letter {', '.join(map(str, missing))}. Cure: embedding-assets dead-letters list --all"
        )
    return letters


def _ids(letters: Sequence[DeadLetter]) -> list[int]:
    return [letter.id for letter in letters]


def _text_of(deployment: Deployment, letter: DeadLetter) -> str | None:
    if letter.chunk_id is None:
        return None
    path, _, chunk_id = letter.payload.partition("#")
    chunks = log.head(deployment.primary, CHUNKS, letter.source)
    layer = next((layer for layer in chunks.layers if layer.path(letter.source) == path), None) if chunks else None
    if layer is None:
        return None
    rows = read_layer(deployment.primary, letter.source, layer, ["chunk_id", "text"]).table
    ids = rows.column("chunk_id").to_pylist()
    row = UUID(chunk_id).bytes
    return str(rows.column("text")[ids.index(row)].as_py()) if row in ids else None
