"""What is only to be looked at (bars, pictures, counts) fails no step, and figures of nothing done are left out."""

import inspect
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from embedding_assets.cli.run_display import outcome_line
from embedding_assets.orchestration.assets import metadata
from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.orchestration.build import build_defs
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.orchestration.resources import progress
from embedding_assets.orchestration.resources.progress import LoggedProgress, Progress
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import SOURCE_ASSETS
from embedding_assets_tests.support.harness import QUIET, SOURCE, Sandbox

RATES = {
    "chunks": ["chunks_per_second"],
    "embeddings_v1": ["tokens", "cost_usd", "requests", "texts", "vectors_per_second", "latency_p50_seconds"],
    "s3_replica": ["megabytes_per_second"],
    "pgvector_table": ["rows_per_second"],
    "hnsw_index": ["v1_build_seconds", "v1_vectors_per_second", "v2_vectors_per_second", "v1_workers"],
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    sandbox.write(**{f"page{number}": f"# Page {number}\n\nAbout item {number}." for number in range(6)})
    return sandbox


def run(
    box: Sandbox, instance: dg.DagsterInstance, progress: Any = None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """One run of each job, without a failed step: what was told of each asset, and the warnings by step."""
    figures: dict[str, dict[str, Any]] = {}
    warnings: dict[str, str] = {}
    for job, partition in ((SOURCE_JOB, SOURCE), (REGION_JOB, f"eu-west-1|{SOURCE}")):
        result = (
            build_defs(box.deployment, progress)
            .resolve_job_def(job)
            .execute_in_process(instance=instance, partition_key=partition, run_config=QUIET, raise_on_error=False)
        )
        assert result.success
        kinds = {event.event_type for event in result.all_events}
        assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds, "a step failed and was tried again"
        for event in result.get_asset_materialization_events():
            told = event.step_materialization_data.materialization
            figures[told.asset_key.to_user_string()] = {name: value.value for name, value in told.metadata.items()}
        for entry in instance.all_logs(result.run_id):
            if entry.level == logging.WARNING:
                warnings[entry.step_key or ""] = warnings.get(entry.step_key or "", "") + entry.user_message
    return figures, warnings


class BrokenDisplay:
    """A terminal that went away."""

    def show(self, *_: Any) -> None:
        raise OSError("Input/output error")


@pytest.mark.slow
def test_a_display_that_fails_is_told_of_once_a_run_and_fails_no_step(
    box: Sandbox, instance: dg.DagsterInstance
) -> None:
    _, warnings = run(box, instance, BrokenDisplay())

    assert [text.count("No more progress is shown") for text in warnings.values()] == [1, 1]


class RecordingDisplay:
    def __init__(self) -> None:
        self.last: dict[str, Progress] = {}

    def show(self, progress: Progress) -> None:
        self.last[progress.phase] = progress


def test_every_step_of_the_flow_shows_its_progress_to_the_end(box: Sandbox, instance: dg.DagsterInstance) -> None:
    display = RecordingDisplay()

    run(box, instance, display)

    assert set(display.last) == {
        *(f"{asset} of {SOURCE}" for asset in SOURCE_ASSETS),
        *(
            f"{asset} of eu-west-1|{SOURCE}"
            for asset in ("s3_replica", "pgvector_table", "hnsw_index v1", "hnsw_index v2")
        ),
    }
    assert all(last.done == last.total for last in display.last.values())


def test_a_line_of_the_log_each_few_seconds_says_how_far_it_is_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    display = LoggedProgress(logging.getLogger("step"))
    with caplog.at_level(logging.INFO):
        for second in range(100, 114):
            now[0] = float(second)
            display.show(Progress("raw_docs of docs", 10 * (second - 100), None, "items read"))
        for second in range(114, 121):
            now[0] = float(second)
            display.show(Progress("raw_docs of docs", second - 113, 7, "shards written"))

    assert [record.getMessage() for record in caplog.records] == [
        "raw_docs of docs: 0 items read",
        "raw_docs of docs: 50 items read",
        "raw_docs of docs: 100 items read",
        "raw_docs of docs: 2 of 7 shards written, 5 s left",
        "raw_docs of docs: 7 of 7 shards written",
    ]


SHOWS = {
    "of_snapshot": ("embeddings_v1", "stored_bytes"),
    "changes": ("raw_docs", "changed"),
    "rate": ("pgvector_table", "rows_per_second"),
    "to_date": ("embeddings_v1", "tokens_to_date"),
    "table": ("chunks", "sample"),
    "norm_histogram": ("embeddings_v1", "norms"),
    "embedding_map": ("embeddings_v1", "map"),
    "recall_curve": ("hnsw_index", "recall_curve"),
    "throughput": ("embeddings_v1", "throughput"),
}
"""What each function of `metadata` has an asset tell."""


def test_every_function_that_shows_something_is_tried_below() -> None:
    public = {
        name
        for name, found in vars(metadata).items()
        if inspect.isfunction(found) and found.__module__ == metadata.__name__ and not name.startswith("_")
    }

    assert public - {"optional", "figures"} == set(SHOWS)  # those two are what makes the others harmless


def test_what_can_not_be_shown_is_left_out_after_the_commit_and_fails_no_step(
    box: Sandbox, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    (box.docs / "refused.md").write_bytes(b"\xff\x00\xff")  # a document for the table of what was rejected

    def fail(*_: Any, **__: Any) -> None:
        assert log.head(box.deployment.primary, "raw_docs", SOURCE) is not None
        raise ValueError("not enough values to unpack")

    for broken in SHOWS:
        monkeypatch.setattr(metadata, broken, fail)

    figures, warnings = run(box, instance)

    for asset, name in SHOWS.values():
        assert name not in figures[asset]
        assert "can't be shown, the run goes on without: ValueError" in warnings[asset]
    assert all(box.roots()[asset] for asset in ("raw_docs", "chunks", "embeddings_v1", "embeddings_v2", "eu-west-1"))
    assert len(box.rows("eu-west-1")) == 6
    assert (figures["embeddings_v1"]["new"], figures["pgvector_table"]["rows_loaded"]) == (6, 6)
    assert outcome_line(Outcome("docs", "run", True, 1.0, figures))


def test_a_first_source_of_one_chunk_has_its_figures_and_no_map(sandbox: Sandbox, instance: dg.DagsterInstance) -> None:
    sandbox.write(only="One short document.")

    figures, warnings = run(sandbox, instance)

    for asset in ("embeddings_v1", "embeddings_v2"):
        assert (figures[asset]["new"], figures[asset]["texts"], figures[asset]["requests"]) == (1, 1, 1)
        assert "norms" in figures[asset]
        assert "map" not in figures[asset]
    assert warnings == {}


@pytest.mark.slow
def test_a_change_of_less_than_a_hundredth_draws_no_picture(sandbox: Sandbox, instance: dg.DagsterInstance) -> None:
    sandbox.write(**{f"page{number}": f"# Page {number}\n\nAbout item {number}." for number in range(150)})
    first, _ = run(sandbox, instance)

    sandbox.write(page7="# Page 7\n\nAbout another item.")
    one, _ = run(sandbox, instance)

    sandbox.write(**{f"page{number}": f"# Page {number}\n\nAbout nothing, {number} times." for number in range(3)})
    three, _ = run(sandbox, instance)

    drawn = [{"norms", "map"} & found["embeddings_v1"].keys() for found in (first, one, three)]
    assert drawn == [{"norms", "map"}, set(), {"norms", "map"}]
    assert [found["embeddings_v1"]["new"] for found in (first, one, three)] == [150, 1, 3]


@pytest.mark.slow
def test_a_lost_part_of_the_snapshot_before_costs_the_counts_of_changes_alone(
    box: Sandbox, instance: dg.DagsterInstance
) -> None:
    run(box, instance)
    store = box.deployment.primary
    before = log.head(store, "raw_docs", SOURCE)
    assert before is not None
    store.delete([before.layers[0].path(SOURCE)])
    box.write(page0="# Page 0\n\nChanged.")

    figures, warnings = run(box, instance)

    assert figures["raw_docs"]["documents"] == 6
    assert "new" not in figures["raw_docs"]
    assert "What was changed can't be shown" in warnings["raw_docs"]
    assert figures["embeddings_v1"]["new"] == 1


def test_figures_of_nothing_done_are_left_out_and_sums_go_on(box: Sandbox, instance: dg.DagsterInstance) -> None:
    def rates(figures: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
        return {asset: [name for name in names if name in figures[asset]] for asset, names in RATES.items()}

    first, _ = run(box, instance)
    unchanged, _ = run(box, instance)
    box.write(page0="# Page 0\n\nChanged.")
    changed, _ = run(box, instance)

    assert rates(first) == RATES
    assert rates(unchanged) == {asset: [] for asset in RATES}
    # A small change is made in the index that is there: it was not built, and has no rate of building.
    assert rates(changed) == {**RATES, "hnsw_index": []}
    spent = [seen["embeddings_v1"].get("tokens", 0) for seen in (first, unchanged, changed)]
    assert spent[0] > spent[2] > 0
    assert [seen["embeddings_v1"]["tokens_to_date"] for seen in (first, unchanged, changed)] == [
        spent[0], spent[0], spent[0] + spent[2],
    ]  # fmt: skip
