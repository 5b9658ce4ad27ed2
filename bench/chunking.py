"""MB of text per CPU second: our chunking beside langchain-text-splitters and semantic-text-splitter.

Run by any Python: what it can import is measured, in one process, on the same documents, to chunks of at most 256
cl100k_base tokens with an overlap of 32. `--json` prints a JSON object a line instead of the table.

The documents are Python's reference topics and the READMEs of what is installed beside it, repeated to 4 MB. Each
splitter takes each document once a round, in turn; the best of three rounds counts. Peers get the fastest exact token
counter that they take: LangChain bpe-openai's as its length function, semantic-text-splitter its own in Rust. LangChain
is measured with offsets, which the others always give, and without.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from itertools import cycle, takewhile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the peers' environment has no embedding_assets

MAX_TOKENS = 256
OVERLAP = 32
MEGABYTES = 4
ROUNDS = 3

Chunker = Callable[[str], list[str]]


def _ours() -> Chunker:
    split = import_module("embedding_assets.chunking.spans").split

    def chunk(text: str) -> list[str]:
        return [text[start:end] for start, end, _ in split(text, max_tokens=MAX_TOKENS, overlap=OVERLAP)]

    return chunk


def _langchain(**options: object) -> Any:
    splitters = import_module("langchain_text_splitters")
    encode = import_module("bpe_openai").get_encoding("cl100k_base").encode_ordinary
    return splitters.RecursiveCharacterTextSplitter(
        chunk_size=MAX_TOKENS, chunk_overlap=OVERLAP, length_function=lambda text: len(encode(text)), **options
    )


def _langchain_alone() -> Chunker:
    chunk: Chunker = _langchain().split_text
    return chunk


def _langchain_offsets() -> Chunker:
    splitter = _langchain(add_start_index=True)
    return lambda text: [document.page_content for document in splitter.create_documents([text])]


def _semantic() -> Chunker:
    splitters = import_module("semantic_text_splitter")
    splitter = splitters.TextSplitter.from_tiktoken_model("gpt-4", MAX_TOKENS, overlap=OVERLAP)
    return lambda text: [chunk for _, chunk in splitter.chunk_indices(text)]


# (distribution, whether each chunk comes with its offset, how to load it)
SPLITTERS: list[tuple[str, bool, Callable[[], Chunker]]] = [
    ("embedding-assets", True, _ours),
    ("langchain-text-splitters", True, _langchain_offsets),
    ("langchain-text-splitters", False, _langchain_alone),
    ("semantic-text-splitter", True, _semantic),
]


def _documents() -> list[str]:
    readmes = (package.metadata.json.get("description") for package in metadata.distributions())
    texts = [*topics.values(), *(readme for readme in readmes if isinstance(readme, str) and readme.strip())]
    room = MEGABYTES * 1_000_000

    def fits(text: str) -> bool:
        nonlocal room
        room -= len(text.encode())
        return room > 0

    return list(takewhile(fits, cycle(texts)))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "this tree"


def measure() -> list[dict[str, object]]:
    """A row for each splitter that this Python can import: its name and version, and what it did."""
    chunkers: dict[tuple[str, bool], Chunker] = {}
    for name, offsets, load in SPLITTERS:
        try:
            chunkers[name, offsets] = load()
        except ImportError as error:
            print(f"{name} is not measured: {error}", file=sys.stderr)
    documents = _documents()
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    seconds = dict.fromkeys(chunkers, float("inf"))
    chunks: dict[tuple[str, bool], list[str]] = {}
    for _ in range(ROUNDS):
        for key, chunk in chunkers.items():
            begin = time.process_time()
            chunks[key] = [piece for text in documents for piece in chunk(text)]
            seconds[key] = min(seconds[key], time.process_time() - begin)
    encoding: Any = import_module("bpe_openai").get_encoding("cl100k_base")
    rows: list[dict[str, object]] = []
    for (name, offsets), pieces in chunks.items():
        sizes = [len(encoding.encode_ordinary(piece)) for piece in pieces]
        rows.append(
            {
                "splitter": name,
                "version": _version(name),
                "offsets": offsets,
                "megabytes": round(megabytes, 2),
                "cpu_seconds": round(seconds[name, offsets], 3),
                "megabytes_per_cpu_second": round(megabytes / seconds[name, offsets], 2),
                "chunks": len(sizes),
                "mean_tokens": round(sum(sizes) / len(sizes), 1),
                "largest_tokens": max(sizes),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line, one for each splitter")
    arguments = parser.parse_args()
    rows = measure()
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
        return
    print(f"Chunks of {MAX_TOKENS} tokens, overlap {OVERLAP}; {rows[0]['megabytes']} MB of text")
    print(f"{'splitter':26}{'version':>11}{'offsets':>9}{'MB/CPU s':>10}{'chunks':>8}{'mean':>7}{'largest':>9}")
    for row in rows:
        offsets = "yes" if row["offsets"] else "no"
        print(
            f"{row['splitter']:26}{row['version']:>11}{offsets:>9}{row['megabytes_per_cpu_second']:>10}"
            f"{row['chunks']:>8}{row['mean_tokens']:>7}{row['largest_tokens']:>9}"
        )


if __name__ == "__main__":
    main()
