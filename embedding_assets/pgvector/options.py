"""What may be said of a model's vectors in a region's tables, of the tables, and of their upkeep."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, time
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import (
    BeforeValidator,
    ByteSize,
    Discriminator,
    Field,
    PlainSerializer,
    StringConstraints,
    Tag,
    model_validator,
)

from embedding_assets.errors import Problem
from embedding_assets.options import Options
from embedding_assets.snapshots.slots import SLOTS, Slot

VALIDATION_DAYS: Final = 7.0

LARGEST_VECTOR: Final = 2_000
LARGEST_HALFVEC: Final = 4_000
"""Dimensions that pgvector can index (HNSW) as 4-byte and as 2-byte floats."""

M: Final = 16
EF_CONSTRUCTION: Final = 200
"""Published recall@10 of 1 M × 1,536 with these: .966 at ef_search 40, .995 at 200 (pgvector #409)."""

TARGET_RECALL: Final = 0.98


class Hnsw(Options):
    """How a graph is built: the links of each vector, and the candidates that are looked at for them. The bounds are
    pgvector's."""

    m: int = Field(default=M, ge=2, le=100, strict=True)
    ef_construction: int = Field(default=EF_CONSTRUCTION, ge=4, le=1000, strict=True)

    @model_validator(mode="after")
    def _has_candidates_for_its_links(self) -> Self:
        if self.ef_construction < 2 * self.m:
            raise Problem(
                f"ef_construction, {self.ef_construction}, is less than twice m, {self.m}",
                f"write ef_construction: {2 * self.m} or more",
            )
        return self


USUAL: Final[Mapping[Slot, Hnsw]] = {slot: Hnsw() for slot in SLOTS}


class VectorOptions(Options):
    """How a model's vectors are stored and indexed. It decides no vector."""

    halfvec: bool = False
    """Store and index 2-byte floats: half the memory. Above 2,000 dimensions it is so in any case."""
    hnsw: Hnsw = Hnsw()


class BuildOptions(Options):
    """What the build of an index may use in a region's database."""

    build_memory: ByteSize | None = Field(default=None, ge=1 << 20, lt=1 << 41)
    """What the build of an index may use at most; None: a quarter of an embedded server's machine, another server's
    shared_buffers and at least 2 GiB."""
    build_workers: int | None = Field(default=None, ge=0, le=1024, strict=True)
    """Besides the process that builds; None: the server's max_parallel_maintenance_workers."""


class Hybrid(Options):
    """Hybrid search: what an index on the words costs is measured in `indexes/inverted.py`."""

    language: str = Field(min_length=1)
    """A text search configuration of the database, such as `english`, or `simple` for words as they are."""


class QuietHours(NamedTuple):
    """A part of each day, in UTC, `begin` belonging to it and `end` not; the whole day where both are the same."""

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "QuietHours":
        """`01:00-05:00`, or `22:30-04:00` over midnight. Raises ValueError for anything else."""
        if not re.fullmatch(r"\d\d:\d\d-\d\d:\d\d", text, re.ASCII):
            raise ValueError("not a time of day and another one, such as 01:00-05:00")
        return cls(*map(time.fromisoformat, text.split("-")))

    @property
    def minutes(self) -> int:
        """How long they last."""
        begin, end = (60 * at.hour + at.minute for at in self)
        return (end - begin - 1) % (24 * 60) + 1

    def contains(self, now: datetime) -> bool:
        """Whether a moment, which knows its time zone, is in them."""
        at = now.astimezone(UTC).time()
        if self.begin < self.end:
            return self.begin <= at < self.end
        return at >= self.begin or at < self.end

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"


def _quiet_hours(text: object) -> QuietHours:
    try:
        hours = QuietHours.parse(str(text))
    except ValueError:
        raise Problem("not hours of a day", 'write "01:00-05:00", in UTC, or "22:30-04:00" over midnight') from None
    if hours.minutes < 60:
        raise Problem(
            f"{hours.minutes} minutes are too short: upkeep is started on the hour, and might never be in them",
            "write an hour or more",
        )
    return hours


RoleName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[^\x00]*$")]


def _readers_or_off(value: object) -> object:
    if value == "off":  # in quotes; without them YAML has read it as false
        return False
    if value is None or value is False or isinstance(value, dict):
        return value
    raise Problem(
        "not the sources that each database role may read",
        "write {my_app: [my_source]}, or off to have it switched off",
    )


ReadersOrOff = Annotated[
    Annotated[dict[RoleName, tuple[str, ...]], Tag("readers")] | Annotated[Literal[False], Tag("off")],
    Discriminator(lambda value: "off" if value is False else "readers"),
]


class Migration(Options):
    """From one model to the next."""

    validation_days: float = Field(default=VALIDATION_DAYS, ge=0, le=3650, strict=True)
    """How long the model that was live is kept after another one was promoted, to roll back to."""
    promote: Literal["by hand", "automatically"] = "by hand"
    """Whether a model whose gates are all green is promoted by itself."""


class TableOptions(Options):
    """What holds for the tables of every region."""

    migration: Migration = Migration()

    hybrid: Hybrid | None = None
    row_level_security: Annotated[ReadersOrOff | None, BeforeValidator(_readers_or_off)] = None
    """The sources that each database role may read; False, and every role that may search reads all; None leaves the
    databases as they are, for a line that is lost must open nothing."""
    target_recall: float = Field(default=TARGET_RECALL, gt=0, le=1, strict=True)
    """recall@10 against exact search; an index below it is served, and said to be degraded."""
    quiet_hours: Annotated[QuietHours, BeforeValidator(_quiet_hours), PlainSerializer(str)] = QuietHours.parse(
        "01:00-05:00"
    )
    """When upkeep may load the databases, in UTC."""
