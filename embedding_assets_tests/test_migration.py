"""From one model to the next: the registry, its gates, the switch, the way back, and what is kept of it all."""

import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from embedding_assets.client import SearchClient
from embedding_assets.operations import migration
from embedding_assets.operations.evaluation import Way
from embedding_assets.operations.gates import Gate, gates
from embedding_assets.operations.migration import Step, changes, promote, retire, roll_back, versions
from embedding_assets.operations.plan import plan
from embedding_assets.operations.search import search
from embedding_assets.operations.verification import verify_and_repair
from embedding_assets.orchestration.automation.migration import PROMOTE_JOB, RETIRE_JOB, ROLL_BACK_JOB
from embedding_assets.orchestration.build import build_defs
from embedding_assets.pgvector.publishing import promotion
from embedding_assets.pgvector.schema.models import live_slot
from embedding_assets.snapshots.failpoints import VARIABLE, Failpoint
from embedding_assets.snapshots.slots import Slot, other
from embedding_assets_tests.conftest import databases
from embedding_assets_tests.support.harness import MODELS, PRIMARY, QUIET, REGIONS, SOURCE, Sandbox
from embedding_assets_tests.test_kill_sweep import OF_A_MIGRATION

WORDS = ["parcels", "lamps", "soups", "doors", "chairs", "rivers", "letters", "gardens"]
V1 = {"v1": MODELS["v1"]}
V2 = {"v2": MODELS["v2"]}
AT_ONCE = {"validation_days": 0.0}


def run(box: Sandbox, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "embedding_assets", "migration", *words],
        env=box.environment(**more), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, postgres: Path) -> Iterator[Sandbox]:
    """Two regions in which both models are filled, and v1 is live."""
    with databases(postgres) as new_database:
        box = Sandbox(tmp_path_factory.mktemp("filled"), {region: new_database() for region in REGIONS})
        fill(box)
        yield box


def fill(box: Sandbox) -> None:
    box.write(
        **{f"page{n}": " ".join(f"{word}{n * k}" for k, word in enumerate(WORDS)) + f" on page {n}." for n in range(24)}
    )
    assert [outcome.errors for outcome in box.materialize() if not outcome.succeeded] == []


@pytest.fixture
def box(filled: Sandbox) -> Iterator[Sandbox]:
    """The same, with v1 live before the test and after it."""
    yield filled
    for region in REGIONS:
        with psycopg.connect(filled.dsns[region], autocommit=True) as conn:
            promotion.promote(conn, "v1")


def live(box: Sandbox) -> dict[str, Slot | None]:
    found = {}
    for region in box.dsns:
        with box.deployment.connect(region) as conn:
            found[region] = live_slot(conn)
    return found


def everywhere(slot: Slot) -> dict[str, Slot]:
    return dict.fromkeys(REGIONS, slot)


def done(steps: Iterator[Step]) -> list[Step]:
    found = list(steps)
    assert [step for step in found if step.failed] == []
    return found


def refused(steps: Iterator[Step]) -> str:
    found = list(steps)
    assert found[-1].failed
    return found[-1].did


def of(found: list[Gate]) -> dict[str, str]:
    return {gate.gate: gate.state for gate in found}


def with_settings(box: Sandbox, **more: Any) -> Sandbox:
    return replace(box, more={**box.more, **more})


# The registry


def test_the_registry_says_which_model_each_slot_has_and_in_which_state(box: Sandbox) -> None:
    first, second = versions(box.deployment, PRIMARY)

    assert (first.slot, first.state, first.model, first.dimensions) == (
        "v1", "live", MODELS["v1"]["name"], MODELS["v1"]["dimensions"],
    )  # fmt: skip
    assert (second.slot, second.state, second.superseded_at) == ("v2", "ready", None)
    assert first.type == f"vector({first.dimensions})"


def test_it_keeps_how_the_texts_were_cut(box: Sandbox) -> None:
    with box.deployment.connect(PRIMARY) as conn:
        (chunking,) = conn.execute("SELECT chunking FROM embedding_assets.models WHERE slot = 'v1'").fetchone() or ()

    assert chunking == {SOURCE: box.deployment.settings.sources[SOURCE].chunking.model_dump(mode="json")}


