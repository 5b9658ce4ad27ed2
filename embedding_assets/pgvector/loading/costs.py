"""What it costs to bring a table to another root, by a delta or by a new generation, and the choice between them.

Estimates from constants, measured by `bench/load.py`: on another machine both ways are quicker or slower together.
"""

from typing import Final, Literal, NamedTuple

from embedding_assets.pgvector.options import EF_CONSTRUCTION, Hnsw
from embedding_assets.pgvector.rows.vector_types import VectorTypes

Way = Literal["nothing", "delta", "new generation"]

_ROW_BUILT: Final = (0.75e-3, 0.85e-6)
_ROW_MERGED: Final = (3.6e-3, 3.5e-6)
"""Seconds a row and model, and for each of the model's dimensions besides: loaded anew with all its indexes, and merged
into a live HNSW index, by as many processes as two cores allow either way.

`bench/load.py` found 1.1 and 5.1 ms at 50,000 × 384, 2.0 and 8.5 ms at 10,000 × 1,536 (1.3 and 6.3 at 200,000 × 384):
a row merged costs over four rows built, so that a delta pays up to some 22 % of a large table.
"""

_GENERATION: Final = 1.0
"""Seconds that a new generation takes whatever its size, for the most part 1,400 searches that measure recall.

What recall is compared with is one reading of the table, and small beside the rows' own seconds at any size (.04 of a
build of 5,000 × 128, .03 of 20,000). Read once a query it was .6 of a build of 1,000,000.
"""


class Choice(NamedTuple):
    """The way that a load took, and why: rows that differ (estimated, all inserted, updated and deleted ones), the most
    that a delta may change, and the seconds that each way was expected to take."""

    way: Way
    why: str
    rows: int
    rows_differing: int
    rows_at_crossover: int
    delta_seconds: float
    generation_seconds: float

    @property
    def share(self) -> float:
        """Rows that differ, of all."""
        return self.rows_differing / max(self.rows, 1)

    @property
    def crossover_share(self) -> float:
        """Above this share a new generation costs less; above 1 in small tables, for what it costs at any size."""
        return self.rows_at_crossover / max(self.rows, 1)


def index_seconds(vectors: int, dimensions: int, hnsw: Hnsw) -> float:
    """Estimate of what building an HNSW index takes, on two cores."""
    fixed, each = _ROW_BUILT
    return vectors * (fixed + each * dimensions) * hnsw.ef_construction / EF_CONSTRUCTION


def choose(rows: int, differing: int, drifted: int, types: VectorTypes) -> Choice:
    """Choose for a table of `rows`, of which `differing` differ, and `drifted` were changed by deltas before.

    What drifted counts: replaced rows leave dead ones in the table and in the graphs of its indexes, and mending those
    costs what insertion did. So many small deltas end in a new generation, as one large change does.
    """
    merged, built = (sum(fixed + each * of.dimensions for of in types) for fixed, each in (_ROW_MERGED, _ROW_BUILT))
    generation_seconds = _GENERATION + rows * built
    crossover = int(generation_seconds / merged)
    given = rows, differing, crossover, differing * merged, generation_seconds
    if drifted + differing > crossover:
        before = f" after {drifted:,} that deltas changed before" if drifted else ""
        return Choice("new generation", f"about {differing:,} rows differ{before}, over {crossover:,}", *given)
    return Choice("delta", f"about {differing:,} rows differ, of {crossover:,} at most", *given)


def forced(way: Way, why: str, rows: int, types: VectorTypes) -> Choice:
    """The choice where there is none: a table that has to be loaded whole, or one that is what it should be."""
    differing = 0 if way == "nothing" else rows
    return choose(rows, differing, 0, types)._replace(way=way, why=why)
