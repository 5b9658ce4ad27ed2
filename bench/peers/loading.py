# mypy: disable-error-code="import-not-found, misc"
# What is imported here is in the peers' environment alone.
"""Rows with vectors that exist already into the peers' tables, as each documents it.

`python -m bench.peers.loading langchain|llamaindex DSN ROWS VECTORS`: adds the rows of a JSONL file (id, text,
metadata) with the vectors of a .npy file to a new table without an index, and prints what that took as JSON.
"""

import json
import sys
import time

import numpy as np


def langchain(dsn: str, rows: list[dict[str, str]], vectors: list[list[float]]) -> float:
    from langchain_core.embeddings import Embeddings
    from langchain_postgres import PGEngine, PGVectorStore

    class NoModel(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            raise NotImplementedError

        def embed_query(self, text: str) -> list[float]:
            raise NotImplementedError

    engine = PGEngine.from_connection_string(dsn.replace("postgresql://", "postgresql+psycopg://"))
    engine.init_vectorstore_table("langchain", len(vectors[0]), overwrite_existing=True)
    store = PGVectorStore.create_sync(engine, NoModel(), "langchain")
    texts, metadata = [row["text"] for row in rows], [json.loads(row["metadata"]) for row in rows]
    begin = time.perf_counter()
    store.add_embeddings(texts, vectors, metadata, [row["id"] for row in rows])
    return time.perf_counter() - begin


def llamaindex(dsn: str, rows: list[dict[str, str]], vectors: list[list[float]]) -> float:
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.postgres import PGVectorStore

    store = PGVectorStore.from_params(
        connection_string=dsn.replace("postgresql://", "postgresql+psycopg2://"),
        async_connection_string=dsn.replace("postgresql://", "postgresql+asyncpg://"),
        table_name="llamaindex",
        embed_dim=len(vectors[0]),
    )
    nodes = [
        TextNode(id_=row["id"], text=row["text"], metadata=json.loads(row["metadata"]), embedding=vector)
        for row, vector in zip(rows, vectors, strict=True)
    ]
    store.clear()  # makes the table
    begin = time.perf_counter()
    store.add(nodes)
    return time.perf_counter() - begin


def main(peer: str, dsn: str, rows_file: str, vectors_file: str) -> None:
    with open(rows_file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    load = {"langchain": langchain, "llamaindex": llamaindex}[peer]
    print(json.dumps({"seconds": load(dsn, rows, np.load(vectors_file).tolist())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
