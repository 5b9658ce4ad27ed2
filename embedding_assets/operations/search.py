"""A question in words, asked of a region."""

from typing import Any

from embedding_assets.embedding.query import embed_query
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.regions import searched_slot
from embedding_assets.pgvector.connection import pipeline_errors
from embedding_assets.pgvector.reading.search import search as search_region
from embedding_assets.pgvector.reading.search import search_hybrid as search_region_hybrid


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
        vector = embed_query(deployment.binding(searched_slot(conn, region)), text)
        if hybrid:
            return [hit._asdict() for hit in search_region_hybrid(conn, vector, text, k, source, filter)]
        return [hit._asdict() for hit in search_region(conn, vector, k, source, filter)]
