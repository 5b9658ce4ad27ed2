"""Names derived from inputs: part keys, roots, and the shard that a document falls into."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Final, NewType

from pydantic import Field

PartKey = NewType("PartKey", str)
"""64 hex digits: SHA-256 over what a part was derived from."""

Root = NewType("Root", str)
"""64 hex digits: SHA-256 over the part keys of a snapshot."""

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 as JSON has it."""

SHARD_BYTES: Final = 5_600_000
"""At most this much text in an average shard. Halving at the limit keeps shards between 2.8 and 5.6 MB, about 4,000
chunks of 256 tokens (~1,000 bytes each)."""


def part_key(stage: str, version: str, inputs: Sequence[str], dead: Sequence[str] = ()) -> PartKey:
    """The name of the part that `stage` at `version` derives from `inputs` while leaving `dead` out."""
    derivation = [stage, version, list(inputs), sorted(dead)]
    return PartKey(hashlib.sha256(json.dumps(derivation, separators=(",", ":")).encode()).hexdigest())


def root_of(keys: Sequence[str]) -> Root:
    """The root of a snapshot with these part keys, in shard order. Depends on inputs and stage versions alone."""
    return Root(hashlib.sha256("\n".join(keys).encode()).hexdigest())


def shard_bits(text_bytes: int) -> int:
    """How many bits of the document hash number the shards of a source of this size: a pure function of the size."""
    bits = 0
    while text_bytes > SHARD_BYTES << bits:
        bits += 1
    return bits


def document_bucket(document_id: str) -> int:
    """The first 32 bits of the hash of a document's id; a shard is a prefix of it."""
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:4], "big")


def shard_of(bucket: int, bits: int) -> int:
    """The shard, out of 2**bits, that holds this bucket."""
    return bucket >> (32 - bits)
