"""The names of the assets, which are those of their logs and parts, in the order of the flow."""

from typing import Annotated, Final

from pydantic import StringConstraints

from embedding_assets.snapshots.slots import SLOTS, asset_of

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")]
"""Of a source or a region. It goes into paths and into SQL names."""

RAW_DOCS: Final = "raw_docs"
CHUNKS: Final = "chunks"
VECTORS: Final = tuple(asset_of(slot) for slot in SLOTS)
REPLICA: Final = "s3_replica"
TABLE: Final = "pgvector_table"
INDEX: Final = "hnsw_index"

SOURCE_ASSETS: Final = (RAW_DOCS, CHUNKS, *VECTORS)
"""By source, in the primary region."""

REGION_ASSETS: Final = (REPLICA, TABLE, INDEX)
"""By region and source."""

JOURNALS: Final = "journals"
"""The folder of a store for vectors that no part holds yet."""