def test_every_change_is_kept_with_who_made_it_and_why(box: Sandbox) -> None:
    done(promote(box.deployment, "v2", [PRIMARY], reason="it answers better"))
    done(roll_back(box.deployment, [PRIMARY], reason="it did not"))

    promoted, back = changes(box.deployment, PRIMARY)[-2:]

    assert (promoted.change, promoted.slot, promoted.reason, promoted.forced) == (
        "promoted", "v2", "it answers better", False,
    )  # fmt: skip
    assert {gate["gate"] for gate in promoted.evidence} == {"filled", "norms", "index", "recall", "quality"}
    assert (back.change, back.slot, back.reason) == ("rolled back", "v1", "it did not")
    assert back.model["name"] == MODELS["v1"]["name"]
    assert promoted.role
    assert promoted.changed_at < back.changed_at


# The gates


def test_a_model_that_is_filled_and_finds_as_well_is_green_in_every_gate(box: Sandbox) -> None:
    found = gates(box.deployment, PRIMARY, "v2")

    assert of(found) == dict.fromkeys(("filled", "norms", "index", "recall", "quality"), "green")
    assert {gate.cure for gate in found} == {None}
    quality = found[-1]
    assert "self-made questions" in quality.why
    assert "of the first ten in common" in quality.why


def test_what_was_compared_is_not_compared_again_until_the_rows_change(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates(box.deployment, PRIMARY, "v2")
    monkeypatch.setattr("embedding_assets.operations.gates.evaluate", None)

    assert of(gates(box.deployment, PRIMARY, "v2"))["quality"] == "green"


def test_what_another_version_of_this_program_kept_is_compared_anew(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gates(box.deployment, PRIMARY, "v2")
    with psycopg.connect(box.dsns[PRIMARY]) as conn:
        conn.execute("UPDATE embedding_assets.comparisons SET found = '{}'")
    monkeypatch.setattr(Way, "model_fields", {**Way.model_fields, "one_more": None})

    assert of(gates(box.deployment, PRIMARY, "v2")) == of(before)


def test_a_model_that_answers_worse_is_red_by_the_questions_that_somebody_labelled(
    box: Sandbox, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    lines = [{"query": (box.docs / f"page{n}.md").read_text(), "relevant": {f"page{n}.md": 1}} for n in range(24)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {**box.settings["sources"][SOURCE], "questions": str(questions)}
    labelled = replace(box, sources={SOURCE: source})
    with labelled.deployment.connect(PRIMARY) as conn:  # the other model's vectors become those of other texts
        conn.execute(
            """
            UPDATE embedding_assets.chunks SET embedding_v2 = others.embedding_v2 FROM (
                SELECT chunk_id, row_number() OVER (ORDER BY document_id) AS place FROM embedding_assets.chunks
            ) AS own, (
                SELECT embedding_v2, row_number() OVER (ORDER BY document_id DESC) AS place FROM embedding_assets.chunks
            ) AS others
            WHERE own.chunk_id = chunks.chunk_id AND own.place = others.place
            """
        )
    try:
        found = {gate.gate: gate for gate in gates(labelled.deployment, PRIMARY, "v2")}

        assert found["quality"].state == "red"
        assert "24 labelled questions" in found["quality"].why
        assert "quality is red" in refused(promote(labelled.deployment, "v2", [PRIMARY]))
        assert live(box) == everywhere("v1")
        (step,) = done(promote(labelled.deployment, "v2", [PRIMARY], force=True))
        assert step.did.startswith("promoted v2")
        assert changes(box.deployment, PRIMARY)[-1].forced
    finally:
        with psycopg.connect(box.dsns[PRIMARY], autocommit=True) as conn:
            promotion.promote(conn, "v1")
        verify_and_repair(box.deployment, [SOURCE], [PRIMARY])


def test_an_empty_slot_and_one_that_is_not_loaded_are_red_with_a_cure(sandbox: Sandbox) -> None:
    sandbox.write(refunds="Refunds take five days.")
    one = replace(sandbox, dsns={PRIMARY: sandbox.dsns[PRIMARY]}, models=V1)
    one.materialize()

    (empty,) = gates(one.deployment, PRIMARY, "v2")
    replace(one, models=MODELS).deployment.prepare(PRIMARY)
    (unloaded,) = gates(replace(one, models=MODELS).deployment, PRIMARY, "v2")

    assert (empty.gate, empty.state) == ("bound", "red")
    assert empty.cure == "bind a model to v2 in the settings (models.v2), then embedding-assets materialize"
    assert (unloaded.gate, unloaded.state, unloaded.value) == ("filled", "red", 0)
    assert versions(one.deployment, PRIMARY)[1].state == "back-filling"
    assert "filled is red" in refused(promote(replace(one, models=MODELS).deployment, "v2", [PRIMARY]))
    # The cure works.
    replace(one, models=MODELS).materialize()
    done(promote(replace(one, models=MODELS).deployment, "v2", [PRIMARY]))
    assert live(one) == {PRIMARY: "v2"}


def test_no_force_overrules_that_documents_would_be_missing(sandbox: Sandbox) -> None:
    sandbox.write(refunds="Refunds take five days.")
    one = replace(sandbox, dsns={PRIMARY: sandbox.dsns[PRIMARY]}, models=V1)
    one.materialize()
    both = replace(one, models=MODELS)
    both.deployment.prepare(PRIMARY)

    said = refused(promote(both.deployment, "v2", [PRIMARY], force=True))

    assert "slot v2 cannot become live: it has no vectors yet for source 'handbook'. Cure: embedding-assets" in said
    assert live(one) == {PRIMARY: "v1"}


def test_a_region_that_cannot_be_asked_is_unknown_and_stops_the_promotion_there(box: Sandbox) -> None:
    away = replace(box, dsns={**box.dsns, REGIONS[1]: "postgresql://127.0.0.1:1/nowhere"})

    (gate,) = gates(away.deployment, REGIONS[1], "v2")
    steps = list(promote(away.deployment, "v2", REGIONS))

    assert (gate.gate, gate.state) == ("reachable", "unknown")
    assert [step.failed for step in steps] == [False, True]
    # The same again goes on where it stopped.
    assert [step.did[:4] for step in done(promote(box.deployment, "v2", REGIONS))] == ["v2 (", "prom"]
    assert live(box) == everywhere("v2")


# The switch


def test_a_promotion_switches_region_by_region_and_says_how_long_readers_waited(box: Sandbox) -> None:
    steps = done(promote(box.deployment, "v2", REGIONS))

    assert [step.region for step in steps] == list(REGIONS)
    assert all(step.milliseconds is not None and step.milliseconds < 1000 for step in steps)
    assert live(box) == everywhere("v2")
    assert versions(box.deployment, PRIMARY)[0].state == "retiring"
    assert [step.did for step in done(promote(box.deployment, "v2", REGIONS))] == [
        f"v2 ({MODELS['v2']['name']}) is live already"
    ] * 2


def test_a_roll_back_is_the_same_switch_and_again_does_nothing(box: Sandbox) -> None:
    done(promote(box.deployment, "v2", REGIONS))
    done(roll_back(box.deployment, [PRIMARY]))

    steps = done(roll_back(box.deployment, REGIONS))  # one of them was rolled back before

    assert [step.did.split(":")[0] for step in steps] == [
        f"rolled back to v1 ({MODELS['v1']['name']})", f"v1 ({MODELS['v1']['name']}) is live already",
    ]  # fmt: skip
    assert live(box) == everywhere("v1")


def test_there_is_nothing_to_roll_back_to_before_a_promotion(sandbox: Sandbox) -> None:
    sandbox.write(refunds="Refunds take five days.")
    sandbox.materialize()

    assert "there is nothing to roll back to: no other model was live here" in refused(
        roll_back(sandbox.deployment, [PRIMARY])
    )


def test_documents_that_change_after_a_promotion_come_with_both_models(box: Sandbox) -> None:
    done(promote(box.deployment, "v2", REGIONS))
    box.write(page1="Page 1 tells of a lighthouse.")

    assert all(outcome.succeeded for outcome in box.materialize())

    assert str(search(box.deployment, PRIMARY, "a lighthouse", k=1)[0]["document_id"]) == "page1.md"
    done(roll_back(box.deployment, REGIONS))
    assert str(search(box.deployment, PRIMARY, "a lighthouse", k=1)[0]["document_id"]) == "page1.md"


# The end of the model before


def test_a_model_is_kept_to_roll_back_to_until_the_window_is_over(sandbox: Sandbox) -> None:
    sandbox.write(refunds="Refunds take five days.")
    one = replace(sandbox, dsns={PRIMARY: sandbox.dsns[PRIMARY]})
    one.materialize()
    done(promote(one.deployment, "v2", [PRIMARY]))

    bound = refused(retire(one.deployment, "v1", [PRIMARY]))
    without = replace(one, models=V2)
    early = refused(retire(without.deployment, "v1", [PRIMARY]))
    is_live = refused(retire(replace(one, models=V1).deployment, "v2", [PRIMARY]))
    (step,) = done(retire(with_settings(without, migration=AT_ONCE).deployment, "v1", [PRIMARY], reason="paid for"))

    assert "take the line models.v1 out of the settings" in bound
    assert "and is kept to roll back to until" in early
    assert "slot v2 is live with model" in is_live
    assert step.did == "v1 is retired"
    assert [step.did for step in done(retire(without.deployment, "v1", [PRIMARY]))] == ["v1 is empty already"]
    assert [(c.change, c.slot, c.reason, c.forced) for c in changes(one.deployment, PRIMARY)][-1] == (
        "retired", "v1", "paid for", False,
    )  # fmt: skip
    assert all(outcome.succeeded for outcome in without.materialize())
    assert versions(without.deployment, PRIMARY)[0].state == "empty"
    assert str(search(without.deployment, PRIMARY, "refunds", k=1)[0]["document_id"]) == "refunds.md"


def test_the_next_model_takes_the_slot_that_was_freed(sandbox: Sandbox) -> None:
    sandbox.write(refunds="Refunds take five days.", lists="Lists are mutable sequences.")
    one = replace(sandbox, dsns={PRIMARY: sandbox.dsns[PRIMARY]})
    one.materialize()
    done(promote(one.deployment, "v2", [PRIMARY]))
    freed = with_settings(replace(one, models=V2), migration=AT_ONCE)
    done(retire(freed.deployment, "v1", [PRIMARY]))
    freed.materialize()
    third = {"provider": "local", "name": "wordllama-128", "dimensions": 128}

    next_one = with_settings(replace(one, models={**V2, "v1": third}), live_model="v2")
    assert all(outcome.succeeded for outcome in next_one.materialize())
    done(promote(next_one.deployment, "v1", [PRIMARY]))

    assert versions(next_one.deployment, PRIMARY)[0].model == "wordllama-128"
    assert live(next_one) == {PRIMARY: "v1"}


def test_another_way_to_cut_moves_a_source_as_a_whole_and_is_recorded(sandbox: Sandbox) -> None:
    sandbox.write(refunds="Refunds take five days. " * 40, lists="Lists are mutable sequences. " * 40)
    one = replace(sandbox, dsns={PRIMARY: sandbox.dsns[PRIMARY]})
    one.materialize()
    files = one.settings["sources"][SOURCE]
    other_cut = replace(one, sources={SOURCE: {**files, "chunking": {"max_tokens": 60, "overlap": 10}}})

    assert all(outcome.succeeded for outcome in other_cut.materialize())

    rechunked = [change for change in changes(one.deployment, PRIMARY) if change.change == "rechunked"]
    assert [change.slot for change in rechunked] == ["v1", "v2"]
    assert rechunked[0].evidence["after"][SOURCE]["max_tokens"] == 60


def test_a_source_that_is_added_is_no_other_way_to_cut(box: Sandbox) -> None:
    before = changes(box.deployment, PRIMARY)

    replace(box, sources={"more": box.settings["sources"][SOURCE]}).deployment.prepare(PRIMARY)

    assert changes(box.deployment, PRIMARY) == before
    box.deployment.prepare(PRIMARY)


# Before anything is bought


def test_a_plan_says_what_the_next_run_buys(sandbox: Sandbox) -> None:
    sandbox.write(refunds="Refunds take five days.", again="Refunds take five days.", lists="Lists are sequences.")
    one = replace(sandbox, dsns={PRIMARY: sandbox.dsns[PRIMARY]}, models=V1)
    one.materialize()
    both = replace(one, models=MODELS)

    (planned,) = plan(both.deployment, "v2")
    outcomes = both.materialize()

    bought = [outcome.metadata["embeddings_v2"]["new"] for outcome in outcomes if "embeddings_v2" in outcome.metadata]
    assert (planned.chunks, planned.texts) == (3, 2)
    assert bought == [planned.texts]
    assert (planned.usd, planned.hours) == (0, None)
    (nothing,) = plan(both.deployment, "v2")
    assert (nothing.texts, nothing.tokens) == (0, 0)


def test_a_plan_knows_the_price_and_the_quota(box: Sandbox) -> None:
    bought = {"provider": "openai", "name": "text-embedding-3-small", "dimensions": 1536, "tokens_per_minute": 600}

    (planned,) = plan(replace(box, models={**MODELS, "v2": bought}).deployment, "v2")

    assert planned.texts == 24
    assert planned.usd == pytest.approx(planned.tokens * 0.02 / 1e6)
    assert planned.hours == pytest.approx(planned.tokens / 600 / 60)
    assert planned.table_bytes == 24 * 1536 * 4


# From the UI


def test_the_jobs_do_what_the_commands_do(box: Sandbox) -> None:
    with dg.DagsterInstance.ephemeral() as instance:

        def ran(job: str, op: str, **config: Any) -> bool:
            found = build_defs(box.deployment).resolve_job_def(job)
            return found.execute_in_process(
                instance=instance, run_config={**QUIET, "ops": {op: {"config": config}}}, raise_on_error=False
            ).success

        assert ran(PROMOTE_JOB, "promote", to="v2", reason="from the UI")
        assert live(box) == everywhere("v2")
        assert ran(ROLL_BACK_JOB, "roll_back")
        assert live(box) == everywhere("v1")
        assert not ran(RETIRE_JOB, "retire", slot="v1")
        assert not ran(PROMOTE_JOB, "promote", to="v3")
        assert not ran(PROMOTE_JOB, "promote", to="v2", regions=["nowhere"])
    assert live(box) == everywhere("v1")


def test_a_sensor_promotes_where_the_settings_say_so_alone(sandbox: Sandbox) -> None:
    fill(sandbox)
    by_itself = with_settings(sandbox, migration={"promote": "automatically"})

    assert "promotes_by_itself" not in {s.name for s in build_defs(sandbox.deployment).sensors or []}
    (sensor,) = (s for s in build_defs(by_itself.deployment).sensors or [] if s.name == "promotes_by_itself")
    with dg.build_sensor_context(resources={"deployment": by_itself.deployment}) as context:
        request = sensor(context)
        assert isinstance(request, dg.RunRequest)
        assert request.run_config["ops"]["promote"]["config"]["to"] == "v2"
        done(promote(by_itself.deployment, "v2", REGIONS))
        done(roll_back(by_itself.deployment, REGIONS))
        assert isinstance(sensor(context), dg.SkipReason)  # somebody has taken it back


# Under load


@pytest.mark.slow
def test_clients_meet_no_error_from_the_binding_of_a_model_to_the_end_of_the_one_before(sandbox: Sandbox) -> None:
    fill(sandbox)
    one = replace(sandbox, dsns={PRIMARY: sandbox.dsns[PRIMARY]}, models=V1)
    one.materialize()
    texts = {path.name: path.read_text() for path in one.docs.iterdir()}
    ended, asked, wrong = threading.Event(), dict.fromkeys(range(8), 0), list[str]()

    def ask(number: int) -> None:
        """A text is the nearest to itself by either model; by vectors of both it would be anything."""
        with SearchClient(one.dsns[PRIMARY], timeout=60) as client:
            for name, text in itertools.cycle(texts.items()):
                if ended.is_set():
                    return
                try:
                    (hit,) = client.search(text, 1)
                except Exception as error:
                    wrong.append(repr(error))
                else:
                    if hit.document_id != name or hit.distance > 1e-3:
                        wrong.append(f"{name}: {hit}")
                asked[number] += 1

    both = replace(one, models=MODELS)
    after = with_settings(replace(one, models=V2), migration=AT_ONCE)
    clients = [threading.Thread(target=ask, args=(number,)) for number in asked]
    for client in clients:
        client.start()
    try:
        assert all(outcome.succeeded for outcome in both.materialize())  # bound, and filled
        both.write(another="Another page, of herons.")
        assert all(outcome.succeeded for outcome in both.materialize())
        switches = [*done(promote(both.deployment, "v2", [PRIMARY], force=True))]
        switches += done(roll_back(both.deployment, [PRIMARY]))
        switches += done(promote(both.deployment, "v2", [PRIMARY], force=True))
        both.write(another="Another page, of storks.")
        assert all(outcome.succeeded for outcome in both.materialize())
        done(retire(after.deployment, "v1", [PRIMARY]))
        assert all(outcome.succeeded for outcome in after.materialize())
    finally:
        ended.set()
        for client in clients:
            client.join()

    assert wrong == []
    assert min(asked.values()) > 0
    waited = [step.milliseconds for step in switches if step.milliseconds is not None]
    print(f"{sum(asked.values())} questions, 0 errors; readers waited {max(waited):.1f} ms at most for a switch")
    assert len(waited) == 3
    assert versions(after.deployment, PRIMARY)[0].state == "empty"


# Killed anywhere


OF_A_SWITCH = tuple(point for point in OF_A_MIGRATION if point.name.startswith("SWITCH_"))
OF_AN_END = tuple(point for point in OF_A_MIGRATION if point.name.startswith("RETIRE_"))


def killed_and_run_again(box: Sandbox, command: tuple[str, ...], point: Failpoint, nth: int) -> None:
    """Nothing in between is ever seen: one model is live in each region, and all documents are found."""
    died = run(box, *command, **{VARIABLE: f"{point}:{nth}"})

    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    assert set(live(box).values()) <= {"v1", "v2"}
    rows = {len(box.rows(region)) for region in REGIONS}
    assert rows == {len(list(box.docs.iterdir()))}
    again = run(box, *command)
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", OF_A_SWITCH)
@pytest.mark.slow
def test_a_promotion_killed_at_any_step_is_done_by_the_same_command_again(
    box: Sandbox, point: Failpoint, nth: int
) -> None:
    killed_and_run_again(box, ("promote", "--to", "v2", "--force"), point, nth)

    assert live(box) == everywhere("v2")


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", OF_A_SWITCH)
@pytest.mark.slow
def test_a_roll_back_killed_at_any_step_is_done_by_the_same_command_again(
    box: Sandbox, point: Failpoint, nth: int
) -> None:
    done(promote(box.deployment, "v2", REGIONS, force=True))

    killed_and_run_again(box, ("rollback",), point, nth)

    assert live(box) == everywhere("v1")


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", OF_AN_END)
@pytest.mark.slow
def test_an_end_killed_at_any_step_is_done_by_the_same_command_again(
    sandbox: Sandbox, point: Failpoint, nth: int
) -> None:
    sandbox.write(refunds="Refunds take five days.")
    sandbox.materialize()
    done(promote(sandbox.deployment, "v2", REGIONS, force=True))
    box = with_settings(replace(sandbox, models=V2), migration=AT_ONCE)

    killed_and_run_again(box, ("retire", "v1"), point, nth)

    assert live(box) == everywhere("v2")
    assert {versions(box.deployment, region)[0].state for region in REGIONS} == {"empty"}
    assert all(outcome.succeeded for outcome in box.materialize())


def test_the_command_prints_what_it_did(box: Sandbox) -> None:
    status = run(box, "status", "--json")
    promoted = run(box, "promote", "--to", "v2", "--reason", "tried", "--json")
    back = run(box, "rollback")
    history = run(box, "history", "--json")

    assert status.returncode == 0, status.stdout + status.stderr
    found = json.loads(status.stdout)
    assert set(found[0]) == {"region", "source", "gate", "state", "value", "needed", "why", "cure"}
    assert {(gate["region"], gate["state"]) for gate in found} == {(region, "green") for region in REGIONS}
    assert promoted.returncode == 0, promoted.stderr
    assert [(step["region"], step["failed"]) for step in json.loads(promoted.stdout)] == [(r, False) for r in REGIONS]
    assert back.stdout.count("rolled back to v1") == 2
    assert [change["change"] for change in json.loads(history.stdout) if change["reason"] == "tried"] == [
        "promoted"
    ] * 2
    assert migration.candidate(box.deployment, PRIMARY) == other("v1")
