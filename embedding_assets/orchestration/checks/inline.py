"""The asset checks: what each promises, and its verdict on what a run has just committed.

They are declared on the asset and returned with its materialization, so that each names its partition and reads only
what the run made: parts are immutable and verified by hash, what was checked once stays true. Where they read parts
they do so before the snapshot is committed: what a log names has passed its checks, whatever crashed or was retried.
`embedding-assets verify` reads everything again.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import dagster as dg
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.indexes.index import IndexReport
from embedding_assets.pgvector.publishing.publish import Difference
from embedding_assets.snapshots.derivation import sources_of
from embedding_assets.snapshots.draft import Draft
from embedding_assets.snapshots.layers import read_layer
from embedding_assets.snapshots.parts import read_layers
from embedding_assets.snapshots.rejections import Rejection
from embedding_assets.snapshots.slots import SLOTS, Slot, asset_of
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store

# float32 unit vectors are within 1e-6 of length 1; a thousand times that is somebody's bug, not rounding.
NORM_TOLERANCE: Final = 1e-3

_NAMED: Final = 5


def spec(
    asset: str, name: str, description: str, partitions: dg.PartitionsDefinition[str], *, blocking: bool = True
) -> dg.AssetCheckSpec:
    """The declaration of a check that the asset's own run answers, for the partition that it materializes.

    Without partitions of its own a check has one verdict, the last: a source that passes would hide one that fails.
    """
    with warnings.catch_warnings():
        # The only use of what Dagster calls a preview: nothing but the display of verdicts rests on it.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, description=description, blocking=blocking, partitions_def=partitions
        )


class CheckFailed(PermanentError):
    """A blocking check refused what was about to be committed."""


def judged(draft: Draft, checks: Sequence[dg.AssetCheckResult]) -> Iterator[dg.AssetCheckResult]:
    """Let a draft pass that no check refuses; else tell the verdicts, and raise.

    Raises:
        CheckFailed: a check failed that is no mere warning. The draft must not be committed.
    """
    failed = [r for r in checks if not r.passed and r.severity is dg.AssetCheckSeverity.ERROR]
    if failed:
        yield from checks
        made = draft.made
        names = ", ".join(f"{result.check_name} ({_figures(result)})" for result in failed)
        paths = ", ".join([layer.path(draft.source) for layer in made[:_NAMED]] + ["…"] * (len(made) > _NAMED))
        raise CheckFailed(
            f"{draft.asset} of source {draft.source} was not committed, the snapshot before stays. "
            f"Failed: {names}. Cure: mend what went wrong, delete what it made ({paths} in the primary's store, and "
            "the source's files in the home's `journals`), and run again."
        )


def _figures(result: dg.AssetCheckResult) -> str:
    return ", ".join(f"{name} {figure.value}" for name, figure in (result.metadata or {}).items())


def nothing_rejected(unaccepted: Sequence[Rejection], snapshot: Snapshot, max_share: float) -> dg.AssetCheckResult:
    """Warns while there are rejections that nobody has accepted, and fails above a share of the documents or chunks.

    It never blocks: the rest is served meanwhile.
    """
    rows = sum(part.rows for part in snapshot.parts)
    # A chunk whose text is rejected is a row without a vector; a rejected document is no row.
    everything = rows + sum(rejection.kind == "document" for rejection in unaccepted)
    share = len(unaccepted) / max(everything, 1)
    return dg.AssetCheckResult(
        check_name="nothing_rejected",
        passed=not unaccepted,
        severity=dg.AssetCheckSeverity.ERROR if share > max_share else dg.AssetCheckSeverity.WARN,
        metadata={"rejected": len(unaccepted), "share": round(share, 4), "fails_above": max_share},
        description=None if not unaccepted else f"{len(unaccepted)} dead letters: embedding-assets dead-letters list",
    )


def documents_complete(snapshot: Draft) -> dg.AssetCheckResult:
    """The parts hold as many documents as the source listed."""
    rows = sum(part.rows for part in snapshot.parts)
    return dg.AssetCheckResult(
        check_name="completeness",
        passed=rows == snapshot.counts["documents"],
        metadata={"documents_listed": snapshot.counts["documents"], "rows": rows, "rejected": len(snapshot.rejected)},
    )


def offsets_reproduce_text(store: Store, raw_docs: Snapshot, chunks: Draft) -> dg.AssetCheckResult:
    """Every chunk made is the span of its document's text that its offsets name."""
    documents = {part.shard: part for part in raw_docs.parts}
    wrong: list[str] = []
    rows = 0
    for layer in chunks.made:
        made_of = sources_of(layer, documents[layer.shard])
        texts_of = read_layers(store, chunks.source, made_of, ["document_id", "text"]).table.to_pydict()
        texts = dict(zip(texts_of["document_id"], texts_of["text"], strict=True))
        columns = read_layer(store, chunks.source, layer, ["document_id", "ordinal", "start", "end", "text"]).table
        for document_id, ordinal, start, end, text in zip(*columns.to_pydict().values(), strict=True):
            rows += 1
            if texts[document_id][start:end] != text:
                wrong.append(f"{document_id}#{ordinal}")
    return dg.AssetCheckResult(
        check_name="offsets_reproduce_text",
        passed=not wrong,
        metadata={"chunks_checked": rows, "wrong": len(wrong), "first_wrong": ", ".join(wrong[:5]) or "none"},
    )


