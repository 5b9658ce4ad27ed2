"""The demo's real input, from what every machine with Python has: its reference topics, and the long descriptions of
the packages installed beside this one."""

import json
import os
import re
from email.message import Message
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics
from typing import Final, cast

from embedding_assets.snapshots.folders import private_folder

# MiniLM embeds some 40 texts a second on two cores: so much keeps the demo inside its four minutes.
PACKAGES_BYTES: Final = 300_000


def write_demo_input(home: Path) -> None:
    """Write both sources under `home`/input; files whose content is there already are left alone, times and all."""
    reference = home / "input" / "reference"
    for name, text in topics.items():
        _write(reference / f"{name}.rst", text.strip() + "\n")
    _write(home / "input" / "packages.jsonl", "".join(_packages()))


def _packages() -> list[str]:
    """A JSON line for each installed distribution with a description, by name, up to `PACKAGES_BYTES` of them."""
    line_of: dict[str, str] = {}
    for distribution in distributions():
        about = cast(Message, distribution.metadata)
        name = re.sub(r"[-_.]+", "-", about["Name"] or "").lower()
        description = str(about.get("Description") or about.get_payload() or "")
        if not name or len(description) < 200:
            continue
        entry = {
            "name": name,
            "version": about["Version"],
            "summary": about.get("Summary"),
            # Some put the whole licence there: its first line names it.
            "license": (about.get("License-Expression") or about.get("License") or "").strip().split("\n")[0][:80]
            or None,
            "description": description,
        }
        line_of.setdefault(
            name, json.dumps({k: v for k, v in entry.items() if v is not None}, ensure_ascii=True) + "\n"
        )
    lines: list[str] = []
    size = 0
    for _, line in sorted(line_of.items()):
        # Long ones would crowd out the others: the demo wants many packages rather than few.
        if len(line) < 20_000 and size + len(line) <= PACKAGES_BYTES:
            lines.append(line)
            size += len(line)
    return lines


def _write(path: Path, text: str) -> None:
    data = text.encode()
    if path.exists() and path.read_bytes() == data:
        return
    private_folder(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
