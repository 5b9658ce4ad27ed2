"""What the retrievers for other libraries have in common."""

from collections.abc import Mapping
from typing import Any

from embedding_assets.client.core import Hit
from embedding_assets.client.synchronous import SearchClient


def hits_of(
    client: SearchClient, question: str, k: int, source: str | None, filter: Mapping[str, Any] | None, *, hybrid: bool
) -> list[Hit]:
    """The hits of one of the client's two ways to search."""
    search = client.hybrid if hybrid else client.search
    return search(question, k, source=source, filter=filter)


def metadata_of(hit: Hit) -> dict[str, Any]:
    """The document's metadata, and which chunk this is; that comes before an author's fields of these names."""
    of_chunk = {"source": hit.source, "document_id": hit.document_id, "ordinal": hit.ordinal, "score": hit.score}
    return {**hit.metadata, **of_chunk}
