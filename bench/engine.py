"""The engine beside the plain `openai` client, LangChain and LlamaIndex, against one server in a process of its own.

`python -m bench.engine` prints a table, `--json` the same as JSON; `--seconds` is how long each is held to the quota,
in turn.

- client CPU a request: 128 texts of 800 characters, 1,536 dimensions, base64, 32 in flight, 80 ms server; of the
  engine also with a sink that counts its events
- requests a second: 2 short texts a request, 128 in flight, no latency (the server is the limit of the engine)
- share of a quota of 3,000 requests and 1 M tokens a minute (token bucket, 2 s of burst), and answers of 429; every
  client with batches of 64 texts, 64 in flight, and what it does by itself about a 429
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import bpe_openai
import numpy as np
from openai import AsyncOpenAI, RateLimitError

from bench.peers import environment
from embedding_assets.embedding.engine.engine import Text, embed
from embedding_assets.settings.home import home
from embedding_assets.telemetry.events import Event
from embedding_assets_tests.support.standin import KEY, Standin

DIMENSIONS = 1_536
REQUESTS_PER_MINUTE = 3_000
TOKENS_PER_MINUTE = 1_000_000


def texts_of_length(characters: int, different: int) -> list[Text]:
    """`different` texts of about so many characters, with their cl100k tokens."""
    tokenizer = bpe_openai.get_encoding("cl100k_base")
    words = "the engine keeps every table in step with its documents and pays only for what changed "
    made = [f"{i:06} {words * (characters // len(words) + 1)}"[:characters] for i in range(different)]
    return [Text(str(i).encode(), text, len(tokenizer.encode(text))) for i, text in enumerate(made)]


def batches(texts: Iterable[Text], size: int) -> Iterator[list[str]]:
    pulled = iter(texts)
    while batch := list(itertools.islice(pulled, size)):
        yield [text.text for text in batch]


async def plainly(standin: Standin, requests: Iterator[list[str]], in_flight: int, seconds: float = 1e9) -> int:
    """What its README shows, gathered: the plain client as it is; the number of requests that succeeded."""
    succeeded = 0
    until = time.monotonic() + seconds
    async with AsyncOpenAI(api_key=KEY, base_url=standin.base_url) as client:

        async def work() -> None:
            nonlocal succeeded
            for texts in requests:
                if time.monotonic() > until:
                    return
                try:
                    answer = await client.embeddings.create(model="standin-model", input=texts, dimensions=DIMENSIONS)
                except RateLimitError:  # after its own retries
                    continue
                np.array([item.embedding for item in answer.data], np.float32)
                succeeded += 1

        await asyncio.gather(*(work() for _ in range(in_flight)))
    return succeeded


def timed(work: Callable[[], object], requests: int) -> tuple[float, float]:
    """Requests a second, and milliseconds of this process's CPU a request."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return requests / wall, 1e3 * cpu / requests


def work_of(
    standin: Standin, texts: list[Text], size: int, in_flight: int, requests: int
) -> dict[str, tuple[float, float]]:
    """`timed` of the clients, for the same requests, once the server knows its vectors; of the engine also where a sink
    counts its events."""
    binding = standin.binding(dimensions=DIMENSIONS, max_items=size, max_in_flight=in_flight)

    def supply() -> Iterator[Text]:
        return itertools.islice(itertools.cycle(texts), size * requests)

    def ours() -> None:
        embed(binding, supply(), lambda item: None)

    def heard() -> None:
        events: Counter[type[Event]] = Counter()

        def count(event: Event) -> None:
            events[type(event)] += 1

        embed(binding, supply(), lambda item: None, tell=count)

    def plain() -> None:
        asyncio.run(plainly(standin, batches(supply(), size), in_flight))

    embed(binding, texts, lambda item: None)
    return {
        "engine": timed(ours, requests),
        "engine, events counted": timed(heard, requests),
        "openai": timed(plain, requests),
    }


