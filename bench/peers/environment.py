"""The peers' own environment, made of the pins in peers.txt on first use and kept under the project's home."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).parents[1] / "peers.txt"


def interpreter(home: Path) -> Path:
    """The Python that the peers are installed for; makes its environment where it is missing or has other pins."""
    folder = home / "bench-venv"
    python = folder / "bin" / "python"
    made_of = folder / "made-of"
    wanted = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if made_of.exists() and made_of.read_text() == wanted:
        return python
    print(f"making the peers' environment in {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, stdout=sys.stderr)  # noqa: S603
    # Without looking for dependencies: the pins are the whole tree, and wordllama would bring what only its code needs.
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(PINS)]
    subprocess.run([str(python), *install], check=True, stdout=sys.stderr)  # noqa: S603
    made_of.write_text(wanted)
    return python


def pins() -> dict[str, str]:
    """Name to version of the peers themselves: the first block of peers.txt."""
    block = PINS.read_text().split("# the peers\n")[1].split("\n\n")[0]
    return {name: version for name, _, version in (line.partition("==") for line in block.splitlines())}
