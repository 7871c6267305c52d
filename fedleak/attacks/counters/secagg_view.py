"""Through the sum alone: the cohort's mean is matched as the update of one large batch, which is all that there is to know.

Formula: sum_k n_k u_k / sum_k n_k = the mean gradient over all images of the cohort, for one local step
Source: fedleak's own; sums over changing cohorts tell more, see the attack 'cohort-difference'
"""

from __future__ import annotations

from typing import ClassVar

from fedleak.attacks.counters.base import Counter, counters


@counters.register
class SecAggViewCounter(Counter):
    """Has nothing to undo: the observation is the sum, and says how many images are behind it."""

    name: ClassVar[str] = "secagg-view"