def quota(standin: Standin, seconds: float) -> dict[str, tuple[float, int, int]]:
    """Share of the sustained quota served (past the first burst), answers of 429, requests that succeeded, of each
    client in so many seconds."""
    quota: dict[str, Any] = {
        "requests_per_minute": REQUESTS_PER_MINUTE,
        "tokens_per_minute": TOKENS_PER_MINUTE,
    }
    texts = texts_of_length(800, 4_096)
    binding = standin.binding(dimensions=DIMENSIONS, max_items=64, max_in_flight=64, **quota)

    def supply() -> Iterator[Text]:
        until = time.monotonic() + seconds
        return itertools.takewhile(lambda text: time.monotonic() < until, itertools.cycle(texts))

    def ours() -> None:
        embed(binding, supply(), lambda item: None)

    def plain() -> None:
        asyncio.run(plainly(standin, batches(supply(), 64), 64, seconds))

    def peer(name: str) -> Callable[[], None]:
        python = environment.interpreter(home())
        line = [str(python), "-m", "bench.peers.quota", name, standin.base_url, "standin-model", DIMENSIONS, seconds]
        given = json.dumps([text.text for text in texts])

        def run() -> None:
            subprocess.run(list(map(str, line)), input=given, text=True, check=True, stderr=subprocess.PIPE)  # noqa: S603

        return run

    figures = {}
    clients = {"engine": ours, "openai": plain, "LangChain": peer("langchain"), "LlamaIndex": peer("llamaindex")}
    for name, work in clients.items():
        standin.reset(dimensions=DIMENSIONS, latency_seconds=0.08, log_texts=False, **quota)
        work()
        log = standin.log()
        served = [entry for entry in log if entry["status"] == 200]
        figures[name] = sustained(served), sum(entry["status"] == 429 for entry in log), len(served)
    return figures


def sustained(served: list[dict[str, Any]]) -> float:
    """Tokens a minute of the quota's, from the first request after 5 s to the last."""
    first, *others = sorted((entry["at"], entry["tokens"]) for entry in served if entry["at"] > 5)
    return float(sum(tokens for _, tokens in others) / (others[-1][0] - first[0]) / TOKENS_PER_MINUTE * 60)


def measure(seconds: float = 180.0) -> list[dict[str, object]]:
    """Every figure as a row: what, of which client, value, unit, and the ratio to the plain client's."""
    rows: list[dict[str, object]] = []

    def row(what: str, client: str, value: float, unit: str, plain: float | None = None) -> None:
        ratio = round(value / plain, 3) if plain else None
        rows.append({"what": what, "client": client, "value": round(value, 3), "unit": unit, "ratio": ratio})

    with Standin.started() as standin:
        os.environ["OPENAI_API_KEY"] = KEY
        standin.reset(dimensions=DIMENSIONS, latency_seconds=0.08, log_texts=False)
        large = work_of(standin, texts_of_length(800, 512), 128, 32, 150)
        for client, (rate, cpu) in large.items():
            row("128 × 1,536 base64, 32 in flight: client CPU", client, cpu, "ms/request", large["openai"][1])
            row("128 × 1,536 base64, 32 in flight", client, rate * 128, "vectors/s", large["openai"][0] * 128)
        standin.reset(dimensions=DIMENSIONS, log_texts=False)
        small = work_of(standin, texts_of_length(40, 512), 2, 128, 4_000)
        for client, (rate, cpu) in small.items():
            row("2 × 1,536, 128 in flight: client CPU", client, cpu, "ms/request", small["openai"][1])
            row("2 × 1,536, 128 in flight", client, rate, "requests/s", small["openai"][0])
        for client, (share, throttled, served) in quota(standin, seconds).items():
            row(f"3,000 RPM, 1 M TPM, {seconds:.0f} s: share of the sustained quota", client, share, "")
            row(f"3,000 RPM, 1 M TPM, {seconds:.0f} s: answers of 429 a success", client, throttled / served, "")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=180.0, help="held to the quota, 10 at least (180)")
    arguments = parser.parse_args()
    measured = measure(arguments.seconds)
    if arguments.json:
        print(json.dumps(measured, indent=1))
    else:
        for figure in measured:
            ratio = "" if figure["ratio"] is None else f"  × {figure['ratio']}"
            print(f"{figure['what']:64} {figure['client']:8} {figure['value']:>12} {figure['unit']}{ratio}")
