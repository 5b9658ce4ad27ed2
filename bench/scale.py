"""From files to a searchable table at 100,000 and at 1,000,000 chunks, and what a chunk costs in the larger.

A folder of text files, one bundled static model (wordllama-256), one region with a store and an embedded database,
chunks of at most 256 tokens. Three runs follow each other, each a process of its own: the first; one on unchanged
documents; one after a sentence was put into the middle of every hundredth document. A text is a dozen passages of
Python's reference topics and the READMEs of installed distributions, drawn anew for each document, so that hardly two
chunks are alike.

`python -m bench.scale`, or `make bench-scale`; sizes may be given. It can be stopped and started again: what is done
stays done, and a run goes on where it stopped. Its seconds are then those of all its attempts.

- `× a chunk` is the larger's figure a chunk by the smaller's: 1 is linear, 1.2 is what n·log n allows, and 0.1 does not
  grow at all.
- CPU is that of the run and all its processes; the server's is told beside it.
- Peak memory is what is resident, files that are mapped and shared memory among it: of the run's own process, of all
  its processes at one moment, and of the server's largest process.
- Stored are the bytes of a stage in the region's store; the database's are those of tables and of indexes.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import yaml

from bench.end_to_end import ROOT, clear, real_texts
from bench.peers.terms import MAX_TOKENS, OVERLAP
from bench.processes import watched
from embedding_assets.pgvector import embedded
from embedding_assets.settings.home import home

SIZES: Final = (100_000, 1_000_000)
CHUNKS_A_DOCUMENT: Final = 10.7  # about
PASSAGES: Final = 12
PASSAGE_CHARACTERS: Final = 500  # at least
FOLDER_FILES: Final = 1_000
REGION: Final = "bench"
FIRST, UNCHANGED, CHANGED = RUNS = ("first run", "unchanged", "1 % changed")

Attempt = dict[str, Any]
"""What an attempt at a run took, as `attempt` says it."""


def passages() -> list[str]:
    """The real texts, cut between paragraphs."""
    found = []
    for text in real_texts():
        passage = ""
        for paragraph in text.split("\n\n"):
            passage = f"{passage}\n\n{paragraph}".strip()
            if len(passage) >= PASSAGE_CHARACTERS:
                found.append(passage)
                passage = ""
    return found


def write_documents(folder: Path, count: int) -> None:
    """Files of passages; those that are there stay."""
    of = passages()
    for number in range(count):
        path = document(folder, number)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = random.Random(number).sample(of, PASSAGES)  # noqa: S311 — the same on every machine
            path.write_text("\n\n".join(drawn))


def edit(folder: Path, count: int) -> None:
    """Put a sentence into the middle of every hundredth document; once, however often this is called."""
    sentence = "A sentence that was not there before.\n"
    for number in range(0, count, 100):
        path = document(folder, number)
        text = path.read_text()
        if sentence not in text:
            middle = text.find("\n", len(text) // 2) + 1
            path.write_text(f"{text[:middle]}{sentence}{text[middle:]}")


def document(folder: Path, number: int) -> Path:
    """Where a document lies."""
    return folder / "documents" / f"{number // FOLDER_FILES:04}" / f"{number:07}.txt"


def settings(folder: Path) -> dict[str, object]:
    """What the settings file says: everything lies in the folder."""
    return {
        "primary_region": REGION,
        "regions": {REGION: {"store": (folder / "store").as_uri(), "database": "embedded"}},
        "models": {"v1": {"provider": "local", "name": "wordllama-256", "dimensions": 256}},
        "live_model": "v1",
        "sources": {
            "documents": {
                "kind": "files",
                "path": str(folder / "documents"),
                "include": ["**/*.txt"],
                "chunking": {"max_tokens": MAX_TOKENS, "overlap": OVERLAP},
            }
        },
    }


def attempt(folder: Path) -> Attempt:
    """Bring everything up to date in a process of its own.

    What that took and what is there afterwards, by name: seconds, bytes. `failed` if it did not come to its end.
    """
    dsn = embedded.dsn(folder, REGION)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CHECKPOINT")
    postmaster = int((folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    began = time.time()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "bench.ours", folder, folder / "bench.yaml"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, watched(process.pid) as run, watched(postmaster) as server:
        try:
            said, _ = process.communicate()
        except KeyboardInterrupt:
            process.terminate()
            said, _ = process.communicate()
    ended = time.time()
    whole = {
        "failed": process.returncode != 0,
        "seconds": ended - began,
        "CPU s": run.cpu_seconds(began, ended),
        "server CPU s": server.cpu_seconds(began, ended),
        "peak MB": run.peaks.get(process.pid, 0) / 1e6,
        "peak MB, all processes": run.together / 1e6,
        "peak MB, server's largest": max(server.peaks.values()) / 1e6,
    }
    told = json.loads(said.splitlines()[-1]) if said else {"steps": []}  # nothing, where it was killed
    for step, begin, end in told["steps"]:
        whole[f"{step}: seconds"] = end - begin
        whole[f"{step}: CPU s"] = run.cpu_seconds(begin, end)
        whole[f"{step}: server CPU s"] = server.cpu_seconds(begin, end)
    for stage, size in stored(folder).items():
        whole[f"{stage}: MB"] = size / 1e6
    if process.returncode:
        return whole
    with psycopg.connect(dsn) as conn:
        sizes = conn.execute(
            "SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = 'embedding_assets'::regnamespace"
        ).fetchone()
    assert sizes is not None
    whole["table: MB"], whole["indexes: MB"] = (float(size) / 1e6 for size in sizes)
    return whole | {name: told[name] for name in ("chunks", "texts_embedded", "recall", "ef_search")}


def stored(folder: Path) -> dict[str, int]:
    """Bytes in the region's store by what they are of: `parts/chunks`, …"""
    store = folder / "store"
    found: dict[str, int] = {}
    for path in store.rglob("*"):
        if path.is_file():
            of = "/".join(path.relative_to(store).parts[:2])
            found[of] = found.get(of, 0) + path.stat().st_size
    return found


