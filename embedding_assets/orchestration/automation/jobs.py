"""The two jobs that make a source current. Dagster runs one partitions definition at a time, so there are two."""

from typing import TYPE_CHECKING, Final

import dagster as dg

from embedding_assets.snapshots.names import REGION_ASSETS, SOURCE_ASSETS

if TYPE_CHECKING:
    # What define_asset_job returns; Dagster does not export its name.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition as AssetJob

SOURCE_JOB: Final = "sync_source"
REGION_JOB: Final = "sync_region"


def source_job() -> "AssetJob":
    """Documents to vectors, for one source, in the primary region."""
    return dg.define_asset_job(
        SOURCE_JOB,
        selection=list(SOURCE_ASSETS),
        description="Reads a source and brings its chunks and the models' vectors in step with it.",
    )


def region_job() -> "AssetJob":
    """Replica to published index, for one source in one region."""
    return dg.define_asset_job(
        REGION_JOB,
        selection=list(REGION_ASSETS),
        description="Brings a region's replica, table and index of a source in step with the primary's snapshots.",
    )
