# mypy: disable-error-code="import-not-found, misc"
# What is imported here is in the peers' environment alone.
"""LangChain's and LlamaIndex's OpenAI embeddings against an endpoint that keeps a quota.

`python -m bench.peers.quota langchain|llamaindex BASE_URL MODEL DIMENSIONS SECONDS`: embeds batches of 64 texts from
standard input (a JSON list), over and over, 64 calls at a time, for so many seconds. What came of it is in the
endpoint's log.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable

from openai import RateLimitError

BATCH = 64
AT_ONCE = 64

Embed = Callable[[list[str]], Awaitable[object]]


def langchain(base_url: str, model: str, dimensions: int) -> Embed:
    from langchain_openai import OpenAIEmbeddings

    # Without the length check, for which tiktoken would download its vocabulary.
    client = OpenAIEmbeddings(
        model=model, dimensions=dimensions, base_url=base_url, chunk_size=BATCH, check_embedding_ctx_length=False
    )
    embed: Embed = client.aembed_documents
    return embed


def llamaindex(base_url: str, model: str, dimensions: int) -> Embed:
    from llama_index.embeddings.openai import OpenAIEmbedding

    client = OpenAIEmbedding(
        model_name=model, dimensions=dimensions, api_base=base_url, embed_batch_size=BATCH, reuse_client=True
    )
    embed: Embed = client.aget_text_embedding_batch
    return embed


async def run(embed: Embed, texts: list[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    supply = itertools.cycle([texts[start : start + BATCH] for start in range(0, len(texts), BATCH)])

    async def work() -> None:
        while time.monotonic() < until:
            try:
                await embed(next(supply))
            except RateLimitError:  # after the client's own retries: the caller's turn, who goes on
                continue

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


if __name__ == "__main__":
    name, url, model_name, width, duration = sys.argv[1:]
    made = {"langchain": langchain, "llamaindex": llamaindex}[name](url, model_name, int(width))
    asyncio.run(run(made, json.load(sys.stdin), float(duration)))
