"""Documents to a searchable table: ours beside LangChain's index() and LlamaIndex' IngestionPipeline.

All get the same documents (a JSONL file), the same model (wordllama-256, our code in every process), chunks of at most
256 cl100k tokens with an overlap of 32, the same Postgres, and HNSW indexes of m 16 and ef_construction 200. Three runs
follow each other, each a process of its own: the first; one on unchanged documents; one after a sentence was put into
the middle of every hundredth document. That is done in rounds, each on a new server, all taking turns; shown are
medians, and the median of the ratios within a round. The documents are Python's reference topics and the READMEs of
installed distributions (those under 20,000 characters), and variants of these with their paragraphs in another order.

- Whole-process seconds are a scheduled job's, from the interpreter's start to its exit; in-process seconds begin after
  the imports. CPU seconds are the whole process's, without the server's. HNSW seconds are part of the others.
- Texts embedded are counted at the model that all share. Ours embeds equal texts once.
- Ours does more in these seconds: it measures the index's recall, keeps snapshots, runs its checks, and records
  everything in Dagster, whose import and event log are what an unchanged run costs, whatever its size.
- The picture `end_to_end.svg` shows where each second goes: start-up is the interpreter's, until the imports are done.
- Peers send the model 100 texts at a time, count tokens by bpe-openai, and show no progress. LlamaIndex keeps its
  document store and cache in local files.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

import psycopg
import yaml
from psycopg import sql

from bench import pictures
from bench.peers import environment
from bench.peers.terms import MAX_TOKENS, OVERLAP
from embedding_assets.pgvector import embedded
from embedding_assets.settings.home import home

ROOT = Path(__file__).parents[1]
DOCUMENTS = 2_000
QUICK_DOCUMENTS = 300
ROUNDS = 3
LONGEST = 20_000  # characters: three READMEs of 100,000 would be a fifth of everything
RUNS = ("first run", "unchanged", "1 % changed")
REGION = "bench"
OURS = "embedding-assets"
PICTURE = ROOT / "bench" / "end_to_end.svg"


class Contestant(NamedTuple):
    name: str
    database: str
    table: str
    command: list[str | Path]


class Figures(NamedTuple):
    """One run of a contestant."""

    whole_process_seconds: float
    cpu_seconds: float  # of the whole process; the server's are not in it
    seconds: float  # in process, after the imports
    index_seconds: float  # of these, for building HNSW indexes
    texts_embedded: int  # by the model that all have
    rows: int  # in the table afterwards
    stages: Mapping[str, float] = MappingProxyType({})
    """Where the whole process's seconds go, in the order of the flow."""

    def ratios(self, base: "Figures") -> tuple[float, float]:
        """Whole-process and in-process seconds as multiples of another's."""
        return self.whole_process_seconds / base.whole_process_seconds, self.seconds / base.seconds


Round = dict[tuple[str, str], Figures]
"""By run and contestant."""


def real_texts() -> list[str]:
    """Python's reference topics and the READMEs of installed distributions, in an order that is always the same."""
    readmes = (package.metadata.json.get("description") for package in metadata.distributions())
    found = {text.strip() for text in (*topics.values(), *readmes) if isinstance(text, str) and len(text) < LONGEST}
    return sorted(found - {""})


def documents(count: int) -> dict[str, str]:
    """Texts by id; from the second use of a text on, its paragraphs are numbered (so they are new) and shuffled."""
    texts = real_texts()
    made: dict[str, str] = {}
    for number in range(count):
        use, place = divmod(number, len(texts))
        text = texts[place]
        if use:
            paragraphs = [f"{number}. {paragraph}" for paragraph in text.split("\n\n")]
            random.Random(number).shuffle(paragraphs)  # noqa: S311 — the same on every machine
            text = "\n\n".join(paragraphs)
        made[f"{number:06}"] = text
    return made


