"""What a run bought and no part holds, for the next run with another home."""

import shutil
from pathlib import Path

import pytest

from embedding_assets.embedding import leftovers
from embedding_assets.embedding.assembly import Assembly
from embedding_assets.embedding.engine.engine import Budget, BudgetSpent, Dead, Embedded
from embedding_assets.embedding.stage import prepare_embeddings
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets_tests.embedding.test_stage import SOURCE, Pipeline, hash_of
from embedding_assets_tests.support.standin import Standin

TEXTS = [f"text {n}" for n in range(60)]
ONCE = {hash_of(text).hex(): 1 for text in TEXTS}


@pytest.fixture
def pipeline(tmp_path: Path, standin: Standin) -> Pipeline:
    return Pipeline(open_store((tmp_path / "store").as_uri()), tmp_path / "home", standin)


def left(pipeline: Pipeline) -> list[str]:
    return sorted(found.path for found in pipeline.store.entries("journals"))


def run(pipeline: Pipeline, chunks: Snapshot, tokens: int | None = None, *, new_home: bool = True) -> Snapshot:
    """A run as the asset makes it, at its end if the budget suffices; a text has 3 tokens, and a request 5 texts."""
    if new_home:
        shutil.rmtree(pipeline.home, ignore_errors=True)
    draft, bought = prepare_embeddings(
        pipeline.store,
        chunks,
        pipeline.standin.binding(max_items=5, max_in_flight=1),
        pipeline.home / "journals",
        is_live=lambda: True,
        budget=Budget(max_tokens=tokens),
    )
    snapshot = log.append(pipeline.store, draft)
    pipeline.store.delete(list(bought.needless))
    return snapshot


@pytest.mark.parametrize("new_home", [True, False])
def test_runs_with_a_budget_below_a_shard_get_to_its_end_and_buy_each_text_once(
    pipeline: Pipeline, new_home: bool
) -> None:
    chunks = pipeline.chunks(TEXTS)
    for _ in range(2):
        with pytest.raises(BudgetSpent):
            run(pipeline, chunks, 60, new_home=new_home)
        assert left(pipeline)
    snapshot = run(pipeline, chunks, 75, new_home=new_home)
    pipeline.assert_holds(snapshot, TEXTS)
    assert pipeline.sent() == ONCE
    assert not left(pipeline)


def test_what_an_error_stopped_is_left_once_however_often_it_stops(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks(TEXTS)
    pipeline.standin.faults({"fault": "revoked", "skip": 4})
    with pytest.raises(PermanentError):
        run(pipeline, chunks)
    before = left(pipeline)
    assert len(before) == 1
    for new_home in (False, True):
        with pytest.raises(PermanentError):
            run(pipeline, chunks, new_home=new_home)
        assert left(pipeline) == before


@pytest.mark.parametrize(("seconds", "bought_again"), [(0.0, 0), (3600.0, 20)])
def test_a_kill_costs_a_new_home_what_came_since_the_last_time_and_no_more(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, seconds: float, bought_again: int
) -> None:
    """Killed is killed: nothing runs any more that could leave something."""
    monkeypatch.setattr(leftovers, "EVERY_SECONDS", seconds)
    chunks = pipeline.chunks(TEXTS)
    delivered: list[object] = []

    class Killed(BaseException):
        pass

    deliver = Assembly.deliver

    def until_killed(assembly: Assembly, arrived: Embedded | Dead) -> None:
        if len(delivered) == 4:
            raise Killed
        delivered.append(arrived)
        deliver(assembly, arrived)

    with monkeypatch.context() as patch:
        patch.setattr(Assembly, "deliver", until_killed)
        with pytest.raises(Killed):
            run(pipeline, chunks)
    under_way = 3 * 5  # one request in flight, and two that were ready behind it

    pipeline.assert_holds(run(pipeline, chunks), TEXTS)
    assert len(TEXTS) + bought_again <= pipeline.sent().total() <= len(TEXTS) + bought_again + under_way
    assert not left(pipeline)


@pytest.mark.parametrize("how", ["gone", "flip"])
def test_leftovers_that_are_lost_or_damaged_are_bought_again_and_go(pipeline: Pipeline, how: str) -> None:
    chunks = pipeline.chunks(TEXTS)
    with pytest.raises(BudgetSpent):
        run(pipeline, chunks, 60)
    (path,) = left(pipeline)
    data = pipeline.store.get(path)
    assert data is not None
    if how == "gone":
        pipeline.store.delete([path])
    else:
        pipeline.store.replace(path, data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    pipeline.assert_holds(run(pipeline, chunks), TEXTS)
    assert not left(pipeline)


def test_a_store_that_takes_nothing_hides_no_error_and_the_home_has_it_still(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = pipeline.chunks(TEXTS)

    def away(store: Store, path: str, data: bytes) -> bool:
        raise TransientError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_if_absent", away)
        with pytest.raises(BudgetSpent):
            run(pipeline, chunks, 60)
    assert not left(pipeline)
    run(pipeline, chunks, new_home=False)
    assert pipeline.sent() == ONCE


def test_leftovers_of_another_model_are_no_vectors_of_this_one_and_go(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks(TEXTS)
    with pytest.raises(BudgetSpent):
        run(pipeline, chunks, 60)
    _draft, bought = prepare_embeddings(
        pipeline.store,
        chunks,
        pipeline.standin.binding(name="another-standin-model", max_items=5),
        pipeline.home / "journals",
        is_live=lambda: True,
    )
    assert bought.new == len(TEXTS)
    assert list(bought.needless) == left(pipeline)


def test_a_renamed_source_takes_what_was_left_under_its_former_name(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks(TEXTS)
    with pytest.raises(BudgetSpent):
        run(pipeline, chunks, 60)
    for path in left(pipeline):
        data = pipeline.store.get(path)
        assert data is not None
        pipeline.store.put_if_absent(path.replace(f"/{SOURCE}/", "/former/"), data)
        pipeline.store.delete([path])
    shutil.rmtree(pipeline.home)
    prepare_embeddings(
        pipeline.store,
        chunks,
        pipeline.standin.binding(max_items=5),
        pipeline.home / "journals",
        is_live=lambda: True,
        renamed_from="former",
    )
    assert pipeline.sent() == ONCE
