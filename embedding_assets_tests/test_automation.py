"""Sensors, schedules and the alert, by ticks on an ephemeral instance; and all of it once, under the real daemon."""

import asyncio
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import dagster as dg
import psycopg
import pytest

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.operations import outcomes
from embedding_assets.operations.search import search
from embedding_assets.orchestration.automation import sensors
from embedding_assets.orchestration.automation.failures import reason
from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.orchestration.automation.watch import WATCH_JOB
from embedding_assets.orchestration.build import build_defs
from embedding_assets.orchestration.resources import alerts
from embedding_assets.snapshots import log
from embedding_assets.snapshots.replication import target
from embedding_assets.snapshots.stores import Entry, Store
from embedding_assets_tests.support.harness import PRIMARY, PROJECT, QUIET, REGIONS, SOURCE, Sandbox
from embedding_assets_tests.support.webhook import webhook

EU = "eu-west-1"
TEXTS = {"lists": "# Lists\n\nMutable sequences.", "tuples": "# Tuples\n\nImmutable sequences."}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    sandbox.write(**TEXTS)
    return sandbox


class Tick(NamedTuple):
    """What a tick asked for, and what it hands to the next one."""

    partitions: list[str]
    cursor: str | None


def tick(box: Sandbox, instance: dg.DagsterInstance, sensor: str, after: Tick | None = None) -> Tick:
    definitions = build_defs(box.deployment)
    cursor = after.cursor if after else None
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, definitions=definitions, resources={"deployment": box.deployment}
    ) as context:
        data = definitions.resolve_sensor_def(sensor).evaluate_tick(context)
    return Tick([request.partition_key or "" for request in data.run_requests or ()], data.cursor)


# The sweep over the sources


def three_sources(box: Sandbox) -> Sandbox:
    """Sources `one`, `three` and `two` (the order of their names) besides the handbook, a file each."""
    sources = {}
    for name in ("one", "two", "three"):
        (box.root / name).mkdir()
        (box.root / name / "page.md").write_text(f"This is {name}.")
        sources[name] = {"kind": "files", "path": str(box.root / name)}
    return Sandbox(box.root, box.dsns, sources=sources)


def test_the_sweep_asks_for_every_source_once_and_then_for_what_changed(
    box: Sandbox, instance: dg.DagsterInstance
) -> None:
    box = three_sources(box)

    first = tick(box, instance, "source_sweep")
    second = tick(box, instance, "source_sweep", first)
    (box.root / "two" / "page.md").write_text("This is two, and more.")
    (box.root / "three" / "other.md").write_text("Another page.")
    third = tick(box, instance, "source_sweep", second)
    (box.docs / "lists.md").unlink()
    fourth = tick(box, instance, "source_sweep", third)

    assert sorted(first.partitions) == [SOURCE, "one", "three", "two"]
    assert second.partitions == []
    assert sorted(third.partitions) == ["three", "two"]
    assert fourth.partitions == [SOURCE]


