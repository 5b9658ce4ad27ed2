"""Whether a model may become the live one of a region: what has to be right first, source by source, with evidence.

A gate that is red keeps `promote` from switching. Each says why, and what to do. What was compared once is not compared
again while the rows and the questions are the same.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final, Literal

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_assets.chunking.tokens import Tokens
from embedding_assets.embedding.options import Binding
from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.evaluation import Question, Way, evaluate, made_questions, read_questions
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.indexes.hnsw import next_larger, parameters_of
from embedding_assets.pgvector.indexes.index import invalid_indexes
from embedding_assets.pgvector.indexes.measurement import is_below, shortfall, stored_measurement
from embedding_assets.pgvector.schema.generations import Generation, published_generation
from embedding_assets.pgvector.schema.migrations import is_migrated
from embedding_assets.pgvector.schema.models import BoundModel, bound_models, live_slot
from embedding_assets.snapshots import log
from embedding_assets.snapshots.rejections import RejectedText
from embedding_assets.snapshots.slots import Slot, asset_of, column_of

State = Literal["green", "red", "unknown"]

MADE: Final = 200
"""Questions that are made of a source that has none of its own."""

FEWEST: Final = 20
"""Questions below which a comparison says nothing: of so few the bootstrap interval is too narrow."""

MADE_MARGIN: Final = 0.1
"""How much worse, in nDCG@10, a model may be on questions that were made of the texts. They repeat the texts' words,
which people's questions do not: MiniLM, better by .19 on 191 questions of people (`bench/faq.py`), is .04 worse on
those made of the demo's packages."""

_TOLERANCE: Final = {"vector": 1e-3, "halfvec": 4e-3}
"""How far from 1 a vector's length may be: 4-byte floats, and 2-byte ones, which are rounded to 3 digits."""

_MATERIALIZE: Final = "embedding-assets materialize"