def norms_of(embedding: pa.ChunkedArray, dimensions: int) -> NDArray[np.float64]:
    """The lengths of a column's vectors that are not null, (n,); NaN where a number is not finite."""
    present = embedding.drop_null().combine_chunks()
    matrix = np.frombuffer(b"".join(present.to_pylist()), "<f4").reshape(-1, dimensions)
    lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    return np.where(np.isfinite(lengths), lengths, np.nan)


def lengths_of(store: Store, embeddings: Draft, dimensions: int) -> NDArray[np.float64]:
    """The lengths of the vectors made, as `norms_of`, read back from the store."""
    return np.concatenate(
        [
            np.zeros(0),
            *(
                norms_of(
                    read_layer(store, embeddings.source, layer, ["embedding"]).table.column("embedding"), dimensions
                )
                for layer in embeddings.made
            ),
        ]
    )


def normalization(norms: NDArray[np.float64]) -> dg.AssetCheckResult:
    """Every vector made has unit length, and only finite numbers. `norms`: (n,)."""
    wrong = int(np.count_nonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE)))
    return dg.AssetCheckResult(
        check_name="normalization",
        passed=wrong == 0,
        metadata={
            "vectors_checked": len(norms),
            "wrong": wrong,
            "largest_deviation": float(np.nanmax(np.abs(norms - 1))) if len(norms) else 0.0,
            "tolerance": NORM_TOLERANCE,
        },
    )


def vectors_complete(store: Store, chunks: Snapshot, embeddings: Draft) -> dg.AssetCheckResult:
    """Every chunk has a row of its own in the same place, with a vector or a dead letter."""
    of_shard = {part.shard: part for part in chunks.parts}
    misplaced = without_reason = 0
    for layer in embeddings.made:
        vectors = read_layer(store, chunks.source, layer).table
        made_of = sources_of(layer, of_shard[layer.shard])
        expected = read_layers(store, chunks.source, made_of, ["chunk_id", "text_hash"]).table
        same = vectors.select(["chunk_id", "text_hash"]).equals(expected)
        misplaced += 0 if same else layer.rows
        nulls = vectors.filter(pa.compute.is_null(vectors.column("embedding"))).column("text_hash").to_pylist()
        without_reason += sum(1 for text_hash in nulls if text_hash.hex() not in layer.dead)
    rows = sum(part.rows for part in embeddings.parts)
    explained = {rejection.identity for rejection in embeddings.rejected}
    unexplained = {text_hash for part in embeddings.parts for text_hash in part.dead} - explained
    return dg.AssetCheckResult(
        check_name="completeness",
        passed=rows == chunks.counts["chunks"] and not (misplaced or without_reason or unexplained),
        metadata={
            "chunks": chunks.counts["chunks"],
            "rows": rows,
            "dead": len(explained),
            "misplaced": misplaced,
            "missing_without_dead_letter": without_reason + len(unexplained),
        },
    )


