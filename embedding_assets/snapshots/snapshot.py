"""The snapshot format: frozen models that are the JSON in a store, validated at the door (see docs/format.md)."""

from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from embedding_assets.snapshots.keys import Hex, PartKey, Root, root_of
from embedding_assets.snapshots.rejections import Rejection, said

FORMAT: Final = 3

MOST_SHARD_BITS: Final = 32
"""As many bits of a document's hash are kept (`keys.document_bucket`)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Layer(_Frozen):
    """One immutable file with rows of one shard of a stage: a base, or a delta on what lies below it."""

    asset: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """It is a folder of the store."""
    shard: int = Field(ge=0, lt=1 << MOST_SHARD_BITS)
    key: Hex
    """Of a base: the key of the part that it is alone."""
    inputs: tuple[Hex, ...] = ()
    """Of a base: the keys of the parts that it was derived from; none where the input is the source itself. Of a delta:
    the key of the part that it lies on, then the keys of the layers that it was derived from."""
    dead: tuple[str, ...] = ()
    """Hashes of the texts that were left out as dead, sorted."""
    rows: int = Field(ge=0)
    gone: int = Field(default=0, ge=0)
    """How many rows of the layers below it names that are gone."""
    bytes: int = Field(ge=0)
    sha256: Hex
    """Of the file that won the put: a provider's last bits may differ between runs, the stored file is the truth."""

    def path(self, source: str) -> str:
        return layer_path(self.asset, source, PartKey(self.key))


class Part(_Frozen):
    """One stage's rows of one shard: a base, and the deltas on it."""

    asset: str
    shard: int = Field(ge=0, lt=1 << MOST_SHARD_BITS)
    key: Hex
    """Names what the rows were derived from, however they are stored."""
    inputs: tuple[Hex, ...] = ()
    """Keys of the parts that this one was derived from; empty where the input is the source itself."""
    dead: tuple[str, ...] = ()
    """Hashes of the texts of its rows that were left out as dead, sorted."""
    rows: int = Field(ge=0)
    """Of the part; rows of its layers that later layers replace or name as gone do not count."""
    below: tuple[Hex, ...] = ()
    """The key that the part had with its first layer, with its first two, and so on, without the last."""
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)]
    """The base, then the deltas in their order."""

    @model_validator(mode="before")
    @classmethod
    def _of_format_2(cls, entry: Any) -> Any:
        """A part of format 2 was one file."""
        if not isinstance(entry, dict) or "layers" in entry:
            return entry
        return {name: entry[name] for name in entry if name not in ("bytes", "sha256")} | {"layers": [entry]}

    @classmethod
    def alone(cls, base: Layer) -> "Part":
        """The part that is this base."""
        same = {name: getattr(base, name) for name in ("asset", "shard", "key", "inputs", "dead", "rows")}
        return cls(**same, layers=(base,))

    @property
    def contents(self) -> tuple[str, ...]:
        """The part's key with each of its layers on top."""
        return (*self.below, self.key)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)


def layer_path(asset: str, source: str, key: PartKey) -> str:
    """Where a layer lies in a store."""
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

    format: Annotated[Literal[1, 2, 3], AfterValidator(lambda found: FORMAT)] = FORMAT
    """Older formats are read as this one: in 2 a part was one file, in 1 rejections looked otherwise besides."""
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
        return self.parts == other.parts and self.says_the_same(other)

    def says_the_same(self, other: "Content") -> bool:
        """Whether both have the same content, in whatever layers it is stored."""
        return (
            self.root == other.root and self.upstream == other.upstream and said(self.rejected) == said(other.rejected)
        )

    def parts_of(self, asset: str) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.asset == asset)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The files that it names."""
        return tuple(layer for part in self.parts for layer in part.layers)

    @property
    def total_bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def root_holds(self) -> bool:
        """Whether the root recorded is that of the parts listed."""
        return self.root == root_of([part.key for part in self.parts])


def sorted_parts(parts: list[Part]) -> tuple[Part, ...]:
    return tuple(sorted(parts, key=lambda part: (part.asset, part.shard)))


def root_of_parts(parts: tuple[Part, ...]) -> Root:
    return root_of([part.key for part in parts])
