"""What it costs to bring a table to another root, by a delta or by a new generation, and the choice between them.

Estimates from constants, measured by `bench/load.py`: on another machine both ways are quicker or slower together.
"""

import math
from typing import Final, Literal, NamedTuple

from embedding_assets.pgvector.options import EF_CONSTRUCTION, Hnsw
from embedding_assets.pgvector.rows.vector_types import EMPTY, VectorTypes

Way = Literal["nothing", "delta", "new generation"]

_ROW_BUILT: Final = (0.52e-3, 1.46e-6)
_ROW_MERGED: Final = (3.6e-3, 3.5e-6)
"""Seconds a row and model, and for each of the model's dimensions besides: loaded anew with all its indexes, in a
source of `_MEASURED_ROWS`, and merged into a live HNSW index, by as many processes as two cores allow either way.

`bench/load.py` found 1.1 and 5.1 ms at 50,000 × 384, 2.0 and 8.5 ms at 10,000 × 1,536 (1.3 and 6.3 at 200,000 × 384),
with random vectors, the worst case for both: a delta pays up to some 22 % of a table of 50,000. Real texts take a fifth
to two thirds of it. The server's CPU for a row merged is the same from 100,000 to 400,000: 5.5 to 6.1 ms.
"""

_MEASURED_ROWS: Final = 50_000
_GROWTH: Final = 0.2
"""A row built costs more the larger the graph, by this power of the rows: a search for its neighbours takes longer, and
less of the graph is in the processor's caches. The server's CPU for a vector of 384 dimensions was 1.0 ms in an index
of 20,000, 1.4 in 100,000, 1.6 in 200,000 and 1.7 in 400,000; this says 1.0, 1.4, 1.6 and 1.8.
"""

_GENERATION: Final = 1.0
"""Seconds that a new generation takes whatever its size: the other indexes, some 200 searches that measure recall, a
vacuum, the swap. They are .3 s of CPU (100 rows, `bench/index.py`'s way), and up to 1.2 s on a machine that is busy.
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
    """Estimate of what loading and indexing so many vectors takes, with an index of these parameters, on two cores."""
    fixed, each = _ROW_BUILT
    growth = math.pow(vectors / _MEASURED_ROWS, _GROWTH)
    return vectors * (fixed + each * dimensions) * growth * hnsw.ef_construction / EF_CONSTRUCTION


def choose(rows: int, differing: int, drifted: int, types: VectorTypes) -> Choice:
    """Choose for a table of `rows`, of which `differing` differ, and `drifted` were changed by deltas before.

    What drifted counts: replaced rows leave dead ones in the table and in the graphs of its indexes, and mending those
    costs what insertion did. So many small deltas end in a new generation, as one large change does.
    """
    # A model of one dimension can't be told from none: it is nobody's.
    bound = [each.dimensions for each in types if each != EMPTY] or [EMPTY.dimensions]
    fixed, each_dimension = _ROW_MERGED
    merged = sum(fixed + each_dimension * dimensions for dimensions in bound)
    generation_seconds = _GENERATION + sum(index_seconds(rows, dimensions, Hnsw()) for dimensions in bound)
    crossover = int(generation_seconds / merged)
    figures = rows, differing, crossover, differing * merged, generation_seconds
    if drifted + differing > crossover:
        before = f" after {drifted:,} that deltas changed before" if drifted else ""
        return Choice("new generation", f"about {differing:,} rows differ{before}, over {crossover:,}", *figures)
    return Choice("delta", f"about {differing:,} rows differ, of {crossover:,} at most", *figures)


def forced(way: Way, why: str, rows: int, types: VectorTypes) -> Choice:
    """The choice where there is none: a table that has to be loaded whole, or one that is what it should be."""
    differing = 0 if way == "nothing" else rows
    return choose(rows, differing, 0, types)._replace(way=way, why=why)
