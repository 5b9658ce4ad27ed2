"""A question in words, asked of a region."""

from typing import Any

from embedding_assets.embedding.query import embed_query
from embedding_assets.errors import PermanentError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector.connection import pipeline_errors
from embedding_assets.pgvector.reading.search import search as search_region
from embedding_assets.pgvector.reading.search import search_hybrid as search_region_hybrid
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.pgvector.schema.models import bound_models
from embedding_assets.snapshots.slots import SLOTS


def search(
    deployment: Deployment,
    region: str,
    text: str,
    *,
    k: int,
    source: str | None = None,
    filter: dict[str, Any] | None = None,
    hybrid: bool = False,
) -> list[dict[str, Any]]:
    """The nearest chunks by the region's live model, nearest first; by the text's words as well if `hybrid`."""
    with deployment.connect(region) as conn, pipeline_errors(f"searching in region {region}"):
        models = bound_models(conn) if is_migrated(conn) else {}
        live = next((slot for slot in SLOTS if slot in models and models[slot].live), None)
        if live is None:
            raise PermanentError(f"region {region} serves nothing yet. Cure: embedding-assets materialize")
        vector = embed_query(deployment.binding(live), text)
        if hybrid:
            return [hit._asdict() for hit in search_region_hybrid(conn, vector, text, k, source, filter)]
        return [hit._asdict() for hit in search_region(conn, vector, k, source, filter)]
