"""Hits as LlamaIndex has them: `pip install embedding-assets[llamaindex]`."""

import asyncio
from collections.abc import Mapping
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from embedding_assets.client.retrieving import hits_of, metadata_of
from embedding_assets.client.synchronous import SearchClient


class SearchRetriever(BaseRetriever):
    """Retrieves the k best hits of a client's search, or of its hybrid search, as nodes."""

    def __init__(
        self,
        client: SearchClient,
        *,
        k: int = 10,
        source: str | None = None,
        filter: Mapping[str, Any] | None = None,
        hybrid: bool = False,
    ) -> None:
        super().__init__()
        self._client, self._k, self._source, self._filter, self._hybrid = client, k, source, filter, hybrid

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = hits_of(self._client, query_bundle.query_str, self._k, self._source, self._filter, hybrid=self._hybrid)
        return [
            NodeWithScore(
                node=TextNode(id_=str(hit.chunk_id), text=hit.text, metadata=metadata_of(hit)), score=hit.score
            )
            for hit in hits
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
