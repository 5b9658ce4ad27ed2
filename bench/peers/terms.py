"""What is the same for everybody: the documents, the size of a chunk, the shape of the index."""

import json
from collections.abc import Iterator
from pathlib import Path

MAX_TOKENS = 256  # of cl100k_base, counted by bpe-openai
OVERLAP = 32
M = 16
EF_CONSTRUCTION = 200  # as embedding_assets.pgvector.options has them


def read_documents(path: str | Path) -> Iterator[tuple[str, str]]:
    """(id, text) of each document in a JSONL file."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            yield document["id"], document["text"]
