"""The benchmarks' runner: what it takes, what it shows, and that a failure hides nothing. No timing is judged here."""

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.__main__ as runner
from bench import search
from bench.end_to_end import Figures, documents, edited, rows_of
from bench.peers import environment, terms
from embedding_assets.pgvector import options
from embedding_assets.pgvector.connection import connect

cells = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())


@given(st.lists(st.dictionaries(st.sampled_from(["of", "a|b", "MB_per_s"]), cells, min_size=1), min_size=1))
def test_whatever_the_rows_hold_every_line_of_the_table_has_all_columns(rows: list[dict[str, object]]) -> None:
    lines = runner.table(rows).split("\n")
    columns = len({name for row in rows for name in row})
    assert len(lines) == len(rows) + 2
    assert all(line.replace(r"\|", "").count("|") == columns + 1 for line in lines)
    assert len({len(line) for line in lines}) == 1


def test_a_table_aligns_figures_and_reads_well_as_text() -> None:
    rows: list[dict[str, object]] = [
        {"of": "ours", "MB_per_s": 5.6789, "offsets": True, "chunks": 12345},
        {"of": "a peer", "MB_per_s": None, "offsets": False, "chunks": 7},
    ]
    assert runner.table(rows).split("\n") == [
        "| of     | MB per s | offsets | chunks |",
        "| ------ | -------: | ------- | -----: |",
        "| ours   |     5.68 | yes     | 12,345 |",
        "| a peer |          | no      |      7 |",
    ]


def test_the_heading_tells_the_date_the_machine_and_the_versions() -> None:
    heading = runner.heading()
    for told in ("UTC", "cores", "GiB", "Linux", "Python 3", "dagster 1", "langchain-core ", "llama-index-core "):
        assert told in heading


def test_an_unknown_name_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        runner.main(["speed"])
    assert refused.value.code == 2
    assert (
        "there is no speed; there are load, index, search, readers, chunking, end_to_end, changes, engine"
        in capsys.readouterr().err
    )


def test_a_bench_that_fails_is_reported_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows_of(name: str, *, quick: bool) -> list[dict[str, object]]:
        if name == "chunking":
            raise subprocess.CalledProcessError(3, "chunking")
        return [{"of": name, "quick": quick}]

    monkeypatch.setattr(runner, "rows_of", rows_of)

    status = runner.main(["engine", "chunking", "--quick"])

    shown = capsys.readouterr()
    assert status == 1
    assert "**Failed**: exit status 3" in shown.out
    assert "| engine | yes   |" in shown.out
    assert "failed: chunking" in shown.err


@pytest.mark.parametrize(
    ("arguments", "written"), [([], True), (["engine"], False), (["--quick"], False)], ids=["all", "one", "quick"]
)
def test_only_a_whole_run_at_full_size_writes_the_results(
    arguments: list[str], written: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = tmp_path / "RESULTS.md"
    monkeypatch.setattr(runner, "RESULTS", results)
    monkeypatch.setattr(runner, "rows_of", lambda name, *, quick: [{"of": name}])
    monkeypatch.setattr(runner, "explanation", lambda name: f"What {name} does.")

    assert runner.main(arguments) == 0

    assert results.exists() is written
    if written:
        text = results.read_text()
        assert all(f"## {title}" in text for title in runner.TITLES.values())
        assert "What load does." in text


def test_the_peers_pins_name_every_version_and_no_registry() -> None:
    lines = [line for line in environment.PINS.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert not any(line.startswith(("torch", "-")) for line in lines)
    assert {"langchain-postgres", "llama-index-vector-stores-postgres"} <= environment.pins().keys()


def test_peers_build_the_index_that_we_build() -> None:
    assert (terms.M, terms.EF_CONSTRUCTION) == (options.M, options.EF_CONSTRUCTION)


def test_the_documents_are_the_same_every_time_and_a_hundredth_of_them_is_edited() -> None:
    first, second = documents(600), documents(600)
    assert first == second
    assert len(set(first.values())) == 600
    changed = edited(first)
    assert [name for name in first if changed[name] != first[name]] == [f"{place:06}" for place in range(0, 600, 100)]


def test_times_ours_is_the_median_of_the_ratios_within_a_round() -> None:
    def one(ours: float, peer: float) -> dict[tuple[str, str], Figures]:
        runs = ("first run", "unchanged", "1 % changed")
        seconds = {"embedding-assets": ours, "a peer": peer}
        return {(run, name): Figures(s + 3, s, s, 0, 9, 10) for run in runs for name, s in seconds.items()}

    rows = rows_of([one(1, 2), one(10, 40), one(2, 6)], 300)

    assert [row["of"] for row in rows] == ["embedding-assets", "a peer"] * 3
    assert [row["in-process × ours"] for row in rows[:2]] == [1, 3]
    assert rows[1]["in-process s"] == 6
    assert rows[1]["run"] == "first run, 300 documents"


@pytest.mark.parametrize(("name", "passed_on"), [("search", True), ("end_to_end", True), ("engine", False)])
def test_quick_is_passed_on_to_those_that_have_it(name: str, passed_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, '{"rows": 1}')

    monkeypatch.setattr(subprocess, "run", run)

    assert runner.rows_of(name, quick=True) == [{"rows": 1}]
    assert runner.rows_of(name, quick=False) == [{"rows": 1}]
    assert ["--quick" in command for command in commands] == [passed_on, False]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """The rows of a search bench of seconds."""
    for name, value in {"SHARD_ROWS": 200, "QUESTIONS": 20, "CLIENTS": 2, "ROUNDS": 2, "ROUND_SECONDS": 0.05}.items():
        monkeypatch.setattr(search, name, value)
    return 400


@pytest.mark.slow
def test_searching_is_measured_every_way_beside_the_query_by_hand(database: str, small: int) -> None:
    rows = search._measure_size(database, small)

    assert [(row["rows"], row["way"]) for row in rows] == [(400, way) for way in search.WAYS]
    by_hand = next(row for row in rows if row["way"] == search.BY_HAND)
    assert (by_hand["p50_to_hand"], by_hand["throughput_to_hand"]) == (1, 1)


def test_every_way_of_searching_finds_the_same(database: str, small: int) -> None:
    with connect(database) as conn:
        search._publish(conn, small)
        conn.execute("UPDATE embedding_assets.models SET ef_search = %s", [small])
    with search._client(database, small) as client:
        for question in search._questions(small):
            answers = [search._ask(client, way, question) for way in search.WAYS]
            assert all([hit[1:] for hit in found] == [hit[1:] for hit in answers[0]] for found in answers)