def measure(chunks: int) -> dict[str, list[Attempt]]:
    """All attempts at each run; those that were made before are taken from the folder."""
    folder = home() / "bench-scale" / str(chunks)
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "attempts.json"
    attempts: dict[str, list[Attempt]] = json.loads(notes.read_text()) if notes.exists() else {}
    count = round(chunks / CHUNKS_A_DOCUMENT)
    (folder / "bench.yaml").write_text(yaml.safe_dump(settings(folder)))
    for run in RUNS:
        of_run = attempts.setdefault(run, [])
        if of_run and not of_run[-1]["failed"]:
            continue
        (edit if run == CHANGED else write_documents)(folder, count)
        of_run.append(attempt(folder))
        notes.write_text(json.dumps(attempts))
        print(json.dumps({"chunks": chunks, "run": run} | of_run[-1]), file=sys.stderr, flush=True)
        if of_run[-1]["failed"]:
            raise SystemExit("a run did not come to its end; start this again, and it goes on")
    return attempts


def figures(attempts: list[Attempt]) -> Attempt:
    """Of all attempts at a run: their times together, their highest peaks, and what the last one says of the rest."""
    found: Attempt = {}
    for one in attempts:
        for name, value in one.items():
            if name.endswith(("seconds", "CPU s")):
                found[name] = found.get(name, 0.0) + value
            elif name.startswith("peak"):
                found[name] = max(found.get(name, 0.0), value)
            else:
                found[name] = value
    return found


def rows_of(sizes: Mapping[int, Mapping[str, list[Attempt]]]) -> list[dict[str, object]]:
    """A row for each figure of each run, and how it grows from the first size to the last."""
    rows: list[dict[str, object]] = []
    for run in RUNS:
        found = {size: figures(attempts[run]) for size, attempts in sizes.items()}
        smallest, largest = min(found), max(found)
        for name in found[largest]:
            values = {size: of_size.get(name) for size, of_size in found.items()}
            if name == "failed" or not any(values.values()):
                continue
            small, large = values[smallest], values[largest]
            growth = large / small / (found[largest]["chunks"] / found[smallest]["chunks"]) if small and large else None
            rows.append(
                {
                    "run": run,
                    "what": name,
                    **{f"{size:,}": value for size, value in values.items()},
                    "× a chunk": growth if name not in ("recall", "ef_search") else None,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chunks", nargs="*", type=int, default=SIZES, help=f"of {SIZES} if none are given")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what the attempt took is written down
    sizes = {}
    for chunks in arguments.chunks:
        sizes[chunks] = measure(chunks)
        # Its server would have memory that the next one's is short of.
        embedded.stop(home() / "bench-scale" / str(chunks))
    for row in rows_of(sizes):
        print(json.dumps(row) if arguments.json else row)
    for chunks in arguments.chunks:
        clear(home() / "bench-scale" / str(chunks))


if __name__ == "__main__":
    main()