@dataclass(frozen=True)
class Gate:
    """One condition for a model to be promoted in a region, of one source; of the whole region where that is empty."""

    region: str
    source: str
    gate: str
    state: State
    value: float | None
    needed: float | None
    why: str
    cure: str | None

    def as_json(self) -> dict[str, Any]:
        """The stable fields of `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"{self.region}|{self.source}" if self.source else self.region
        return f"{where}: {self.gate} is {self.state}: {self.why}{f'. Cure: {self.cure}' if self.cure else ''}"


def gates(deployment: Deployment, region: str, to: Slot) -> list[Gate]:
    """Every gate that the slot's model has to pass in a region before it may be live there.

    One that can't be asked is unknown, and red where the model itself does not answer. Asks a model the questions of
    those sources alone that were not compared yet.
    """
    try:
        with deployment.connect(region) as conn, pipeline_errors(f"asking region {region} for its gates"):
            return list(_of_region(deployment, conn, region, to))
    except PipelineError as error:
        return [Gate(region, "", "reachable", "unknown", None, None, str(error), None)]


def _of_region(deployment: Deployment, conn: Connection, region: str, to: Slot) -> Iterator[Gate]:
    bound = bound_models(conn).get(to) if is_migrated(conn) else None
    if bound is None:
        cure = f"bind a model to {to} in the settings (models.{to}), then {_MATERIALIZE}"
        yield Gate(region, "", "bound", "red", None, None, f"slot {to} is empty here", cure)
        return
    live = live_slot(conn)
    for source in deployment.settings.sources:
        generation = published_generation(conn, source)
        if generation is None:
            yield Gate(region, source, "filled", "red", 0, None, "nothing of it is in search", _MATERIALIZE)
            continue
        filled = _filled(deployment, conn, region, source, generation, bound)
        yield filled
        if filled.state == "red":
            continue
        yield _norms(conn, region, source, generation, bound)
        yield _index(conn, region, source, generation, to)
        yield _recall(deployment, conn, region, source, generation, bound)
        if live is not None and live != to:
            yield _quality(deployment, conn, region, source, generation, to, live)


def _filled(
    deployment: Deployment, conn: Connection, region: str, source: str, generation: Generation, bound: BoundModel
) -> Gate:
    """Every row has a vector of it, but for those whose text its provider refused."""
    column = sql.Identifier(column_of(bound.slot))
    rows, vectors = conn.execute(
        sql.SQL("SELECT count(*), count({}) FROM embedding_assets.chunks WHERE source = %s").format(column), [source]
    ).fetchone() or (0, 0)
    if generation.target_root == "":
        why = f"{bound.model.name} is not loaded yet: the source waits for its next load"
        return Gate(region, source, "filled", "red", vectors, rows, why, _MATERIALIZE)
    missing = rows - vectors
    if missing == 0:
        return Gate(region, source, "filled", "green", vectors, rows, f"all {rows:,} rows have their vector", None)
    head = log.head(deployment.primary, asset_of(bound.slot), source)
    refused = [one for one in head.rejected if isinstance(one, RejectedText)] if head else []
    if not refused:
        why = f"{missing:,} rows have no vector, and no text was refused"
        return Gate(region, source, "filled", "red", vectors, rows, why, "embedding-assets verify --repair")
    share = deployment.settings.sources[source].max_rejected
    state: State = "red" if missing > share * rows else "green"
    why = f"{missing:,} of {rows:,} rows have no vector: {len(refused):,} texts were refused, {share:.0%} may be"
    return Gate(region, source, "filled", state, vectors, rows, why, "embedding-assets dead-letters list")


def _norms(conn: Connection, region: str, source: str, generation: Generation, bound: BoundModel) -> Gate:
    column, kind = sql.Identifier(column_of(bound.slot)), bound.model.type.name
    length = sql.SQL("vector_norm" if kind == "vector" else "l2_norm")
    found = conn.execute(
        sql.SQL("SELECT max(abs({}({}) - 1)) FROM embedding_assets.chunks WHERE source = %s").format(length, column),
        [source],
    ).fetchone()
    farthest, tolerance = float(found[0]) if found and found[0] is not None else 0.0, _TOLERANCE[kind]
    if farthest <= tolerance:
        return Gate(region, source, "norms", "green", farthest, tolerance, "all vectors have length 1", None)
    why = f"a vector's length is {farthest:.4f} away from 1"
    return Gate(region, source, "norms", "red", farthest, tolerance, why, "embedding-assets verify --repair")


def _index(conn: Connection, region: str, source: str, generation: Generation, to: Slot) -> Gate:
    invalid = [name for name in invalid_indexes(conn, generation) if name.endswith(f"_{to}")]
    if not invalid:
        return Gate(region, source, "index", "green", 1, 1, "its index is valid", None)
    why = f"{', '.join(invalid)} is missing, or not valid"
    return Gate(region, source, "index", "red", 0, 1, why, "embedding-assets verify --repair")


def _recall(
    deployment: Deployment, conn: Connection, region: str, source: str, generation: Generation, bound: BoundModel
) -> Gate:
    target, measured = deployment.settings.target_recall, stored_measurement(conn, generation, bound.slot)
    if measured is None:
        return Gate(region, source, "recall", "unknown", None, target, "it was not measured yet", _MATERIALIZE)
    if not is_below(measured.recall, target):
        why = "there is nothing to measure" if measured.recall is None else f"at ef_search {measured.ef_search}"
        return Gate(region, source, "recall", "green", measured.recall, target, why, None)
    hnsw, built = deployment.hnsw.get(bound.slot), parameters_of(conn, generation, bound.slot)
    larger = next_larger(built, hnsw) if hnsw is not None and built is not None else None
    said = shortfall(bound.slot, measured.recall, measured.ef_search, target, larger) or ""
    why, _, cure = said.partition(". Cure: ")
    return Gate(region, source, "recall", "red", measured.recall, target, why, cure)


def _quality(
    deployment: Deployment, conn: Connection, region: str, source: str, generation: Generation, to: Slot, live: Slot
) -> Gate:
    """Whether it answers questions no worse than the live model does, as far as they can tell."""
    try:
        found = compared(deployment, conn, region, source, generation, to, live)
    except PipelineError as error:
        why, _, cure = str(error).partition(" Cure: ")
        return Gate(region, source, "quality", "red", None, None, f"it could not be asked: {why}", cure or None)
    way, before = Way.model_validate(found["way"]), Way.model_validate(found["live"])
    difference = way.against_live
    asked = f"{found['questions']} {'self-made' if found['self_made'] else 'labelled'} questions"
    why = (
        f"nDCG@10 {way.ndcg_at_10.value:.3f} for {before.ndcg_at_10.value:.3f} of {before.model}, "
        f"MRR {way.mrr.value:.3f} for {before.mrr.value:.3f}, recall@10 {way.recall_at_10.value:.3f} for "
        f"{before.recall_at_10.value:.3f}; {found['overlap_at_10']:.0%} of the first ten in common; "
        f"p50 {way.p50_ms:.1f} ms for {before.p50_ms:.1f}; a million queries cost "
        f"{found['usd_per_million_queries']:.2f} USD for {found['live_usd_per_million_queries']:.2f} ({asked})"
    )
    if found["questions"] < FEWEST:
        why = f"too few questions to tell. {why}"
        return Gate(region, source, "quality", "unknown", way.ndcg_at_10.value, before.ndcg_at_10.value, why, None)
    margin = MADE_MARGIN if found["self_made"] else 0.0
    worse = difference is not None and difference.high is not None and difference.high < -margin
    if not worse:
        return Gate(region, source, "quality", "green", way.ndcg_at_10.value, before.ndcg_at_10.value, why, None)
    cure = (
        "look at embedding-assets evaluate with questions of your own (questions: FILE at the source), bind another "
        f"model to {to}, or say promote --force, which is recorded"
    )
    why = f"significantly worse{f', by more than {margin:g}' if margin else ''}. {why}"
    return Gate(region, source, "quality", "red", way.ndcg_at_10.value, before.ndcg_at_10.value, why, cure)


def compared(
    deployment: Deployment, conn: Connection, region: str, source: str, generation: Generation, to: Slot, live: Slot
) -> dict[str, Any]:
    """How the searches of a slot compare with the live one's, asked now or kept: what the registry has as evidence."""
    file = deployment.settings.sources[source].questions
    labelled = read_questions(file) if file is not None else None
    models = bound_models(conn)
    # With the fields of what is kept: a version of this program that keeps others asks anew.
    dumped = [one.model_dump(mode="json") for one in labelled] if labelled is not None else None
    known_by = _digest([dumped, models[to].model, models[live].model, sorted(Way.model_fields)])
    kept = conn.execute(
        "SELECT found FROM embedding_assets.comparisons "
        "WHERE generation = %s AND slot = %s AND live_slot = %s AND target_root = %s AND questions = %s",
        [generation.id, to, live, generation.target_root, known_by],
    ).fetchone()
    if kept is not None:
        found: dict[str, Any] = kept[0]
        return found
    asked = labelled if labelled is not None else made_questions(conn, source, MADE)
    evaluation = evaluate(deployment, region, source, asked, MADE)
    ways = {way.way: way for way in evaluation.ways}
    found = {
        "questions": evaluation.questions,
        "self_made": labelled is None,
        "way": ways[to].model_dump(mode="json"),
        "live": ways[live].model_dump(mode="json"),
        "overlap_at_10": ways[to].overlap_at_10,
        "usd_per_million_queries": _cost(deployment.binding(to), asked),
        "live_usd_per_million_queries": _cost(deployment.binding(live), asked),
    }
    conn.execute(
        """
        INSERT INTO embedding_assets.comparisons (generation, slot, live_slot, target_root, questions, found)
        VALUES (%s, %s, %s, %s, %s, %s)
        ON CONFLICT (generation, slot) DO UPDATE
        SET live_slot = excluded.live_slot, target_root = excluded.target_root, questions = excluded.questions,
            found = excluded.found, compared_at = now()
        """,
        [generation.id, to, live, generation.target_root, known_by, Jsonb(found)],
    )
    return found


def _cost(binding: Binding, asked: Sequence[Question]) -> float:
    """USD for a million such questions: a million times their mean number of tokens."""
    return sum(len(Tokens.of(question.query)) for question in asked) / len(asked) * binding.price_per_million_tokens


def _digest(about: Any) -> str:
    return sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
