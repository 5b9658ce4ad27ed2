"""The benchmarks' runner: what it takes, what it shows, and that a failure hides nothing. No timing is judged here."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.__main__ as runner
from bench import changes, pictures, scale, search
from bench.end_to_end import Figures, documents, edited, rows_of, stages_of
from bench.peers import environment, terms
from bench.processes import watched
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
        "there is no speed; there are load, index, search, readers, chunking, end_to_end, changes, engine, scale"
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
        titles = {title for name, title in runner.TITLES.items() if name not in runner.BY_NAME_ALONE}
        assert titles == set(re.findall(r"^## (.*)$", text, re.MULTILINE))
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


def test_every_second_of_a_run_is_in_one_stage() -> None:
    ours = stages_of(
        100.0, 10.0, {"began": 102.0, "seconds": 8.0, "steps": [("chunks", 103, 105), ("chunks", 106, 107)]}
    )
    peer = stages_of(100.0, 10.0, {"seconds": 8.0, "index_seconds": 3.0})

    assert ours == {"start-up": 2.0, "chunks": 3.0, "between and after": 5.0}
    assert peer == {"start-up": 2.0, "splitting, embedding, writing": 5.0, "index": 3.0}


def test_the_same_figures_make_the_same_pictures(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"documents": 1000, "run": "edit 1", "documents changed": n, "written %": n, "copied %": n, "CPU %": -1}
        for n in (1, 10)
    ]
    drawn = changes.shares_of([{"documents": 1000, "run": "unchanged"}, *rows])
    assert drawn["written, 1,000 documents"] == [(0.1, 1.0), (1.0, 10.0)]
    for name in ("one.svg", "other.svg"):
        pictures.growth(tmp_path / name, drawn)
        pictures.bars(tmp_path / f"bars-{name}", {"ours": {"a": 1.0, "b": 2.0}, "theirs": {"b": 3.0}}, "Seconds")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
    assert (tmp_path / "bars-one.svg").read_bytes() == (tmp_path / "bars-other.svg").read_bytes()


def test_what_a_process_takes_is_that_of_all_that_it_has_started() -> None:
    def took(script: str) -> tuple[int, int, float]:
        began = time.time()
        process = subprocess.Popen([sys.executable, "-c", script])
        with process, watched(process.pid) as watch:
            process.wait()
            watch.look()
        return len(watch.peaks), watch.together, watch.cpu_seconds(began, time.time())

    work = "import time; held = b'.' * 200_000_000; begin = time.process_time()\nwhile time.process_time() < .9: pass"
    processes, together, cpu = took(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])")
    assert processes == 2
    assert together > 200_000_000
    assert cpu > 0.5


def test_the_documents_of_a_scale_run_are_written_once_and_edited_once(tmp_path: Path) -> None:
    scale.write_documents(tmp_path, 201)
    before = {path.name: path.read_text() for path in tmp_path.rglob("*.txt")}
    scale.write_documents(tmp_path, 201)
    scale.edit(tmp_path, 201)
    scale.edit(tmp_path, 201)

    after = {path.name: path.read_text() for path in tmp_path.rglob("*.txt")}
    assert len(set(before.values())) == 201
    assert [name for name in sorted(after) if after[name] != before[name]] == [f"{n:07}.txt" for n in (0, 100, 200)]
    assert {len(after[name]) - len(before[name]) for name in before} == {
        0,
        len("A sentence that was not there before.\n"),
    }


def test_a_run_that_was_stopped_counts_with_the_one_that_went_on() -> None:
    stopped = {"failed": True, "seconds": 5.0, "CPU s": 4.0, "peak MB": 300.0, "raw_docs: seconds": 2.0}
    ended = {"failed": False, "seconds": 10.0, "CPU s": 6.0, "peak MB": 200.0, "raw_docs: seconds": 0.5, "chunks": 100}
    runs = {run: [stopped, ended] for run in scale.RUNS}
    large = {run: [ended | {"chunks": 1000, "seconds": 150.0}] for run in scale.RUNS}

    rows = scale.rows_of({100: runs, 1000: large})

    assert rows[0] == {"run": "first run", "what": "seconds", "100": 15.0, "1,000": 150.0, "× a chunk": 1.0}
    assert {"run": "first run", "what": "peak MB", "100": 300.0, "1,000": 200.0, "× a chunk": 2 / 30} in rows