def test_a_source_that_cannot_be_listed_keeps_nothing_from_the_others(
    box: Sandbox, instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    box = three_sources(box)
    (box.root / "one").rename(box.root / "away")

    first = tick(box, instance, "source_sweep")
    told = capfd.readouterr().err
    (box.root / "away").rename(box.root / "one")
    second = tick(box, instance, "source_sweep", first)

    assert sorted(first.partitions) == [SOURCE, "three", "two"]
    assert "source one could not be looked at" in told
    assert "Cure:" in told
    assert second.partitions == ["one"]


def test_a_source_that_could_not_be_listed_for_a_while_and_is_as_it_was_is_not_read_again(
    box: Sandbox, instance: dg.DagsterInstance
) -> None:
    first = tick(box, instance, "source_sweep")
    box.docs.rename(box.root / "away")
    second = tick(box, instance, "source_sweep", first)
    (box.root / "away").rename(box.docs)

    assert first.partitions == [SOURCE]
    assert second.partitions == tick(box, instance, "source_sweep", second).partitions == []


def test_the_sweep_sees_a_file_swapped_for_another_of_the_same_size_and_time(
    box: Sandbox, instance: dg.DagsterInstance
) -> None:
    box = three_sources(box)
    first = tick(box, instance, "source_sweep")
    page = box.root / "two" / "page.md"
    times = (page.stat().st_atime_ns, page.stat().st_mtime_ns)
    (box.root / "swapped").write_text(page.read_text().upper())
    os.utime(box.root / "swapped", ns=times)
    os.replace(box.root / "swapped", page)

    assert tick(box, instance, "source_sweep", first).partitions == ["two"]


def test_a_sweep_out_of_time_goes_on_where_it_was(
    box: Sandbox, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by a second for each file listed, and time for three files."""
    box = three_sources(box)
    monkeypatch.setattr(sensors, "time", SimpleNamespace(monotonic=count().__next__))
    monkeypatch.setattr(sensors, "_BUDGET_SECONDS", 3)

    first = tick(box, instance, "source_sweep")
    second = tick(box, instance, "source_sweep", first)
    (box.root / "one" / "page.md").write_text("This is one, changed.")
    ticks = [tick(box, instance, "source_sweep", second)]
    while len(ticks) < 3:
        ticks.append(tick(box, instance, "source_sweep", ticks[-1]))

    assert [first.partitions, second.partitions] == [[SOURCE, "one"], ["three", "two"]]
    assert [name for found in ticks for name in found.partitions] == ["one"]


def test_a_source_too_large_for_a_tick_does_not_hold_up_the_others(
    box: Sandbox, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = three_sources(box)
    box.write(**{f"page{number}": "A page." for number in range(10)})  # the handbook comes first
    monkeypatch.setattr(sensors, "time", SimpleNamespace(monotonic=count().__next__))
    monkeypatch.setattr(sensors, "_BUDGET_SECONDS", 5)

    first = tick(box, instance, "source_sweep")
    second = tick(box, instance, "source_sweep", first)

    assert first.partitions == []
    assert second.partitions == ["one", "three", "two"]


def test_a_source_gone_from_the_settings_is_forgotten(box: Sandbox, instance: dg.DagsterInstance) -> None:
    before = tick(three_sources(box), instance, "source_sweep")

    after = tick(box, instance, "source_sweep", before)

    assert after.partitions == []
    assert json.loads(after.cursor or "").keys() == {SOURCE}


# The regions' sensors


def test_a_region_is_woken_once_for_each_change_of_a_source(box: Sandbox, instance: dg.DagsterInstance) -> None:
    before = tick(box, instance, "eu_west_1_log")
    source_run(box, instance)
    woken = tick(box, instance, "eu_west_1_log", before)
    # The run has not begun, or has failed: its partition is not asked for again at once.
    waiting = tick(box, instance, "eu_west_1_log", woken)
    region_run(box, instance)
    done = tick(box, instance, "eu_west_1_log", waiting)
    box.write(lists="# Lists\n\nThey can be sorted in place.")
    source_run(box, instance)
    changed = tick(box, instance, "eu_west_1_log", done)
    under_way = tick(box, instance, "eu_west_1_log", changed)

    assert before.partitions == []
    assert woken.partitions == [f"{EU}|{SOURCE}"]
    assert waiting.partitions == done.partitions == []
    assert changed.partitions == [f"{EU}|{SOURCE}"]
    assert under_way.partitions == []


def test_half_done_embeddings_wake_nobody(box: Sandbox, instance: dg.DagsterInstance) -> None:
    source_run(box, instance)
    before = tick(box, instance, "eu_west_1_log")
    box.write(lists="# Lists\n\nThey can be sorted in place.")
    source_run(box, instance, "raw_docs", "chunks", "embeddings_v1")

    assert tick(box, instance, "eu_west_1_log", before).partitions == []


@pytest.mark.parametrize("harm", ["moved back", "lost"])
def test_a_replica_that_somebody_harmed_is_put_right_once(
    box: Sandbox, instance: dg.DagsterInstance, harm: str
) -> None:
    for text in ("Mutable sequences.", "They can be sorted in place."):
        box.write(lists=f"# Lists\n\n{text}")
        source_run(box, instance)
        region_run(box, instance)
    current = tick(box, instance, "eu_west_1_log")
    still = tick(box, instance, "eu_west_1_log", current)
    entries = (box.root / "stores" / EU / log.entry_path("s3_replica", SOURCE, 1)).parent
    if harm == "lost":
        shutil.rmtree(entries)
    else:
        first = json.loads((entries / "0000000001.json").read_text())
        (entries / "0000000003.json").write_text(json.dumps({**first, "number": 3}))

    harmed = tick(box, instance, "eu_west_1_log", still)
    asked = tick(box, instance, "eu_west_1_log", harmed)
    region_run(box, instance)
    mended = tick(box, instance, "eu_west_1_log", asked)

    assert still.partitions == []
    assert harmed.partitions == [f"{EU}|{SOURCE}"]
    assert asked.partitions == mended.partitions == []
    assert box.roots()[EU] == target(box.deployment.primary, SOURCE)


def away_in(region: str) -> Callable[[Store, str], Iterator[Entry]]:
    """A listing that fails in the region's store."""
    listing = Store.entries

    def entries(store: Store, prefix: str) -> Iterator[Entry]:
        if region in store.url:
            raise TransientError(f"store {store.url}: could not list {prefix}")
        return listing(store, prefix)

    return entries


@pytest.mark.slow
def test_a_region_whose_store_is_away_is_woken_when_it_is_back(
    box: Sandbox, instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source_run(box, instance)
    region_run(box, instance)
    known = tick(box, instance, "eu_west_1_log")
    box.write(lists="# Lists\n\nThey can be sorted in place.")
    source_run(box, instance)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "entries", away_in(EU))
        away = tick(box, instance, "eu_west_1_log", known)
    told = capfd.readouterr().err
    back = tick(box, instance, "eu_west_1_log", away)

    assert away.partitions == []
    assert f"{EU} could not be looked at" in told
    assert back.partitions == [f"{EU}|{SOURCE}"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass for the sensors."""
    now = [1_800_000_000.0]
    monkeypatch.setattr(sensors, "_now", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


@pytest.mark.slow
def test_a_region_whose_run_failed_is_asked_for_again_ever_less_often_until_it_serves(
    box: Sandbox, instance: dg.DagsterInstance, clock: Callable[[float], None]
) -> None:
    source_run(box, instance)
    away = replace(box, dsns={**box.dsns, EU: "postgresql://nobody@127.0.0.1:9/nothing"})
    asked, last = [], tick(box, instance, "eu_west_1_log")
    assert last.partitions == [f"{EU}|{SOURCE}"]
    assert not away.execute(REGION_JOB, f"{EU}|{SOURCE}", instance, assets=["s3_replica", "pgvector_table"]).success
    # Every half minute, as the sensor ticks, for three hours.
    for half_minutes in range(360):
        clock(30)
        last = tick_only(box, instance, last)
        if last.partitions:
            asked.append(half_minutes // 2)
    region_run(box, instance)
    clock(7200)
    done = tick(box, instance, "eu_west_1_log", last)

    assert asked[:4] == [0, 2, 6, 14]
    assert max(later - earlier for earlier, later in pairwise(asked)) <= 60
    assert len(asked) < 10
    assert done.partitions == []


def tick_only(box: Sandbox, instance: dg.DagsterInstance, after: Tick) -> Tick:
    """A tick of the region's sensor without building all definitions anew."""
    with dg.build_sensor_context(
        instance=instance, cursor=after.cursor, resources={"deployment": box.deployment}
    ) as context:
        data = sensors.region_log(EU)(context)
    assert isinstance(data, dg.SensorResult)
    return Tick([str(request.partition_key) for request in data.run_requests or ()], data.cursor)


def test_a_region_that_cannot_be_asked_is_looked_at_again_by_the_next_tick(
    box: Sandbox, instance: dg.DagsterInstance, clock: Callable[[float], None]
) -> None:
    source_run(box, instance)
    away = replace(box, dsns={**box.dsns, EU: "postgresql://nobody@127.0.0.1:9/nothing"})

    during = tick(away, instance, "eu_west_1_log")
    after = tick(box, instance, "eu_west_1_log", during)

    assert during.partitions == []
    assert after.partitions == [f"{EU}|{SOURCE}"]


@pytest.mark.slow
def test_changed_settings_wake_what_they_concern_once(box: Sandbox, instance: dg.DagsterInstance) -> None:
    source_run(box, instance)
    region_run(box, instance)
    swept, followed = tick(box, instance, "source_sweep"), tick(box, instance, "eu_west_1_log")
    assert followed.partitions == []

    for more, sweep_asks, region_asks in (
        ({"row_level_security": {"somebody": [SOURCE]}}, [], [f"{EU}|{SOURCE}"]),
        ({"quiet_hours": "02:00-04:00"}, [], []),
        ({"sources": {SOURCE: {**box.settings["sources"][SOURCE], "chunking": {"max_tokens": 128}}}}, [SOURCE], []),
    ):
        changed = replace(box, more=more)
        swept_then, followed_then = (
            tick(changed, instance, "source_sweep", swept),
            tick(changed, instance, "eu_west_1_log", followed),
        )
        assert (swept_then.partitions, followed_then.partitions) == (sweep_asks, region_asks), more
        assert tick(changed, instance, "source_sweep", swept_then).partitions == []
        assert tick(changed, instance, "eu_west_1_log", followed_then).partitions == []


def test_a_source_that_failed_is_asked_for_again_if_that_may_pass(
    box: Sandbox, instance: dg.DagsterInstance, clock: Callable[[float], None]
) -> None:
    home = box.deployment.home
    first = tick(box, instance, "source_sweep")
    outcomes.note(home, SOURCE, "embeddings_v1", TransientError("the provider is away"))
    clock(61)
    again = tick(box, instance, "source_sweep", first)
    paused = tick(box, instance, "source_sweep", again)
    outcomes.note(home, SOURCE, "embeddings_v1", PermanentError("the budget is spent"))
    clock(7200)
    stopped = tick(box, instance, "source_sweep", paused)

    assert first.partitions == again.partitions == [SOURCE]
    assert paused.partitions == stopped.partitions == []


def test_the_daily_watch_names_what_is_behind_with_its_cure_and_is_content_where_nothing_is(
    box: Sandbox, instance: dg.DagsterInstance
) -> None:
    def watched() -> tuple[bool, str]:
        result = (
            build_defs(box.deployment)
            .resolve_job_def(WATCH_JOB)
            .execute_in_process(instance=instance, run_config=QUIET, raise_on_error=False)
        )
        failures = [event for event in result.all_events if event.is_step_failure]
        return result.success, " ".join(reason(event) for event in failures)

    source_run(box, instance)
    region_run(box, instance)
    one_is_behind = watched()
    region_run(box, instance, PRIMARY)
    nothing_is = watched()

    assert one_is_behind[0] is False
    assert f"{PRIMARY}|{SOURCE} is behind" in one_is_behind[1]
    assert f"Cure: embedding-assets materialize --source {SOURCE} --region {PRIMARY}" in one_is_behind[1]
    assert EU not in one_is_behind[1]
    assert nothing_is == (True, "")


def source_run(box: Sandbox, instance: dg.DagsterInstance, *assets: str) -> None:
    assert box.execute(SOURCE_JOB, SOURCE, instance, assets=assets).success


def region_run(box: Sandbox, instance: dg.DagsterInstance, region: str = EU) -> None:
    assert box.execute(REGION_JOB, f"{region}|{SOURCE}", instance).success


# The daily round


def test_the_daily_round_covers_every_partition_once_a_day(box: Sandbox, instance: dg.DagsterInstance) -> None:
    box = three_sources(box)
    definitions = build_defs(box.deployment)

    def round_of(schedule: str, day: int) -> list[tuple[str | None, str | None]]:
        when = datetime(2026, 11, day, 3, tzinfo=UTC)
        with dg.build_schedule_context(
            instance=instance, scheduled_execution_time=when, repository_def=definitions.get_repository_def()
        ) as context:
            found = definitions.resolve_schedule_def(schedule).evaluate_tick(context).run_requests or ()
        return [(request.run_key, request.partition_key) for request in found]

    sources = round_of("daily_sources", 1)
    regions = round_of("daily_regions", 1)
    assert sorted(key or "" for _, key in sources) == [SOURCE, "one", "three", "two"]
    assert {key for _, key in regions} == {f"{region}|{source}" for region in REGIONS for _, source in sources}
    # Dagster starts one run for a run key: a tick that is repeated after a crash starts none twice.
    keys = [key for key, _ in [*sources, *round_of("daily_sources", 2)]]
    assert len(set(keys)) == len(keys)


def test_every_source_is_read_to_the_last_byte_once_a_week_in_the_quiet_hours(
    box: Sandbox, instance: dg.DagsterInstance
) -> None:
    schedule = build_defs(box.deployment).resolve_schedule_def("weekly_reread")
    assert schedule.cron_schedule == "0 1 * * 0"  # QuietHours 01:00-05:00, in UTC

    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2026, 11, 29, 1, tzinfo=UTC),
        repository_def=build_defs(box.deployment).get_repository_def(),
    ) as context:
        (request,) = schedule.evaluate_tick(context).run_requests or ()

    assert request.partition_key == SOURCE
    assert request.run_config == {"ops": {"raw_docs": {"config": {"reread": True}}}}


# The alert


def alert(box: Sandbox, instance: dg.DagsterInstance) -> str:
    """Let a run fail, and the sensor see it; the run's id."""
    for page in box.docs.glob("*.md"):
        page.unlink()
    result = box.execute(SOURCE_JOB, SOURCE, instance)
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failure_alert",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
    ).for_run_failure()
    sensors.run_failure_alert()(context)
    return result.run_id


