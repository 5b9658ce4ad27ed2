"""Search for applications: a question in words, embedded by whichever model is live, asked of a region's database.

`core` knows what is asked in which order, and does no I/O; `SearchClient` and `AsyncSearchClient` do what it says.
`langchain` and `llamaindex` hand hits to these libraries. Of the pipeline this package uses the providers of vectors
alone: `pip install embedding-assets[client]` brings neither Dagster nor a store.
"""

from embedding_assets.client.asynchronous import AsyncSearchClient
from embedding_assets.client.core import Hit, LiveModel
from embedding_assets.client.synchronous import SearchClient

__all__ = ["AsyncSearchClient", "Hit", "LiveModel", "SearchClient"]
