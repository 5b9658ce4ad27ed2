"""The events of the pipeline: what happened, as frozen values, and the one signature by which they are told.

A stage gets a `Tell` from its caller and calls it. There is no registry and no global state. An event says what
happened; of which source, in which region and run it happened the sink knows, for it was made for that. Names of
documents and text are in none, so that every event may be counted, logged and sent.

Times are seconds, sizes bytes, money US dollars.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from embedding_assets.snapshots.slots import Slot
from embedding_assets.snapshots.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ItemRead:
    """An item of a source was read, for it looks changed; the `items`-th of this look."""

    items: int


@dataclass(frozen=True, slots=True)
class ShardMade:
    """A stage has written the part of one shard, the `made`-th of the `wanted` that it makes in this run."""

    asset: str
    shard: int
    rows: int
    bytes: int
    made: int
    wanted: int


@dataclass(frozen=True, slots=True)
class TaskSettled:
    """A runner's task came to its end: the `settled`-th of the `tasks` that the stage gave it."""

    task: str
    """The name of the function that did it, such as `make_chunks`."""
    seconds: float
    """From its begin to its end, without its wait for a worker."""
    settled: int
    tasks: int


@dataclass(frozen=True, slots=True)
class RequestSettled:
    """A request to the embeddings endpoint was answered, or has failed."""

    outcome: str
    """`ok`, or the class of the error (`embedding/engine/errors.py`)."""
    texts: int
    tokens: int
    """As the provider counts them; our own count where it names none."""
    sent_at: float
    """Seconds since the epoch. Events are told a little later than they happen."""
    seconds: float
    """From when it left to its answer."""
    asked_to_wait_seconds: float | None
    """What the provider asked for, as in Retry-After."""


@dataclass(frozen=True, slots=True)
class BreakerOpened:
    """The provider has failed for everyone: no request leaves but probes."""

    failures: int
    """In a row."""


@dataclass(frozen=True, slots=True)
class BreakerClosed:
    """A probe got through, requests leave again."""

    seconds: float
    """Since it opened."""


@dataclass(frozen=True, slots=True)
class EngineProgress:
    """How far a run of the engine is, about once a second and at its end. Counts are those of the run so far."""

    texts: int
    """Delivered as vectors."""
    dead: int
    """Texts delivered as dead letters."""
    tokens: int
    cost_usd: float
    requests: int
    retries: int
    throttled: int
    """Answers of 429."""
    in_flight: int
    """Requests under way now."""
    window: int
    """Requests that may be under way now."""
    breaker_open: bool
    seconds: float
    """Since the run's start; rates are for the reader to divide."""


@dataclass(frozen=True, slots=True)
class EmbeddingProgress:
    """How many rows of the shards to be made have a vector or a dead letter: `rows` of `all_rows`."""

    rows: int
    all_rows: int
    engine: EngineProgress


@dataclass(frozen=True, slots=True)
class TextRejected:
    """A text is a dead letter from now on."""

    error_class: str
    attempts: int


@dataclass(frozen=True, slots=True)
class SnapshotCommitted:
    """A stage's snapshot is the head of its log."""

    asset: str
    number: int
    parts: int
    rows: int
    bytes: int
    rejected: Mapping[str, int]
    """Its rejections, counted by class of error."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Of the shards and rows of a load, what is in the table, and what of it this run wrote."""

    shards: int
    all_shards: int
    rows: int
    all_rows: int
    rows_written: int
    bytes_written: int
    """To the database, as encoded."""


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How many vectors of a slot the graph has, about once a second and at its end. Told in a thread of its own."""

    slot: Slot
    phase: str
    """As Postgres names it; `built` at the end."""
    vectors: int
    all_vectors: int


@dataclass(frozen=True, slots=True)
class IndexBuilt:
    """A slot's HNSW index was built, and is not measured yet."""

    slot: Slot
    vectors: int
    seconds: float
    memory_bytes: int
    """Granted to the build."""
    workers: int
    """Asked for besides the process that builds."""


@dataclass(frozen=True, slots=True)
class RecallMeasured:
    """A slot's index was measured against exact search."""

    slot: Slot
    recall_at_10: float | None
    """At `ef_search`; None of fewer vectors than can be measured."""
    ef_search: int
    bytes: int
    """Of the index."""


@dataclass(frozen=True, slots=True)
class GenerationPublished:
    """Readers see another generation of the source."""

    generation: int
    seconds: float
    """That the switch took, with its waits for readers."""


@dataclass(frozen=True, slots=True)
class LockAwaited:
    """Another run holds what this one needs; told about once a second for as long as it does."""

    what: str
    seconds: float
    """Waited by now."""
    holder: str


@dataclass(frozen=True, slots=True)
class AnswerAwaited:
    """A provider gives no answer to what is in flight; told about once a second for as long as it gives none."""

    what: str
    """The model and its endpoint."""
    seconds: float
    """Waited by now."""
    timeout_seconds: float
    """After which a request is given up."""


@dataclass(frozen=True, slots=True)
class RecoveryAwaited:
    """A provider fails or throttles, and nothing has got through since; told about once a second for as long."""

    what: str
    """The model and its endpoint."""
    seconds: float
    """Waited by now."""
    trouble: str
    """The class of its last error, and its words."""
    pause_seconds: float
    """Until the next request may leave."""
    left_seconds: float
    """Until the run gives up."""


@dataclass(frozen=True, slots=True)
class RetryAwaited:
    """A step is tried again later, as a provider asked; told about once a second, in a thread of its own."""

    what: str
    seconds: float
    """Waited by now."""
    trouble: str
    left_seconds: float


Event = (
    ItemRead
    | ShardMade
    | TaskSettled
    | RequestSettled
    | BreakerOpened
    | BreakerClosed
    | EngineProgress
    | EmbeddingProgress
    | TextRejected
    | SnapshotCommitted
    | LoadProgress
    | IndexProgress
    | IndexBuilt
    | RecallMeasured
    | GenerationPublished
    | LockAwaited
    | AnswerAwaited
    | RecoveryAwaited
    | RetryAwaited
)

Tell = Callable[[Event], None]
"""A sink, as the domain sees it. It has to be quick, for the work waits for it, and to raise nothing, for that would
end the work. It is called from one thread at a time, `IndexProgress` and `RetryAwaited` apart."""


def unheard(event: Event) -> None:
    """The sink that does nothing. Whoever gets it asks for nothing that only an event would say."""


def committed(snapshot: Snapshot) -> SnapshotCommitted:
    """The event of this snapshot's commit."""
    return SnapshotCommitted(
        snapshot.asset,
        snapshot.number,
        len(snapshot.parts),
        sum(part.rows for part in snapshot.parts),
        snapshot.total_bytes,
        Counter(rejection.error_class for rejection in snapshot.rejected),
    )