def edited(texts: dict[str, str]) -> dict[str, str]:
    """The same documents with a sentence more in the middle of every hundredth."""

    def edit(text: str) -> str:
        middle = text.find("\n", len(text) // 2) + 1
        return f"{text[:middle]}A sentence that was not there before.\n{text[middle:]}"

    return {name: edit(text) if place % 100 == 0 else text for place, (name, text) in enumerate(texts.items())}


def contestants(folder: Path, documents_file: Path, peers_python: Path) -> list[Contestant]:
    """Everybody with what starts them; their state is in the folder and in their own database."""
    config = folder / "bench.yaml"
    settings = {
        "primary_region": REGION,
        "regions": {REGION: {"store": (folder / "store").as_uri(), "database": "embedded"}},
        "models": {"v1": {"provider": "local", "name": "wordllama-256", "dimensions": 256}},
        "live_model": "v1",
        "sources": {
            "documents": {
                "kind": "jsonl",
                "path": str(documents_file),
                "id": "id",
                "text": "text",
                "chunking": {"max_tokens": MAX_TOKENS, "overlap": OVERLAP},
            }
        },
    }
    config.write_text(yaml.safe_dump(settings))
    dsn = partial(embedded.dsn, folder)
    langchain: list[str | Path] = [peers_python, "-m", "bench.peers.langchain"]
    llamaindex: list[str | Path] = [peers_python, "-m", "bench.peers.llamaindex"]
    return [
        Contestant(OURS, REGION, "live_chunks", [sys.executable, "-m", "bench.ours", folder, config]),
        Contestant(
            "LangChain, cleanup full",
            "langchain_full",
            "chunks",
            [*langchain, dsn("langchain_full"), documents_file, "full"],
        ),
        Contestant(
            "LangChain, cleanup incremental",
            "langchain_incremental",
            "chunks",
            [*langchain, dsn("langchain_incremental"), documents_file, "incremental"],
        ),
        Contestant(
            "LlamaIndex, upserts",
            "llamaindex",
            "data_chunks",
            [*llamaindex, dsn("llamaindex"), documents_file, folder / "llamaindex"],
        ),
    ]


def children_cpu_seconds() -> float:
    """CPU seconds of all ended child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(contestant: Contestant, folder: Path) -> Figures:
    """One run, and the rows that are there afterwards."""
    dsn = embedded.dsn(folder, contestant.database)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CHECKPOINT")  # what the one before left to be written is not this one's
    began, begin, cpu = time.time(), time.perf_counter(), children_cpu_seconds()
    done = subprocess.run(  # noqa: S603
        contestant.command,
        cwd=ROOT,
        # `make` sets DAGSTER_HOME to the project's own instance; ours takes the one under its home.
        env={name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    whole_process_seconds, cpu_seconds = time.perf_counter() - begin, children_cpu_seconds() - cpu
    told = json.loads(done.stdout.splitlines()[-1])
    with psycopg.connect(dsn) as conn:
        counted = conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(contestant.table))).fetchone()
    return Figures(
        whole_process_seconds,
        cpu_seconds,
        told["seconds"],
        told["index_seconds"],
        told["texts_embedded"],
        counted[0] if counted else 0,
        stages_of(began, whole_process_seconds, told),
    )


def stages_of(began: float, whole_process_seconds: float, told: Mapping[str, Any]) -> dict[str, float]:
    """Where a run's seconds go. Peers tell their index's alone; of ours, what is between the stages is Dagster's."""
    if "steps" not in told:
        start_up = whole_process_seconds - told["seconds"]
        rest = told["seconds"] - told["index_seconds"]
        return {"start-up": start_up, "splitting, embedding, writing": rest, "index": told["index_seconds"]}
    stages = {"start-up": told["began"] - began}
    for step, begin, end in told["steps"]:
        stages[step] = stages.get(step, 0.0) + end - begin
    return stages | {"between and after": whole_process_seconds - sum(stages.values())}


def one_round(turn: int, count: int, folder: Path, peers_python: Path) -> Round:
    """All contestants' three runs on a new server."""
    texts = documents(count)
    documents_file = folder / "documents.jsonl"
    figures: Round = {}
    everybody = contestants(folder, documents_file, peers_python)
    for place, what in enumerate(RUNS):
        if place != 1:
            now = edited(texts) if place == 2 else texts
            lines = (json.dumps({"id": name, "text": text}) + "\n" for name, text in now.items())
            documents_file.write_text("".join(lines))
        first = (turn + place) % len(everybody)
        for contestant in everybody[first:] + everybody[:first]:
            figures[what, contestant.name] = run(contestant, folder)
            seconds = figures[what, contestant.name].whole_process_seconds
            print(f"round {turn + 1}, {what}, {contestant.name}: {seconds:.1f} s", file=sys.stderr)
    return figures


def measure(count: int, turns: int) -> list[Round]:
    """Each contestant's runs in so many rounds."""
    here = home()
    peers_python = environment.interpreter(here)
    rounds: list[Round] = []
    folder = here / "bench"
    for turn in range(turns):
        clear(folder)  # of what a killed bench left
        folder.mkdir(parents=True)
        try:
            rounds.append(one_round(turn, count, folder, peers_python))
        finally:
            clear(folder)
    return rounds


def bars_of(rounds: list[Round]) -> dict[str, dict[str, float]]:
    """Medians of each stage's seconds, by run and contestant."""
    return {
        f"{what}: {name}": {
            stage: median(figures[what, name].stages.get(stage, 0.0) for figures in rounds)
            for stage in rounds[0][what, name].stages
        }
        for what, name in rounds[0]
    }


def clear(folder: Path) -> None:
    """Leave nothing of a round, no server either."""
    embedded.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


def rows_of(rounds: list[Round], count: int) -> list[dict[str, object]]:
    """Medians over the rounds, and of the ratios to ours within each round."""
    rows: list[dict[str, object]] = []
    for what in RUNS:
        for name in sorted({name for _, name in rounds[0]}, key=lambda name: (name != OURS, name)):
            theirs = [figures[what, name] for figures in rounds]
            ratios = [figures[what, name].ratios(figures[what, OURS]) for figures in rounds]
            rows.append(
                {
                    "run": f"{what}, {count:,} documents",
                    "of": name,
                    "whole-process s": round(median(found.whole_process_seconds for found in theirs), 2),
                    "× ours": round(median(whole for whole, _ in ratios), 2),
                    "CPU s": round(median(found.cpu_seconds for found in theirs), 2),
                    "in-process s": round(median(found.seconds for found in theirs), 2),
                    "in-process × ours": round(median(inside for _, inside in ratios), 2),
                    "HNSW s": round(median(found.index_seconds for found in theirs), 2),
                    "texts embedded": round(median(found.texts_embedded for found in theirs)),
                    "rows": theirs[-1].rows,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_DOCUMENTS} documents, one round")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS} if not given")
    arguments = parser.parse_args()
    count, turns = (QUICK_DOCUMENTS, 1) if arguments.quick else (DOCUMENTS, arguments.rounds)
    rounds = measure(count, turns)
    if not arguments.quick:
        pictures.bars(PICTURE, bars_of(rounds), f"Where each second goes, {count:,} documents")
    for row in rows_of(rounds, count):
        print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
