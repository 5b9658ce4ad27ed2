"""What is kept about `sql/` as files: the number of the surface, the hashes of the migrations, and schema.sql.

`make schema` runs this module. A test fails while it has something to write.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from embedding_assets.pgvector import embedded, programs
from embedding_assets.pgvector.schema import migrations, surface

SQL: Final = Path(__file__).parents[2] / "sql"
VERSION: Final = SQL / "surface" / "version"
HISTORY: Final = SQL / "migrations" / "sha256sums"
SCHEMA: Final = SQL / "schema.sql"

_HEAD: Final = """\
-- What a region's database is, before models are bound and sources are loaded: written by `make schema`, for reading.
-- A database comes to this by sql/migrations and sql/surface; a test builds one each way and compares them. The roles
-- are made by sql/roles.sql. Binding the models adds embedding_v1 and embedding_v2 to chunks, and live_chunks shows the
-- one that is live. What yoyo keeps about the migrations is left out.

"""
# The migrations' own records.
_YOYO: Final = ("embedding_assets._yoyo*", "embedding_assets.yoyo*")
_NOISE: Final = re.compile(
    r"^(--( (Name|Dumped|PostgreSQL database dump|Data for|TOC).*)?|\\(un)?restrict .*|SET .*_timeout = 0;)\n",
    re.MULTILINE,
)


def surface_version() -> str:
    """What `version` has to say: the number of the surface and the hash of its texts; another hash, the next number."""
    number, recorded = VERSION.read_text().split() if VERSION.exists() else ("0", "")
    now = surface.digest("\0".join(f"{name}\0{text}" for name, text in surface.texts().items()))
    return f"{number if recorded == now else int(number) + 1} {now}\n"


def history() -> str:
    """What `sha256sums` has to say: the lines that it has, and one for each migration that has none yet."""
    lines = HISTORY.read_text().splitlines() if HISTORY.exists() else []
    known = {line.split()[1] for line in lines}
    files = sorted(migrations.MIGRATIONS.glob("[0-9]*_*.sql"))
    new = [f"{surface.digest(file.read_text())}  {file.name}" for file in files if file.name not in known]
    return "\n".join(sorted(lines + new, key=lambda line: line.split()[1])) + "\n"


def dump(dsn: str) -> str:
    """A region's database as statements, without noise and in an order of its own."""
    written = _pg_dump(dsn, "--schema-only", *(f"--exclude-table={name}" for name in _YOYO))
    row = _pg_dump(dsn, "--data-only", "--column-inserts", "--table=embedding_assets.surface")
    return written.rstrip() + "\n\n" + "".join(line for line in row.splitlines(True) if line.startswith("INSERT"))


def _pg_dump(dsn: str, *options: str) -> str:
    ran = subprocess.run(
        [programs.binaries() / "pg_dump", *options, dsn], capture_output=True, text=True, check=True, timeout=60
    )
    return re.sub(r"\n{3,}", "\n\n", _NOISE.sub("", ran.stdout)).lstrip()


def schema(dsn: str) -> str:
    """What schema.sql has to say, from a database that has just been migrated."""
    return _HEAD + dump(dsn)


def main() -> None:
    VERSION.write_text(surface_version())
    HISTORY.write_text(history())
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-schema-"))
    try:
        dsn = embedded.dsn(home, "schema")
        migrations.migrate(dsn)
        SCHEMA.write_text(schema(dsn))
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
