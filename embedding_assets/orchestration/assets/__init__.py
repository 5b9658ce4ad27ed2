"""The software-defined assets, one module each, in the order of the flow: thin, the work is in a domain package.

What belongs here: partitions, retries, metadata, checks, and the call. What does not: anything that could run without
Dagster.
"""

import dagster as dg

from embedding_assets.orchestration.assets import chunks, embeddings, hnsw_index, pgvector_table, raw_docs, s3_replica
from embedding_assets.orchestration.partitions import by_region_and_source, by_source
from embedding_assets.settings.models import Settings
from embedding_assets.snapshots.slots import SLOTS


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """All seven, for the sources and regions of these settings."""
    sources, regions = by_source(settings), by_region_and_source(settings)
    return [
        raw_docs.build(sources),
        chunks.build(sources),
        *(embeddings.build(slot, settings.models.get(slot), sources) for slot in SLOTS),
        s3_replica.build(regions),
        pgvector_table.build(regions),
        hnsw_index.build(regions),
    ]
