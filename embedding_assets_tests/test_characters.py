"""Terminals, arguments and paths that are not UTF-8: sentences, and no run that ends between two of its lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_assets import cli
from embedding_assets.errors import PermanentError
from embedding_assets.settings.current import current_settings
from embedding_assets.settings.home import CONFIG, HOME, home
from embedding_assets_tests.support.harness import REGIONS, SOURCE, Sandbox

COMMAND = [sys.executable, "-m", "embedding_assets"]

COMMANDS = [
    ["search", "caf\udce9"],
    ["search", "caf\udce9", "--json"],
    ["search", "x", "--filter", '{"a": "\udce9"}'],
    ["materialize", "--source", "\udce9"],
    ["status", "--region", "\udce9"],
    ["dead-letters", "show", "\udce9"],
    ["\udce9"],
]


@pytest.mark.parametrize("given", COMMANDS)
def test_an_argument_in_latin_1_is_a_sentence_with_a_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["embedding-assets", *given])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert "is not UTF-8. Cure: type it in a UTF-8 terminal, or convert it" in " ".join(shown.split())


def test_the_cure_for_an_argument_in_latin_1_works() -> None:
    script = "printf %s \"$(printf 'caf\\351' | iconv -f LATIN1 -t UTF-8)\""
    converted = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout

    assert cli.arguments([os.fsdecode(converted)]) == ["café"]


def test_arguments_in_utf_8_are_read_under_any_locale() -> None:
    """Under C, Python may take each byte of them for half a character."""
    asked = "from embedding_assets.cli import arguments; import sys; print(ascii(arguments(sys.argv[1:])))"
    bare = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    done = subprocess.run(
        [sys.executable, "-c", asked, "é ✓".encode()], env=bare, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == ascii(["é ✓"])


@pytest.mark.parametrize("filter_json", ['{"a": "\\ud800"}', '{"\\udce9": 1}'])
def test_half_a_character_in_a_filter_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, filter_json: str
) -> None:
    monkeypatch.setenv(HOME, str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["embedding-assets", "search", "x", "--filter", filter_json])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == 2
    assert "--filter takes a JSON object" in capsys.readouterr().err


def test_a_home_or_a_settings_file_whose_path_is_not_utf_8_is_a_sentence_with_a_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(HOME, "/srv/caf\udce9/home")
    with pytest.raises(PermanentError, match=r"EMBEDDING_ASSETS_HOME: .*udce9.* is not UTF-8\. Cure: rename"):
        home()
    monkeypatch.setenv(CONFIG, "/srv/caf\udce9/settings.yaml")
    with pytest.raises(PermanentError, match=r"EMBEDDING_ASSETS_CONFIG: .*udce9.* is not UTF-8\. Cure: rename"):
        current_settings()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_output_that_cannot_print_a_character_stops_no_run(sandbox: Sandbox, encoding: str) -> None:
    sandbox.write(one="# Eins ✓\n\nEin Text über é.")
    bare = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [*COMMAND, *command], env=sandbox.environment(**bare), capture_output=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode("latin-1")
        return done.stdout.decode("latin-1")

    said = run("materialize")
    assert [f"{region}|{SOURCE}" in said for region in REGIONS] == [True, True]
    assert len(sandbox.rows("eu-west-1")) == 1
    assert "one.md" in run("search", "über ✓")
    assert "one.md" in run("search", "über ✓", "--json")
