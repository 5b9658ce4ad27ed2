"""The embeddings stage over real stores and a stand-in provider: what is bought, what is reused, what is left behind.

Runs of every kind over a whole pipeline are in `test_pipeline_properties`; here is what those cannot show.
"""

import hashlib
import json
import struct
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pytest

from embedding_assets.embedding import journal
from embedding_assets.embedding.engine.engine import Budget, BudgetSpent, Usage
from embedding_assets.embedding.known import Heal
from embedding_assets.embedding.ledger import Account
from embedding_assets.embedding.model_versions import ModelVersion
from embedding_assets.embedding.stage import BindingChanged, Cost, prepare_embeddings
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.draft import prepare
from embedding_assets.snapshots.garbage import collect
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import LayerDamaged, write_layer
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.schemas import CHUNKS
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.telemetry.events import (
    EmbeddingProgress,
    EngineProgress,
    Event,
    ShardMade,
    Tell,
    TextRejected,
    unheard,
)
from embedding_assets_tests.snapshots.conftest import damage
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.standin import Standin, unit_vector

SOURCE = "handbook"
ASSET = "embeddings_v1"


def hash_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass
class Pipeline:
    """A source's store, the chunks in it, and the provider of its vectors."""

    store: Store
    home: Path
    standin: Standin

    def chunks(self, *shards: Sequence[str]) -> Snapshot:
        """Commit chunks with these texts: a document a shard."""
        draft = prepare(
            asset="chunks",
            source=SOURCE,
            version="1",
            shard_bits=5,
            parts=[self.chunks_part(shard, texts) for shard, texts in enumerate(shards) if texts],
            counts={"chunks": sum(map(len, shards))},
            upstream=[],
            after=log.head(self.store, "chunks", SOURCE),
        )
        return log.append(self.store, draft)

    def chunks_part(self, shard: int, texts: Sequence[str]) -> Part:
        rows = [
            {
                "chunk_id": hash_of(f"{shard} {ordinal}")[:16],
                "document_id": f"document {shard}",
                "ordinal": ordinal,
                "start": 0,
                "end": len(text),
                "tokens": 3,
                "text": text,
                "text_hash": hash_of(text),
                "metadata": "{}",
                "chunk_hash": hash_of(f"{shard} {ordinal} {text}"),
            }
            for ordinal, text in enumerate(texts)
        ]
        key = part_key("chunks", "1", [str(shard), *texts])
        table = pa.Table.from_pylist(rows, CHUNKS)
        return Part.alone(write_layer(self.store, table, asset="chunks", source=SOURCE, shard=shard, key=key))

    def embed(
        self,
        chunks: Snapshot,
        live: bool = True,
        heal: Heal = lambda damaged: False,
        tell: Tell = unheard,
        **binding: Any,
    ) -> tuple[Snapshot, Cost]:
        bound = self.standin.binding(**{"max_items": 4, **binding})
        journals = self.home / "journals"
        draft, bought = prepare_embeddings(
            self.store, chunks, bound, journals, is_live=lambda: live, heal=heal, tell=tell
        )
        return log.append(self.store, draft), bought

    def assert_holds(self, snapshot: Snapshot, *shards: Sequence[str | None]) -> None:
        """Each shard has the vectors of these texts in this order, null for None."""
        for part, texts in zip(snapshot.parts, shards, strict=True):
            rows = read_part(self.store, SOURCE, part)
            for name in ("embedding", "vector_hash"):
                assert [held is None for held in rows.column(name).to_pylist()] == [text is None for text in texts]
            for row, text in zip(rows.to_pylist(), texts, strict=True):
                if text is not None:
                    vector = np.frombuffer(row["embedding"], "<f4")
                    np.testing.assert_allclose(vector, unit_vector(text), atol=1e-6)
                    sent = struct.pack(f">hh{len(vector)}f", len(vector), 0, *vector)
                    assert row["vector_hash"] == hashlib.sha256(sent).digest()

    def sent(self) -> Counter[str]:
        """How often each text went to the provider."""
        return Counter(text for request in self.standin.log() for text in request["texts"])

    def collect_garbage(self) -> None:
        """Keep the heads alone."""
        collect(self.store, keep=1, grace=timedelta(0), now=datetime.now(UTC) + timedelta(days=1))


