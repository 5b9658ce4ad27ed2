"""Hits as LangChain has them: `pip install embedding-assets[langchain]`."""

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from embedding_assets.client.retrieving import hits_of, metadata_of
from embedding_assets.client.synchronous import SearchClient


class SearchRetriever(BaseRetriever):
    """Retrieves the k best hits of a client's search, or of its hybrid search, as documents."""

    client: SearchClient
    k: int = 10
    source: str | None = None
    filter: Mapping[str, Any] | None = None
    hybrid: bool = False

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        hits = hits_of(self.client, query, self.k, self.source, self.filter, hybrid=self.hybrid)
        return [Document(id=str(hit.chunk_id), page_content=hit.text, metadata=metadata_of(hit)) for hit in hits]
