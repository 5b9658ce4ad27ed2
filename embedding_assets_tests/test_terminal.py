"""The command lines in a real terminal, where bars are drawn while a run is under way."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from embedding_assets_tests.support.harness import MODELS, REGIONS, SOURCE, Sandbox
from embedding_assets_tests.support.pseudo_terminal import Ended, in_terminal
from embedding_assets_tests.support.standin import Standin

COMMAND = Path(sys.executable).parent / "embedding-assets"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9](;[0-9]+)*m")

TEXTS = {f"page{number}": f"# Page {number}\n\nAbout item {number}. " + "More of it. " * 60 for number in range(12)}


@pytest.fixture
def box(sandbox: Sandbox, standin: Standin) -> Sandbox:
    """Twelve pages, and an endpoint that takes one at a time, a third of a second each."""
    sandbox.write(**TEXTS)
    standin.reset(latency_seconds=0.33)
    slow = standin.model(max_items=1, max_in_flight=1, api_key_env=None)
    return replace(sandbox, models={**MODELS, "v2": slow})


def run(box: Sandbox, *arguments: str, columns: int = 80, interrupt_at: str | None = None, **variables: str) -> Ended:
    ended = in_terminal(
        [COMMAND, *arguments],
        columns=columns,
        environment=box.environment(**variables),
        folder=box.root,
        interrupt_at=interrupt_at,
    )
    assert "Traceback" not in ended.shown, ended.shown
    return ended


def shell(box: Sandbox, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line whose output goes elsewhere than to a terminal."""
    return subprocess.run(
        ["bash", "-c", line],
        env=box.environment(**variables),
        cwd=box.root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("columns", "variables"), [(80, {}), pytest.param(200, {"NO_COLOR": "1"}, marks=pytest.mark.slow)]
)
def test_a_first_run_shows_its_bars_and_then_its_lines(box: Sandbox, columns: int, variables: dict[str, str]) -> None:
    ended = run(box, "materialize", columns=columns, **variables)

    assert ended.code == 0, ended.shown
    assert re.search(rf"embeddings_v2 of {SOURCE} .* [1-9]/12", ended.shown), "no bar while vectors are computed"
    assert f"pgvector_table of {REGIONS[0]}|{SOURCE}" in ended.shown
    assert ended.shown.count("✓") == 1 + len(REGIONS)
    assert bool(COLOUR.search(ended.shown)) == (not variables)


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "variables"), [(80, {}), (200, {"NO_COLOR": "1"})])
def test_what_there_is_to_see_fits_the_terminal(box: Sandbox, columns: int, variables: dict[str, str]) -> None:
    assert run(box, "materialize").code == 0

    shown = {
        command: run(box, *command.split(), columns=columns, **variables)
        for command in ("materialize", "status", "verify", "search item -k 2", "dead-letters list")
    }

    assert {command: ended.code for command, ended in shown.items()} == dict.fromkeys(shown, 0)
    assert f"{SOURCE} nothing changed: 12 items" in " ".join(shown["materialize"].shown.split())
    assert "everything is as recorded" in shown["verify"].shown
    assert shown["status"].shown.count("current") == len(REGIONS)
    plain = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
    for command in ("status", "verify", "search item -k 2", "dead-letters list"):
        assert max(map(len, plain.sub("", shown[command].shown).splitlines())) <= columns, shown[command].shown
        assert bool(COLOUR.search(shown[command].shown)) <= (not variables)


@pytest.mark.slow
def test_control_c_stops_a_run_with_a_sentence_and_the_next_one_goes_on(box: Sandbox, standin: Standin) -> None:
    standin.reset(latency_seconds=2)

    stopped = run(box, "materialize", interrupt_at=f"embeddings_v2 of {SOURCE}")

    assert stopped.code == 1
    assert "Told to stop" in stopped.shown
    standin.reset()
    assert run(box, "materialize").code == 0
    assert run(box, "verify").code == 0


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_does_not_stop_the_work(box: Sandbox) -> None:
    ended = shell(box, f"set -o pipefail; '{COMMAND}' materialize | true")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(box.rows(REGIONS[0])) == len(TEXTS)


@pytest.mark.slow
def test_a_full_disk_behind_the_output_is_told_of_and_does_not_stop_the_work(box: Sandbox) -> None:
    ended = shell(box, f"'{COMMAND}' materialize > /dev/full")

    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "standard output can't be written: No space left on device. The work goes on unseen.\n"
    assert len(box.rows(REGIONS[0])) == len(TEXTS)


@pytest.mark.slow
def test_an_output_that_knows_no_check_mark_gets_a_question_mark(box: Sandbox) -> None:
    ended = shell(box, f"'{COMMAND}' materialize", PYTHONIOENCODING="ascii")

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("? ") >= 1 + len(REGIONS)
