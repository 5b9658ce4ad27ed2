"""When enough questions were asked: a test that may be looked at after each answer.

It bets. Whoever holds that the mean is at least the target must think each bet fair or worse, so that the capital grows
twentyfold with a probability of 1/20 at most, however long it goes on (Ville's inequality). With betting on means of
bounded values: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", Journal of the
Royal Statistical Society B 86 (2024), section 4.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

_CAPITAL: Final = 20
"""Reached by chance once in twenty times at most; an index is then searched with the next larger ef_search."""

_STAKES: Final = np.array([0.2, 0.5])
"""Of the largest bet that can't lose everything: the small one finds a mean just below the target, the large one a mean
far below it sooner. At a target of .98 a recall of .6 is left after 2 questions, .9 after some 7, .95 after some 24.
"""


def shows_less_than(target: float, shares: Sequence[float]) -> bool:
    """Whether independent shares (each 0 to 1) show that their mean is below the target.

    Wrongly so with a probability of .05 at most, if it is asked after each share and heeded at the first yes.
    """
    if target >= 1:
        return min(shares) < target
    bets = _STAKES[:, None] / (1 - target)
    grown = np.prod(1 + bets * (target - np.asarray(shares)), axis=1)
    return bool(grown.mean() >= _CAPITAL)