def test_a_failed_run_is_told_to_the_webhook_with_its_partition_and_its_reason(
    box: Sandbox, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with webhook() as (url, received):
        monkeypatch.setenv(alerts.ALERT_WEBHOOK, url)
        run_id = alert(box, instance)

    (sent,) = received
    assert sent.keys() == {"text"}
    assert sent["text"].startswith(f"sync_source of {SOURCE} failed (run {run_id}): raw_docs: source {SOURCE}: nothing")
    assert "Cure:" in sent["text"]
    shown = capfd.readouterr()
    assert sent["text"] in shown.out + shown.err
    assert "T0-secret" not in shown.out + shown.err


def test_without_a_webhook_a_failed_run_is_logged(
    box: Sandbox, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(alerts.ALERT_WEBHOOK, raising=False)
    alert(box, instance)
    shown = capfd.readouterr()
    assert f"sync_source of {SOURCE} failed" in shown.out + shown.err


@pytest.mark.parametrize("fault", ["refuses", "redirects", "is not there", "is no URL"])
def test_a_webhook_that_fails_is_told_without_its_url(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    with webhook(status=302 if fault == "redirects" else 500) as (url, _), caplog.at_level(logging.INFO):
        if fault == "is no URL":
            url = "hooks/T0-secret"
        if fault == "is not there":
            url = "http://user:T0-secret@127.0.0.1:9/hooks/T0-secret"
        monkeypatch.setenv(alerts.ALERT_WEBHOOK, url)
        told = alerts.alert(logging.getLogger("test"), "a run failed")

    assert not told
    assert f"check the URL in {alerts.ALERT_WEBHOOK}" in caplog.text
    assert "a run failed" in caplog.text
    assert "T0-secret" not in caplog.text


ENDLESS = {
    "a body without end": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000,
    "a packed body without end": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + b"x" * 1000,
    "headers without end": b"HTTP/1.1 200 OK\r\n",
    "no answer": b"",
}


@pytest.mark.parametrize("answer", ENDLESS)
def test_a_webhook_without_end_holds_nobody_up_and_is_not_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    monkeypatch.setattr(alerts, "_SECONDS", 0.7)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sent: list[int] = []

        def serve() -> None:
            peer, _ = server.accept()
            with peer, suppress(OSError):
                peer.settimeout(5)
                peer.sendall(ENDLESS[answer])
                more = b"X-More: and more\r\n" * 500 if answer == "headers without end" else b"x" * 10_000
                while ENDLESS[answer]:
                    sent.append(peer.send(more))
                peer.recv(1 << 20), peer.recv(1 << 20), peer.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv(alerts.ALERT_WEBHOOK, f"http://127.0.0.1:{server.getsockname()[1]}/T0-secret")
        begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        told = alerts.alert(logging.getLogger("test"), "a run failed")
        seconds = time.monotonic() - begun
        thread.join()

    assert told == ("body" in answer)
    assert seconds < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB"
    assert "T0-secret" not in caplog.text


def test_a_name_server_that_does_not_answer_holds_up_no_alert(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts, "_SECONDS", 0.2)
    answered = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        answered.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setenv(alerts.ALERT_WEBHOOK, "http://hooks.invalid/T0-secret")
    begun = time.monotonic()

    told = alerts.alert(logging.getLogger("test"), "a run failed")

    answered.set()
    assert not told
    assert time.monotonic() - begun < 10
    assert "The alert webhook did not take it" in caplog.text


def test_an_alert_can_be_sent_from_a_running_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def within() -> bool:
        return alerts.alert(logging.getLogger("test"), "a run failed")

    with webhook() as (url, received):
        monkeypatch.setenv(alerts.ALERT_WEBHOOK, url)
        assert asyncio.run(within())

    assert received == [{"text": "a run failed"}]


# Under the real daemon


@pytest.mark.slow
def test_a_file_added_to_a_source_becomes_searchable_in_both_regions_by_itself(box: Sandbox) -> None:
    with daemon(box) as process:
        until(process, "the first documents are served", lambda: served(box, "lists.md"))
        box.write(guide__dicts="# Dictionaries\n\nMappings from keys to values, looked up by their hash.")
        until(process, "the new one is", lambda: served(box, "guide/dicts.md"))

    for region in REGIONS:
        hits = search(box.deployment, region, "looking up values by key", k=1)
        assert [hit["document_id"] for hit in hits] == ["guide/dicts.md"]


def served(box: Sandbox, document_id: str) -> bool:
    """Whether readers find the document in every region."""
    try:
        return all(document_id in {row[1] for row in box.rows(region)} for region in REGIONS)
    except psycopg.errors.UndefinedTable:  # nothing was ever loaded
        return False


@contextmanager
def daemon(box: Sandbox) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon on the sandbox's own Dagster home; it and all that it started are gone afterwards."""
    output = box.root / "daemon.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "dagster-daemon", "run", "-w", PROJECT / "workspace.yaml"],
            env=box.environment(),
            cwd=box.root,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    except AssertionError as error:
        error.add_note(output.read_text()[-5000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            # What is left of the group that it leads: its code server, and runs under way.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def until(process: subprocess.Popen[bytes], what: str, true: Callable[[], bool]) -> None:
    """Wait until something is true: as long as the slowest sensor takes twice, and two runs."""
    deadline = time.monotonic() + 240
    while not true():
        assert process.poll() is None, "the daemon ended"
        assert time.monotonic() < deadline, f"not in time: {what}"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
