"""The retrievers for LangChain and LlamaIndex, with the real packages."""

import asyncio

import pytest

from embedding_assets.client import Hit, SearchClient
from embedding_assets_tests.client.conftest import HANDBOOK, QUESTION, Region

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("retrievers")]  # their imports take eight seconds


def expected(hit: Hit) -> dict[str, object]:
    told = {"source": hit.source, "document_id": hit.document_id, "ordinal": 0, "score": hit.score}
    return {"team": "0", "title": hit.text.split()[0], **told}


def test_langchain_gets_documents(region: Region) -> None:
    from embedding_assets.client.langchain import SearchRetriever

    with SearchClient(region.application) as client:
        retriever = SearchRetriever(client=client, k=3, source="handbook", filter={"team": "0"})

        documents = retriever.invoke(QUESTION)

        hits = client.search(QUESTION, 3, source="handbook", filter={"team": "0"})
        assert [(d.id, d.page_content, d.metadata) for d in documents] == [
            (str(hit.chunk_id), hit.text, expected(hit)) for hit in hits
        ]
        assert asyncio.run(retriever.ainvoke(QUESTION)) == documents
        assert SearchRetriever(client=client, k=1, hybrid=True).invoke("soup")[0].page_content == HANDBOOK[3]


def test_llamaindex_gets_nodes(region: Region) -> None:
    from embedding_assets.client.llamaindex import SearchRetriever

    with SearchClient(region.application) as client:
        retriever = SearchRetriever(client, k=3, source="handbook", filter={"team": "0"})

        nodes = retriever.retrieve(QUESTION)

        hits = client.search(QUESTION, 3, source="handbook", filter={"team": "0"})
        assert [(n.node_id, n.get_content(), n.metadata, n.score) for n in nodes] == [
            (str(hit.chunk_id), hit.text, expected(hit), hit.score) for hit in hits
        ]
        assert [n.node_id for n in asyncio.run(retriever.aretrieve(QUESTION))] == [n.node_id for n in nodes]
        assert SearchRetriever(client, k=1, hybrid=True).retrieve("soup")[0].get_content() == HANDBOOK[3]
