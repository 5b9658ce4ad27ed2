"""How a snapshot goes from one asset to the next: it is in a store's log already, so only its log is looked at.

No data passes here: a snapshot is a few kilobytes of validated JSON, and the code that needs rows streams parts.
"""

from typing import Any

import dagster as dg

from embedding_assets.errors import PermanentError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.partitions import region_and_source
from embedding_assets.snapshots import log
from embedding_assets.snapshots.snapshot import Snapshot


class SnapshotIOManager(dg.IOManager):
    """Loads the current snapshot of an upstream asset's partition from the log it was committed to."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Hold the asset to its word: what it returns is what its log says."""
        if not isinstance(obj, Snapshot):
            raise dg.Failure(
                f"{context.asset_key.to_user_string()} returned no committed snapshot", allow_retries=False
            )

    def load_input(self, context: dg.InputContext) -> Snapshot:
        """The head of the upstream's log: in the region's store for a partition of a region, else in the primary's."""
        asset = context.asset_key.path[-1]
        region, source = region_and_source(context.asset_partition_key)
        if not source:
            region, source = self._deployment.settings.primary_region, region
        try:
            snapshot = log.head(self._deployment.store(region), asset, source)
        except PermanentError as error:
            # Raised before the asset's own code runs, where nothing else would keep Dagster from trying it again.
            raise dg.Failure(str(error), allow_retries=False) from error
        if snapshot is None:
            raise dg.Failure(
                f"{asset} of source {source} was never materialized. Cure: materialize it first: "
                f"dagster asset materialize --select {asset} --partition {context.asset_partition_key!r}",
                allow_retries=False,
            )
        return snapshot
