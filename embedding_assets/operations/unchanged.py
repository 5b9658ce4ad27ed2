"""Whether a source needs no run: what `materialize` asks before it starts Dagster.

A run that changes nothing opens no file of the source and reads no part. What it proves is proved here: that the
source's names and marks are those of the last read, that each stage's head was made by this version and these settings
from the head before it, that the stores list what the heads name with the right sizes, and that every region serves
the newest with valid indexes. What rots and keeps its size is for `verify`, as it is where a run is made.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from embedding_assets.chunking import stage as chunking
from embedding_assets.embedding.task import VERSION, version_of
from embedding_assets.errors import PipelineError
from embedding_assets.operations import outcomes
from embedding_assets.operations.dead_letters import sources_with_open
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.regions import RegionState
from embedding_assets.operations.status import in_step
from embedding_assets.snapshots.names import CHUNKS, RAW_DOCS
from embedding_assets.snapshots.slots import SLOTS, asset_of
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.sources.stage import Looked
from embedding_assets.sources.unchanged import look


def unchanged(
    deployment: Deployment, sources: Sequence[str], regions: Sequence[RegionState]
) -> Iterator[tuple[str, Looked]]:
    """Each of the sources for which neither it nor any of these regions has anything to be run, with what the look at
    it found; that is noted as a look that went well.

    A source with rejections, or open dead letters, always may have.
    """
    try:
        open_letters = sources_with_open(deployment)
    except PipelineError:
        return
    for source in sources:
        if source in open_letters:
            continue
        heads = in_step(deployment, source, regions)
        if heads is None or not _is_as_set(deployment, source, heads):
            continue
        found: Looked | None = None
        with suppress(PipelineError):  # a run tells of it
            found = look(deployment.reader(source), deployment.catalog(source), heads[RAW_DOCS])
        if found is not None:
            outcomes.note(deployment.home, source, RAW_DOCS)
            yield source, found


def _is_as_set(deployment: Deployment, source: str, heads: Mapping[str, Snapshot]) -> bool:
    """Whether this version of the stages, with these settings, made the heads, and rejected nothing."""
    settings = deployment.settings
    if heads[CHUNKS].version != chunking.version_of(settings.sources[source].chunking):
        return False
    for slot in SLOTS:
        vectors, binding = heads[asset_of(slot)], settings.models.get(slot)
        as_bound = vectors.model is None if binding is None else binding.is_recorded_as(vectors.model)
        version = VERSION if vectors.model is None else version_of(vectors.model)
        if not as_bound or vectors.version != version:
            return False
    return not any(head.rejected for head in heads.values())