def empty(name: str, slot: Slot) -> dg.AssetCheckResult:
    """What a check of vectors says of a slot that is bound to no model."""
    return dg.AssetCheckResult(check_name=name, passed=True, description=f"slot {slot} is empty")


def replica_parity(replica: Draft, upstream: Sequence[Snapshot]) -> dg.AssetCheckResult:
    """The region's replica names exactly the parts, and the very bytes, of the primary's snapshots."""
    expected = {part for snapshot in upstream for part in snapshot.parts}
    actual = set(replica.parts)
    return dg.AssetCheckResult(
        check_name="parity",
        passed=expected == actual,
        metadata={"parts": len(actual), "lacking": len(expected - actual), "beyond": len(actual - expected)},
    )


def models_cover_same_chunks(replica: Draft, bound: Collection[Slot]) -> dg.AssetCheckResult:
    """Each model version has a part, of as many rows, for each chunks part: readers can be switched at any time. An
    empty slot has none."""
    chunks = {part.key: part.rows for part in replica.parts_of("chunks")}
    covered = {slot: {part.inputs[0]: part.rows for part in replica.parts_of(asset_of(slot))} for slot in SLOTS}
    return dg.AssetCheckResult(
        check_name="models_cover_same_chunks",
        passed=all(parts == (chunks if slot in bound else {}) for slot, parts in covered.items()),
        metadata={
            "chunks": sum(chunks.values()),
            **{slot: sum(parts.values()) if slot in bound else "empty" for slot, parts in covered.items()},
        },
    )


def table_parity(rows: int, rows_proved: int, differences: Sequence[Difference]) -> dg.AssetCheckResult:
    """Each shard of the table has the rows and the fingerprint of what its parts hold, and vectors of unit length.

    `rows_proved` were hashed from their content in SQL: of a new generation all, of a delta those that it wrote; it
    takes the others by the digests stored with them. A delta that finds a difference commits nothing, and fails.
    """
    return dg.AssetCheckResult(
        check_name="parity",
        passed=not differences,
        metadata={
            "rows": rows,
            "rows_proved": rows_proved,
            "differences": "; ".join(map(str, differences[:5])) or "none",
        },
    )


def index_valid(invalid: Sequence[str]) -> dg.AssetCheckResult:
    """Every index of the generation that readers see is there and valid."""
    return dg.AssetCheckResult(
        check_name="index_valid", passed=not invalid, metadata={"missing_or_invalid": ", ".join(invalid) or "none"}
    )


def recall_at_10(reports: Mapping[Slot, IndexReport], live: Slot, target: float) -> dg.AssetCheckResult:
    """Each model's index reaches the target against exact search; an index of fewer than two vectors has none.

    It warns, and keeps nothing from readers: rows that are right, found less well, serve better than none.
    """
    measured = {slot: report.recall for slot, report in reports.items() if report.recall is not None}
    below = {slot: problem for slot, report in reports.items() if (problem := report.degraded(target))}
    said = [("degraded: " if slot == live else "not live: ") + problem for slot, problem in below.items()]
    return dg.AssetCheckResult(
        check_name="recall_at_10",
        passed=not below,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(said) or None,
        metadata={"target": target}
        | {f"{slot}_recall": recall for slot, recall in measured.items()}
        | {f"{slot}_ef_search": report.ef_search for slot, report in reports.items()},
    )