@pytest.fixture
def pipeline(tmp_path: Path, standin: Standin) -> Pipeline:
    return Pipeline(open_store((tmp_path / "store").as_uri()), tmp_path / "home", standin)


def test_every_chunk_has_the_vector_of_its_text_in_its_row(pipeline: Pipeline) -> None:
    shards = [[f"{shard} {n}" for n in range(5)] for shard in range(3)]
    chunks = pipeline.chunks(*shards)

    snapshot, bought = pipeline.embed(chunks)

    pipeline.assert_holds(snapshot, *shards)
    for of_chunks, of_vectors in zip(chunks.parts, snapshot.parts, strict=True):
        assert of_vectors.inputs == (of_chunks.key,)
        names = ["chunk_id", "text_hash"]
        expected, held = (read_part(pipeline.store, SOURCE, part, names) for part in (of_chunks, of_vectors))
        assert held.equals(expected)
    assert snapshot.counts == {"vectors_v1": 15, "dead_v1": 0}
    assert snapshot.upstream == {"chunks": chunks.root}
    assert (bought.new, bought.reused) == (15, 0)


def test_a_former_name_of_which_nothing_is_left_is_told_of(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    bound = pipeline.standin.binding()
    journals = pipeline.home / "journals"

    prepare_embeddings(
        pipeline.store, pipeline.chunks(["a"]), bound, journals, is_live=lambda: True, renamed_from="misspelt"
    )

    assert "renamed_from: nothing of a source 'misspelt' is in the store" in caplog.text


def test_equal_texts_are_sent_once(pipeline: Pipeline) -> None:
    shards = [["same", "a", "same"], ["b", "same"]]

    snapshot, bought = pipeline.embed(pipeline.chunks(*shards))

    pipeline.assert_holds(snapshot, *shards)
    assert set(pipeline.sent().values()) == {1}
    assert (bought.new, bought.reused) == (3, 2)


def test_only_new_texts_of_a_changed_shard_are_sent(pipeline: Pipeline) -> None:
    pipeline.embed(pipeline.chunks(["a", "b"], ["c", "d"]))
    pipeline.standin.reset()

    snapshot, bought = pipeline.embed(pipeline.chunks(["a", "new"], ["c", "d"]))

    pipeline.assert_holds(snapshot, ["a", "new"], ["c", "d"])
    assert [request["items"] for request in pipeline.standin.log()] == [1]
    assert (bought.new, bought.reused) == (1, 3)


def test_nothing_changed_asks_nothing_and_writes_nothing(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks(["a"])
    first, _ = pipeline.embed(chunks)
    pipeline.standin.reset()

    again, bought = pipeline.embed(chunks)

    assert again == first
    assert bought == Cost(0, 1, Usage())
    assert pipeline.standin.log() == []


def test_a_source_without_chunks_has_an_empty_snapshot(pipeline: Pipeline) -> None:
    pipeline.embed(pipeline.chunks(["a"]))

    snapshot, _ = pipeline.embed(pipeline.chunks([]))

    assert snapshot.parts == ()
    assert snapshot.number == 2


# What the provider refuses


def test_a_refused_text_is_null_in_every_row_and_named_once(pipeline: Pipeline) -> None:
    pipeline.standin.faults({"fault": "poison", "match": "virus"})
    shards = [["a", "virus", "b"], ["virus"], ["c", "virus", "virus"]]

    snapshot, _ = pipeline.embed(pipeline.chunks(*shards))

    pipeline.assert_holds(snapshot, ["a", None, "b"], [None], ["c", None, None])
    (rejection,) = snapshot.rejected
    assert (rejection.document_id, rejection.identity) == ("document 0", hash_of("virus").hex())
    assert rejection.cure == "mend the text at its source, or leave it out"
    assert not rejection.reason.endswith(rejection.cure)
    assert {part.dead for part in snapshot.parts} == {(hash_of("virus").hex(),)}
    assert snapshot.counts["dead_v1"] == 1


def test_a_run_tells_of_shards_rows_and_rejections(pipeline: Pipeline) -> None:
    pipeline.standin.faults({"fault": "poison", "match": "virus"})
    events: list[Event] = []

    snapshot, _ = pipeline.embed(pipeline.chunks(["a", "virus", "b"], ["virus", "a"]), tell=events.append)

    made = of_kind(events, ShardMade)
    assert [(one.made, one.wanted) for one in made] == [(1, 2), (2, 2)]
    assert {(one.asset, one.shard, one.rows, one.bytes) for one in made} == {
        (part.asset, part.shard, part.rows, part.bytes) for part in snapshot.parts
    }
    assert [one.error_class for one in of_kind(events, TextRejected)] == ["refused"]
    last = of_kind(events, EmbeddingProgress)[-1]
    assert (last.rows, last.all_rows, last.engine.texts, last.engine.dead) == (5, 5, 2, 1)
    assert of_kind(events, EngineProgress) == []  # it stands in the stage's own


def test_a_refused_text_is_not_tried_again_in_every_shard(pipeline: Pipeline) -> None:
    pipeline.standin.faults({"fault": "poison", "match": "virus"})
    shards = [[f"{shard} {n}" for n in range(40)] + ["virus"] for shard in range(12)]

    pipeline.embed(pipeline.chunks(*shards))

    refused = [request for request in pipeline.standin.log() if request["fault"] == "poison"]
    assert len(refused) < 8


def test_a_dead_letter_is_not_sent_again_by_later_runs(pipeline: Pipeline) -> None:
    pipeline.standin.faults({"fault": "poison", "match": "virus"})
    first, _ = pipeline.embed(pipeline.chunks(["a", "virus"], ["b"]))
    pipeline.standin.reset()

    second, bought = pipeline.embed(pipeline.chunks(["a", "virus", "new"], ["b", "virus"]))

    assert [request["items"] for request in pipeline.standin.log()] == [1]
    pipeline.assert_holds(second, ["a", None, "new"], ["b", None])
    assert second.rejected == first.rejected
    assert bought.new == 1


def test_a_dead_letter_goes_with_its_last_chunk(pipeline: Pipeline) -> None:
    pipeline.standin.faults({"fault": "poison", "match": "virus"})
    pipeline.embed(pipeline.chunks(["a", "virus"]))

    snapshot, _ = pipeline.embed(pipeline.chunks(["a"]))

    assert (snapshot.rejected, snapshot.counts["dead_v1"]) == ((), 0)


# What a run leaves behind when it fails


def test_vectors_that_arrived_before_a_failure_are_not_bought_again(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks([f"text {n}" for n in range(40)])
    pipeline.standin.faults({"fault": "revoked", "skip": 6})
    with pytest.raises(PermanentError):
        pipeline.embed(chunks, max_in_flight=1)
    answered = pipeline.sent() - Counter(t for r in pipeline.standin.log() if r["status"] != 200 for t in r["texts"])
    pipeline.standin.reset()

    snapshot, bought = pipeline.embed(chunks)

    assert len(answered) == 24
    assert bought.new == 16
    assert not pipeline.sent() & answered
    pipeline.assert_holds(snapshot, [f"text {n}" for n in range(40)])


def test_the_attempts_of_one_run_share_its_budget_and_the_next_run_has_its_own(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks([f"text {n}" for n in range(40)])
    binding = pipeline.standin.binding(max_items=4, max_in_flight=1)

    def attempt(run: str, budget: int) -> None:
        prepare_embeddings(
            pipeline.store,
            chunks,
            binding,
            pipeline.home / "journals",
            is_live=lambda: True,
            budget=Budget(max_tokens=budget, account=Account(pipeline.home / "budgets" / "runs.sqlite", run)),
        )

    pipeline.standin.faults({"fault": "revoked", "skip": 6})
    with pytest.raises(PermanentError):
        attempt("first", 100)
    before = sum(entry["tokens"] for entry in pipeline.standin.log() if entry["status"] == 200)
    pipeline.standin.reset()
    budget = before + 20
    with pytest.raises(BudgetSpent, match=f"max_tokens of {budget}"):
        attempt("first", budget)
    bought = sum(entry["tokens"] for entry in pipeline.standin.log())
    assert 0 < bought <= 20
    with pytest.raises(BudgetSpent):
        attempt("first", budget)
    assert sum(entry["tokens"] for entry in pipeline.standin.log()) <= 20
    attempt("second", 1000)
    assert sum(entry["items"] for entry in pipeline.standin.log()) == 40 - 24


def test_shards_that_were_finished_before_a_failure_are_found_by_name(pipeline: Pipeline) -> None:
    """Also by a machine that has no journal of it."""
    chunks = pipeline.chunks(*([f"{shard} {n}" for n in range(4)] for shard in range(10)))
    pipeline.standin.faults({"fault": "revoked", "skip": 5})
    with pytest.raises(PermanentError):
        pipeline.embed(chunks, max_in_flight=1)
    pipeline.standin.reset()

    _, bought = Pipeline(pipeline.store, pipeline.home / "elsewhere", pipeline.standin).embed(chunks)

    assert (bought.new, bought.reused) == (20, 20)


# What becomes of vectors in parts that are gone


def test_a_text_that_comes_back_after_garbage_collection_is_bought_again(pipeline: Pipeline) -> None:
    pipeline.embed(pipeline.chunks(["a", "b"]))
    pipeline.embed(pipeline.chunks(["a"]))
    pipeline.collect_garbage()
    pipeline.standin.reset()

    snapshot, bought = pipeline.embed(pipeline.chunks(["a", "b"]))

    pipeline.assert_holds(snapshot, ["a", "b"])
    assert bought.new == 1
    assert [request["items"] for request in pipeline.standin.log()] == [1]


def test_a_text_is_taken_from_any_part_that_is_left(pipeline: Pipeline) -> None:
    """Shard 0 keeps `same`; the newer part with it is gone when shard 2 comes to want it."""
    pipeline.embed(pipeline.chunks(["same"]))
    pipeline.embed(pipeline.chunks(["same"], ["same", "b"]))
    pipeline.embed(pipeline.chunks(["same"], ["b"]))
    pipeline.collect_garbage()
    pipeline.standin.reset()

    snapshot, bought = pipeline.embed(pipeline.chunks(["same"], ["b"], ["same"]))

    pipeline.assert_holds(snapshot, ["same"], ["b"], ["same"])
    assert bought.new == 0
    assert pipeline.standin.log() == []


def test_a_deleted_document_that_comes_back_is_not_bought_again(pipeline: Pipeline) -> None:
    """As long as an older snapshot's part has its vectors."""
    pipeline.embed(pipeline.chunks(["a", "b"]))
    pipeline.embed(pipeline.chunks(["a"]))
    pipeline.standin.reset()

    _, bought = pipeline.embed(pipeline.chunks(["a", "b", "c"]))

    assert bought.new == 1


def test_a_store_that_was_emptied_is_filled_again(pipeline: Pipeline) -> None:
    """The journal knows the parts that were there."""
    pipeline.embed(pipeline.chunks(["a"], ["b"]))
    pipeline.store.delete([found.path for found in pipeline.store.entries("")])

    snapshot, bought = pipeline.embed(pipeline.chunks(["a"], ["b"]))

    pipeline.assert_holds(snapshot, ["a"], ["b"])
    assert bought.new == 2


def harm(store: Store, layer: Layer) -> None:
    obstore.put(store.objects, layer.path(SOURCE), b"something else")


def test_a_damaged_part_that_is_being_replaced_costs_its_texts_and_no_more(pipeline: Pipeline) -> None:
    first, _ = pipeline.embed(pipeline.chunks(["a", "b"], ["c"]))
    harm(pipeline.store, first.layers[0])

    snapshot, bought = pipeline.embed(pipeline.chunks(["a"], ["c"]))

    pipeline.assert_holds(snapshot, ["a"], ["c"])
    assert bought.new == 1


def test_a_part_that_rotted_in_place_is_asked_for_elsewhere_before_its_texts_are_bought(pipeline: Pipeline) -> None:
    first, _ = pipeline.embed(pipeline.chunks(["a", "b"], ["c"]))
    path = first.layers[0].path(SOURCE)
    whole = pipeline.store.get(path)
    damage(pipeline.store, path)

    def heal(error: LayerDamaged) -> bool:
        pipeline.store.replace(error.layer.path(SOURCE), whole or b"")
        return True

    snapshot, bought = pipeline.embed(pipeline.chunks(["a"], ["c"]), heal=heal)

    pipeline.assert_holds(snapshot, ["a"], ["c"])
    assert bought.new == 0


def test_a_part_of_the_head_that_was_lost_is_made_again(pipeline: Pipeline) -> None:
    """Gone, or cut short: one listing tells. Its texts are bought again, and no others."""
    chunks = pipeline.chunks(["a"], ["b"], ["c"])
    first, _ = pipeline.embed(chunks)
    harm(pipeline.store, first.layers[0])
    pipeline.store.delete([first.layers[1].path(SOURCE)])

    snapshot, bought = pipeline.embed(chunks)

    pipeline.assert_holds(snapshot, ["a"], ["b"], ["c"])
    assert (bought.new, snapshot.root) == (2, first.root)


def test_a_part_that_rotted_in_place_is_an_error_that_names_it(pipeline: Pipeline) -> None:
    first, _ = pipeline.embed(pipeline.chunks(["a"], ["b"]))
    damage(pipeline.store, first.layers[0].path(SOURCE))
    chunks = pipeline.chunks(["a"], ["a", "b"])
    with pytest.raises(TransientError):
        pipeline.embed(chunks)

    with pytest.raises(LayerDamaged, match=first.parts[0].key):
        pipeline.embed(chunks)


# Which model fills the slot


def test_a_live_slot_is_not_bound_to_another_model(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks(["a"])
    first, _ = pipeline.embed(chunks, name="standin-model")
    pipeline.standin.reset()

    with pytest.raises(BindingChanged, match=r"Slot v1 is live.*Cure: put the old model back"):
        pipeline.embed(chunks, name="another-model")

    assert pipeline.standin.log() == []
    assert log.head(pipeline.store, ASSET, SOURCE) == first


def test_a_slot_that_is_not_live_is_filled_anew_by_another_model(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks(["a"])
    first, _ = pipeline.embed(chunks, live=False)

    second, bought = pipeline.embed(chunks, live=False, name="another-model")

    assert bought.new == 1
    assert second.root != first.root
    assert (second.number, second.model and second.model["name"]) == (2, "another-model")


def test_another_address_of_the_same_model_buys_nothing(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks(["a"])
    first, _ = pipeline.embed(chunks)
    pipeline.standin.reset()

    again, _ = pipeline.embed(chunks, base_url="http://127.0.0.1:9/v1", requests_per_minute=7)

    assert again == first


# What it takes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_shards_under_way(pipeline: Pipeline) -> None:
    """One text changed in each of many shards: all of them wait at once, and hold no vectors meanwhile."""
    shards = [[f"{shard} {n}" for n in range(250)] for shard in range(32)]
    pipeline.embed(pipeline.chunks(*shards), max_items=2048)
    peaks = []
    for edition in range(2):  # a process does some things once
        chunks = pipeline.chunks(*([*texts[1:], f"new {edition} {shard}"] for shard, texts in enumerate(shards)))
        pipeline.standin.reset()
        tracemalloc.start()

        _, bought = pipeline.embed(chunks, max_items=2048)

        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert bought.new == 32
        assert len(pipeline.standin.log()) == 1
    of_a_shard = 250 * 64 * 4
    assert min(peaks) < 16 * of_a_shard


def test_what_an_endpoint_takes_in_one_request_is_found_out_once_and_again_after_days(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(shards: int) -> int:
        pipeline.standin.reset()
        pipeline.standin.faults({"fault": "caps", "max_items": 5, "words": "batch size limit is 5"})
        pipeline.embed(pipeline.chunks(*([f"{shard} {n}" for n in range(20)] for shard in range(shards))), max_items=20)
        return sum(entry["status"] == 400 for entry in pipeline.standin.log())

    assert refused(2) >= 1
    assert refused(4) == 0
    monkeypatch.setattr(journal, "_TAKES_SECONDS", -1)
    assert refused(6) >= 1


# How the endpoint names the model


def test_the_name_that_the_endpoint_first_answers_by_is_recorded_and_another_later_stops_the_run(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.standin.faults({"fault": "other model", "model": "text-embedding-3-small"})
    first, bought = pipeline.embed(pipeline.chunks(["a"]))
    assert bought.answered_as == "text-embedding-3-small"
    assert ["answers as text-embedding-3-small" in record.message for record in caplog.records] == [True]
    _, bought = pipeline.embed(pipeline.chunks(["a", "b"]))
    assert bought.answered_as == "text-embedding-3-small"
    assert len(caplog.records) == 1

    pipeline.standin.faults({"fault": "other model", "model": "someone-elses"})
    more = pipeline.chunks(["a", "b", "c"])
    with pytest.raises(PermanentError, match="is of someone-elses, not of text-embedding-3-small") as caught:
        pipeline.embed(more)
    assert pipeline.sent()[hash_of("c").hex()] == 1

    cure = json.loads(str(caught.value).rpartition("answers_as: ")[2])
    snapshot, bought = pipeline.embed(more, answers_as=cure)
    assert bought.new == 1
    assert snapshot.model == first.model
    pipeline.assert_holds(snapshot, ["a", "b", "c"])


def test_the_record_holds_for_all_sources_and_homes_and_for_one_model_alone(pipeline: Pipeline) -> None:
    version = ModelVersion(pipeline.store, ASSET, "0" * 16)
    assert version.answered_as() is None
    assert version.record("one") == "one"
    assert version.record("another") == "one"
    assert version.answered_as() == "one"
    assert version._replace(model="1" * 16).answered_as() is None
    assert version._replace(asset="embeddings_v2").answered_as() is None


def test_two_first_runs_that_are_answered_by_different_models_do_not_both_go_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other records its name after this one has looked, and found none."""
    look = ModelVersion.answered_as

    def then_another_run(version: ModelVersion) -> str | None:
        with monkeypatch.context() as patch:
            patch.setattr(ModelVersion, "answered_as", look)
            found = version.answered_as()
            version.record("another")
        return found

    pipeline.standin.faults({"fault": "other model", "model": "one"})
    monkeypatch.setattr(ModelVersion, "answered_as", then_another_run)
    with pytest.raises(PermanentError, match=r"answered by one here, and by another.*answers_as: \[another, one\]"):
        pipeline.embed(pipeline.chunks(["a"]))


def test_answers_as_may_be_said_later_and_nothing_is_bought_again(pipeline: Pipeline) -> None:
    chunks = pipeline.chunks(["a"], ["b"])
    first, _ = pipeline.embed(chunks)
    pipeline.standin.reset()

    again, _ = pipeline.embed(chunks, answers_as=["bge-m3", "standin-model"])
    assert again == first
    more, bought = pipeline.embed(pipeline.chunks(["a"], ["b", "c"]), answers_as=["bge-m3", "standin-model"])

    assert bought.new == 1
    assert more.model == first.model
    with pytest.raises(BindingChanged):
        pipeline.embed(chunks, answers_as="bge-m3", name="another")
