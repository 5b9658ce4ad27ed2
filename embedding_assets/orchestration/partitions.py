"""The partitions of the assets: by source, and from the replica on by region and source."""

import dagster as dg

from embedding_assets.settings.models import Settings


def by_source(settings: Settings) -> dg.StaticPartitionsDefinition:
    """One partition a source. Static, from the settings: the keys exist wherever the definitions load."""
    return dg.StaticPartitionsDefinition(sorted(settings.sources))


def by_region_and_source(settings: Settings) -> dg.MultiPartitionsDefinition:
    """One partition a region and source. Keys read `region|source`: Dagster joins dimensions by their names' order."""
    return dg.MultiPartitionsDefinition(
        {"region": dg.StaticPartitionsDefinition(sorted(settings.regions)), "source": by_source(settings)}
    )


def region_and_source(key: str) -> tuple[str, str]:
    """The region and the source of a partition key such as `eu-west-1|handbook`."""
    region, _, source = key.partition("|")
    return region, source
