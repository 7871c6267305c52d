"""Through secure aggregation: the unmasked sum is matched as one large batch; the masked vectors are uniform noise.

Formula: as for secagg-view, up to the rounding of the masked vectors, which is below 1e-5 of their range by default
Source: Bonawitz et al. 2017, "Practical Secure Aggregation", doi 10.1145/3133956.3133982: the sum is what the protocol gives away
"""

from __future__ import annotations

from typing import ClassVar

from fedleak.attacks.counters.base import Counter, counters


@counters.register
class SecureAggregationCounter(Counter):
    """Has nothing to undo: the observation is the sum, and says how many images are behind it."""

    name: ClassVar[str] = "secure-aggregation"
