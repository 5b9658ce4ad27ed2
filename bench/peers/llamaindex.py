# mypy: disable-error-code="import-not-found, misc"
# What is imported here is in the peers' environment alone.
"""LlamaIndex as its documentation shows it: IngestionPipeline with document store, upserts and cache, PGVectorStore.

`python -m bench.peers.llamaindex DSN DOCUMENTS FOLDER`: brings the table in step with a JSONL file of documents, and
prints what that took as JSON. The document store and the cache are persisted in the folder.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import bpe_openai
from llama_index.core import Document
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import VectorStoreQuery
from llama_index.vector_stores.postgres import PGVectorStore

from bench.peers.model import DIMENSIONS, CountingModel
from bench.peers.terms import EF_CONSTRUCTION, MAX_TOKENS, OVERLAP, M, read_documents

MODEL = CountingModel()


class LocalEmbedding(BaseEmbedding):
    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return MODEL.embed(texts)

    def _get_text_embedding(self, text: str) -> list[float]:
        return MODEL.embed([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return MODEL.embed([query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return MODEL.embed([query])[0]


def table(dsn: str, hnsw: dict[str, Any] | None) -> Any:
    """The table `data_chunks`; with `hnsw`, its index is made at the first use that finds none."""
    return PGVectorStore.from_params(
        connection_string=dsn.replace("postgresql://", "postgresql+psycopg2://"),
        async_connection_string=dsn.replace("postgresql://", "postgresql+asyncpg://"),
        table_name="chunks",
        embed_dim=DIMENSIONS,
        hnsw_kwargs=hnsw,
    )


def main(dsn: str, documents: str, folder: str) -> None:
    begin = time.perf_counter()
    first = not Path(folder).exists()
    hnsw = {"hnsw_m": M, "hnsw_ef_construction": EF_CONSTRUCTION, "hnsw_ef_search": 40}
    encode = bpe_openai.get_encoding("cl100k_base").encode_ordinary
    pipeline = IngestionPipeline(
        transformations=[
            SentenceSplitter(chunk_size=MAX_TOKENS, chunk_overlap=OVERLAP, tokenizer=encode),
            LocalEmbedding(embed_batch_size=100),  # as many as LangChain's index() sends; its own default is 10
        ],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        vector_store=table(dsn, None if first else dict(hnsw)),
    )
    if not first:
        pipeline.load(folder)
    pipeline.run(documents=[Document(text=text, id_=name) for name, text in read_documents(documents)])
    pipeline.persist(folder)
    loaded = time.perf_counter()
    if first:
        table(dsn, dict(hnsw)).query(VectorStoreQuery(query_embedding=[1.0] * DIMENSIONS, similarity_top_k=1))
    end = time.perf_counter()
    print(json.dumps({"seconds": end - begin, "index_seconds": first * (end - loaded), "texts_embedded": MODEL.texts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
