"""The snapshot format: frozen models that are the JSON in a store, validated at the door (see docs/format.md)."""

from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from embedding_assets.snapshots.keys import Hex, PartKey, Root, root_of
from embedding_assets.snapshots.rejections import Rejection, said

FORMAT: Final = 2

MOST_SHARD_BITS: Final = 32
"""As many bits of a document's hash are kept (`keys.document_bucket`)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Frozen):
    """One immutable file: one stage's rows of one shard."""

    asset: str
    shard: int = Field(ge=0, lt=1 << MOST_SHARD_BITS)
    key: Hex
    inputs: tuple[Hex, ...] = ()
    """Keys of the parts that this one was derived from; empty where the input is the source itself."""
    dead: tuple[str, ...] = ()
    """Hashes of the texts that were left out as dead, sorted."""
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: Hex
    """Of the file that won the put: a provider's last bits may differ between runs, the stored part is the truth."""

    def path(self, source: str) -> str:
        return part_path(self.asset, source, PartKey(self.key))


def part_path(asset: str, source: str, key: PartKey) -> str:
    """Where a part lies in a store."""
    return f"parts/{asset}/{source}/{key}.parquet"


class Content(Protocol):
    """What readers get of a snapshot: all but its place in the log."""

    @property
    def root(self) -> str: ...
    @property
    def parts(self) -> "tuple[Part, ...]": ...
    @property
    def rejected(self) -> tuple[Rejection, ...]: ...
    @property
    def upstream(self) -> dict[str, str]: ...


class Snapshot(_Frozen):
    """The immutable list of a stage's parts for one source. `root` names its content, `number` its place in the log."""

    format: Annotated[Literal[1, 2], AfterValidator(lambda found: FORMAT)] = FORMAT
    """Format 1 differed in its rejections alone: it is read as format 2."""
    asset: str
    source: str
    number: int = Field(ge=1)
    """Place in the snapshot log, from 1."""
    root: Hex
    version: str
    """The stage's version: its code, and the settings that decide its rows."""
    shard_bits: int = Field(ge=0, le=MOST_SHARD_BITS)
    parts: tuple[Part, ...]
    """By asset, then shard; a shard without rows has no part."""
    counts: dict[str, int]
    """Totals for people and checks, such as documents, chunks, tokens, vectors."""
    rejected: tuple[Rejection, ...] = ()
    upstream: dict[str, str] = {}
    """Root of each snapshot that this one was derived from, by asset."""
    model: dict[str, Any] | None = None
    """The model's identity, for embeddings."""
    created_at: str
    """When it was committed, ISO 8601 UTC. Not part of the root."""

    def same_content(self, other: "Content") -> bool:
        """Whether committing one after the other would change nothing for any reader."""
        return (
            self.root == other.root
            and self.parts == other.parts
            and self.upstream == other.upstream
            and said(self.rejected) == said(other.rejected)
        )

    def parts_of(self, asset: str) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.asset == asset)

    @property
    def total_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def root_holds(self) -> bool:
        """Whether the root recorded is that of the parts listed."""
        return self.root == root_of([part.key for part in self.parts])


def sorted_parts(parts: list[Part]) -> tuple[Part, ...]:
    return tuple(sorted(parts, key=lambda part: (part.asset, part.shard)))


def root_of_parts(parts: tuple[Part, ...]) -> Root:
    return root_of([part.key for part in parts])
