"""What a change costs: from one document to a tenth of them, spread evenly, as shares of the first run's cost.

A folder of 6,000 files, and one of 20,000 (as in `end_to_end`: reference topics and READMEs, and variants of these),
two bundled models (wordllama-256 and wordllama-64), two regions with a store and a database each. Each run is a process
of its own, and follows the one before: a sentence is put into the middle of some documents, other ones each time.

- Written: bytes of new objects in the primary region's store, its log entries among them. Copied: those in the other
  region's store.
- CPU is the whole process's, without the server's, less that of a run on unchanged documents, which is what starting
  Python and Dagster and looking at so many files takes.
- The picture `changes.svg` shows how these grow with the change.
- Seconds are the whole process's, less those of the unchanged run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from bench import pictures
from bench.end_to_end import ROOT, children_cpu_seconds, clear, documents
from bench.peers.terms import MAX_TOKENS, OVERLAP
from embedding_assets.settings.home import home

DOCUMENTS: Final = (6_000, 20_000)
QUICK_DOCUMENTS: Final = 600
SHARES: Final = (0.001, 0.003, 0.01, 0.03, 0.1)
PRIMARY: Final = "primary"
OTHER: Final = "other"
PICTURE: Final = ROOT / "bench" / "changes.svg"
DRAWN: Final = ("written %", "copied %", "CPU %")


class Cost(NamedTuple):
    """What a run took."""

    seconds: float
    cpu_seconds: float
    written: int
    copied: int
    texts_embedded: int


def settings(folder: Path) -> dict[str, object]:
    """What the settings file says: everything lies in the folder."""
    regions = {
        name: {"store": (folder / "stores" / name).as_uri(), "database": "embedded"} for name in (PRIMARY, OTHER)
    }
    return {
        "primary_region": PRIMARY,
        "regions": regions,
        "models": {
            "v1": {"provider": "local", "name": "wordllama-256", "dimensions": 256},
            "v2": {"provider": "local", "name": "wordllama-64", "dimensions": 64},
        },
        "live_model": "v1",
        "sources": {
            "documents": {
                "kind": "files",
                "path": str(folder / "documents"),
                "include": ["*.txt"],
                "chunking": {"max_tokens": MAX_TOKENS, "overlap": OVERLAP},
            }
        },
    }


def run(folder: Path) -> Cost:
    """Bring everything up to date in a process of its own."""
    before = {region: objects(folder, region) for region in (PRIMARY, OTHER)}
    begin, cpu = time.perf_counter(), children_cpu_seconds()
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bench.ours", folder, folder / "bench.yaml"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, cpu_seconds = time.perf_counter() - begin, children_cpu_seconds() - cpu
    written, copied = (
        sum(size for path, size in objects(folder, region).items() if path not in before[region])
        for region in (PRIMARY, OTHER)
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return Cost(seconds, cpu_seconds, written, copied, told["texts_embedded"])


def objects(folder: Path, region: str) -> dict[Path, int]:
    """The files of a region's store, and their sizes."""
    return {path: path.stat().st_size for path in (folder / "stores" / region).rglob("*") if path.is_file()}


def edit(folder: Path, number: int, changed: int, count: int) -> None:
    """Put a sentence into the middle of so many documents, evenly spread, with other ones for each edit's number."""
    for place in range(changed):
        path = folder / "documents" / f"{(place * count // changed + 7 * number) % count:06}.txt"
        text = path.read_text()
        middle = text.find("\n", len(text) // 2) + 1
        path.write_text(f"{text[:middle]}A sentence that edit {number} put there.\n{text[middle:]}")


def measure(count: int) -> list[dict[str, object]]:
    """A row for each run."""
    folder = home() / "bench"
    clear(folder)
    (folder / "documents").mkdir(parents=True)
    try:
        for name, text in documents(count).items():
            (folder / "documents" / f"{name}.txt").write_text(text)
        (folder / "bench.yaml").write_text(yaml.safe_dump(settings(folder)))
        first, unchanged = run(folder), run(folder)
        rows = [row(count, "first run", count, first, None, None), row(count, "unchanged", 0, unchanged, first, None)]
        for number, changed in enumerate((1, *(max(1, round(share * count)) for share in SHARES)), start=1):
            edit(folder, number, changed, count)
            rows.append(row(count, f"edit {number}", changed, run(folder), first, unchanged))
            print(json.dumps(rows[-1]), file=sys.stderr)
        return rows
    finally:
        clear(folder)


def row(
    documents: int, what: str, changed: int, cost: Cost, first: Cost | None, unchanged: Cost | None
) -> dict[str, object]:
    """A run's figures; shares are of the first run's, seconds without those of the unchanged one."""
    cpu, seconds = cost.cpu_seconds, cost.seconds
    if unchanged is not None:
        cpu, seconds = cpu - unchanged.cpu_seconds, seconds - unchanged.seconds
    shares = {} if first is None else {
        "written %": round(100 * cost.written / first.written, 2),
        "copied %": round(100 * cost.copied / first.copied, 2),
        "CPU %": round(100 * cpu / first.cpu_seconds, 1),
    }  # fmt: skip
    return {
        "documents": documents,
        "run": what,
        "documents changed": changed,
        "texts embedded": cost.texts_embedded,
        "written MB": round(cost.written / 1e6, 2),
        "copied MB": round(cost.copied / 1e6, 2),
        "CPU s": round(cpu, 2),
        "seconds": round(seconds, 2),
        **shares,
    }


def shares_of(rows: list[dict[str, object]]) -> dict[str, list[tuple[float, float]]]:
    """What is drawn: by its name and the number of documents, (% of the documents changed, % of the first run's)."""
    shares: dict[str, list[tuple[float, float]]] = {}
    for found in rows:
        if str(found["run"]).startswith("edit"):
            documents, changed = (float(str(found[name])) for name in ("documents", "documents changed"))
            for what in DRAWN:
                point = (100 * changed / documents, float(str(found[what])))
                shares.setdefault(f"{what.removesuffix(' %')}, {documents:,.0f} documents", []).append(point)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_DOCUMENTS} documents")
    parser.add_argument("--documents", type=int, help=f"how many; {DOCUMENTS} if not given")
    arguments = parser.parse_args()
    counts = (arguments.documents,) if arguments.documents else (QUICK_DOCUMENTS,) if arguments.quick else DOCUMENTS
    rows = [found for count in counts for found in measure(count)]
    if counts == DOCUMENTS:
        pictures.growth(PICTURE, shares_of(rows))
    for found in rows:
        print(json.dumps(found) if arguments.json else found)


if __name__ == "__main__":
    main()
