# mypy: disable-error-code="import-not-found, misc"
# What is imported here is in the peers' environment alone.
"""LangChain as its documentation shows it: a recursive splitter, index() with SQLRecordManager, PGVectorStore.

`python -m bench.peers.langchain DSN DOCUMENTS full|incremental`: brings the table in step with a JSONL file of
documents, and prints what that took as JSON.
"""

import json
import sys
import time
import warnings

import bpe_openai
from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import index
from langchain_postgres import PGEngine, PGVectorStore
from langchain_postgres.v2.indexes import HNSWIndex
from langchain_text_splitters import RecursiveCharacterTextSplitter
from sqlalchemy.exc import ProgrammingError

from bench.peers.model import DIMENSIONS, CountingModel
from bench.peers.terms import EF_CONSTRUCTION, MAX_TOKENS, OVERLAP, M, read_documents

TABLE = "chunks"

# PGVectorStore's ids are UUIDs, which only the default encoder makes.
warnings.filterwarnings("ignore", message="Using SHA-1")


class LocalEmbeddings(Embeddings):
    def __init__(self, model: CountingModel) -> None:
        self.model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.embed(texts)

    def embed_query(self, text: str) -> list[float]:
        return self.model.embed([text])[0]


def main(dsn: str, documents: str, cleanup: str) -> None:
    begin = time.perf_counter()
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    engine = PGEngine.from_connection_string(url)
    records = SQLRecordManager("bench", db_url=url)
    records.create_schema()
    try:
        engine.init_vectorstore_table(TABLE, DIMENSIONS)
        first = True
    except ProgrammingError:  # it is there: DuplicateTable
        first = False
    model = CountingModel()
    store = PGVectorStore.create_sync(engine, LocalEmbeddings(model), TABLE)
    encode = bpe_openai.get_encoding("cl100k_base").encode_ordinary
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=MAX_TOKENS, chunk_overlap=OVERLAP, length_function=lambda text: len(encode(text))
    )
    chunks = splitter.split_documents(
        Document(page_content=text, metadata={"source": name}) for name, text in read_documents(documents)
    )
    index(chunks, records, store, cleanup=cleanup, source_id_key="source")
    loaded = time.perf_counter()
    if first:
        store.apply_vector_index(HNSWIndex(m=M, ef_construction=EF_CONSTRUCTION))
    end = time.perf_counter()
    print(json.dumps({"seconds": end - begin, "index_seconds": first * (end - loaded), "texts_embedded": model.texts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
