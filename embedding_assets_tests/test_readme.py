"""The README's commands, run as they are written, on the demo that its first one makes."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
import yaml

from embedding_assets.pgvector import embedded, programs
from embedding_assets_tests.support.pseudo_terminal import Ended, in_terminal

PROJECT: Final = Path(__file__).parents[1]
README: Final = (PROJECT / "README.md").read_text()
SHELL_LINES: Final = [
    line.partition(" # ")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
DEMO: Final = "make demo"
# What is run elsewhere: `make test` is what runs this.
ELSEWHERE: Final = {DEMO, "make test"}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("readme")]  # one demo for all of them


def environment_of(home: Path) -> dict[str, str]:
    """A user's environment, with this home."""
    path = f"{programs.binaries()}:{os.environ['PATH']}"
    unset = ("DAGSTER_HOME", "EMBEDDING_ASSETS_CONFIG", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    user = home.parent / "user"
    user.mkdir(exist_ok=True)
    return environment | {"EMBEDDING_ASSETS_HOME": str(home), "HOME": str(user), "PATH": path}


def shell(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a line in the project as a script does: piped."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=PROJECT,
        env=environment_of(home) | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def typed(command: str, home: Path, columns: int, **variables: str) -> Ended:
    """Run a line in the project as a user does: in a terminal."""
    environment = environment_of(home) | variables
    return in_terminal(["bash", "-c", command], columns=columns, environment=environment, folder=PROJECT)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home, in a path with a space, that the demo has run in."""
    home = tmp_path_factory.mktemp("the readme") / "home"
    try:
        ran = typed(DEMO, home, columns=80)
        assert ran.code == 0, ran.shown
        (home / "first run").write_text(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", ran.shown))
        yield home
    finally:
        embedded.stop(home)


def written(home: Path) -> dict[str, tuple[int, int]]:
    """Every object in the stores by size and time, and every table by its rows written so far."""
    found = {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in (home / "stores").rglob("*") if p.is_file()}
    for region in ("us-east-1", "eu-west-1"):
        with psycopg.connect(embedded.dsn(home, region)) as conn:
            for name, table, writes in conn.execute(
                "select relname, relid::bigint, n_tup_ins + n_tup_upd + n_tup_del from pg_stat_user_tables"
            ):
                found[f"{region} {name}"] = (table, writes)
    return found


def test_the_demo_makes_two_sources_searchable_in_two_regions(home: Path) -> None:
    shown = (home / "first run").read_text()

    assert "Traceback" not in shown
    assert re.search(r"embeddings_v2 of reference .* \d+/\d+", shown), "no bar while vectors are computed"
    assert len(re.findall(r"✓", shown)) == 6
    assert re.search(r"checks +38 of 38 passed", shown)
    assert len(re.findall(r"v1 +valid +current", shown)) == 4
    assert len(re.findall(r"reference/\S+", shown)) > 6


def test_a_second_demo_changes_nothing(home: Path) -> None:
    before = written(home)

    ran = shell(".venv/bin/embedding-assets demo --json", home)

    report = json.loads(ran.stdout)
    assert ran.returncode == 0
    assert report["nothing_changed"]
    assert (report["embedded_now"], report["bytes_copied"], report["rows_loaded"]) == (0, 0, 0)
    assert report["checks"] == report["checks_passed"]
    assert written(home) == before


@pytest.mark.parametrize("command", [line for line in SHELL_LINES if line not in ELSEWHERE])
def test_a_command_of_the_readme_works_as_written(command: str, home: Path) -> None:
    ran = shell(command, home)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("command", [line for line in SHELL_LINES if line not in ELSEWHERE])
def test_a_command_of_the_readme_works_in_a_terminal(command: str, home: Path) -> None:
    ran = typed(command, home, columns=200, NO_COLOR="1", PAGER="cat")

    assert ran.code == 0, ran.shown
    assert "Traceback" not in ran.shown


def test_a_second_demo_in_a_terminal_says_that_nothing_changed(home: Path) -> None:
    ran = typed(DEMO, home, columns=80)

    assert ran.code == 0, ran.shown
    assert "Nothing changed:" in ran.shown


def test_the_settings_of_the_readme_are_valid(tmp_path: Path) -> None:
    whole, *additions = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
    for added in additions:
        for name, value in added.items():
            whole[name] = {**whole.get(name, {}), **value} if isinstance(value, dict) else value
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(whole))
    (tmp_path / "docs").mkdir()

    ran = shell(f"EMBEDDING_ASSETS_CONFIG='{tmp_path}/settings.yaml' .venv/bin/dagster definitions validate", tmp_path)

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_the_readme_names_is_there() -> None:
    for name in re.findall(r"`((?:[\w]+/)*test_\w+\.py)`", README):
        assert (PROJECT / "embedding_assets_tests" / name).is_file(), name
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (PROJECT / name).exists(), name


def test_nothing_is_written_outside_the_home(home: Path) -> None:
    assert list((home.parent / "user").rglob("*")) == []


def test_stop_leaves_no_process(home: Path) -> None:
    ran = shell("make stop", home)

    assert ran.returncode == 0
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(home / "postgres") not in processes
