"""Findings: what an examination says of one thing that is not as it should be. What is found is what is mended."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from embedding_assets.errors import PipelineError
from embedding_assets.snapshots.names import CHUNKS, RAW_DOCS, VECTORS
from embedding_assets.snapshots.snapshot import Snapshot


class Kind(StrEnum):
    """What is the matter; it decides who mends it."""

    NEVER_MADE = "never made"
    """A log has no entry yet."""
    BEHIND = "behind"
    """It was derived from something else than what is current now."""
    PART_MISSING = "part missing"
    PART_DAMAGED = "part damaged"
    ENTRY_DAMAGED = "entry damaged"
    """A log entry says of itself what is not so."""
    ROWS_DIFFER = "rows differ"
    """Of one shard, in the table that readers see."""
    INDEX_INVALID = "index invalid"
    ORPHAN = "orphan"
    """The settings do not have its source."""
    UNKNOWN = "unknown"
    """It could not be looked at."""


@dataclass(frozen=True)
class Where:
    """What a finding is about: an asset of a source in a region, or one file or shard of it."""

    source: str
    region: str
    asset: str
    path: str | None = None
    """Below the region's store."""
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.region}|{self.source}" + ("" if self.shard is None else f": shard {self.shard}")


@dataclass(frozen=True)
class Finding:
    """One thing found: `what` is a sentence without its full stop, `cure` what a person does, or types."""

    kind: Kind
    where: Where
    what: str
    cure: str

    @property
    def place(self) -> tuple[str, str]:
        """Region and source."""
        return self.where.region, self.where.source

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. Cure: {self.cure}"

    def as_json(self) -> dict[str, Any]:
        """The fields that `--json` prints; they are stable."""
        return {"kind": self.kind.value, **asdict(self.where), "what": self.what, "cure": self.cure}


@dataclass(frozen=True)
class Repair:
    """What was done about findings of one place: `did` is a sentence without its full stop."""

    findings: tuple[Finding, ...]
    did: str
    failed: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Region and source."""
        return self.findings[0].place

    def __str__(self) -> str:
        region, source = self.place
        return f"{region}|{source}: {self.did}"

    def as_json(self) -> dict[str, Any]:
        """The fields that `--json` prints; they are stable."""
        region, source = self.place
        findings = [finding.as_json() for finding in self.findings]
        return {"source": source, "region": region, "did": self.did, "failed": self.failed, "findings": findings}


def could_not_be(what: str, where: Where, error: PipelineError) -> Finding:
    """A finding that something could not be looked at, with the error's own cure if it has one."""
    reason, _, cure = str(error).partition(" Cure: ")
    return Finding(Kind.UNKNOWN, where, f"{what}: {reason.rstrip('.')}", cure or "make it reachable, and ask again")


def links_behind(heads: Mapping[str, Snapshot]) -> Iterator[tuple[str, str]]:
    """(asset, sentence) of each of a source's heads that was derived from another snapshot than the one before it."""
    for asset, upstream in ((CHUNKS, RAW_DOCS), *((vectors, CHUNKS) for vectors in VECTORS)):
        if asset in heads and upstream in heads and heads[asset].upstream.get(upstream) != heads[upstream].root:
            yield asset, f"{asset} was not derived from the newest {upstream}"
