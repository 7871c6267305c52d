"""The angle between a candidate's own gradient and the update: who took part points along it more than others do.

Formula: cos(g_i, u), with g_i = grad L(f(x_i), y_i) at the weights sent and u the mean gradient that the update tells
Source: the cosine attack of Li, Li and Ribeiro, ICLR 2023, on one update
For: anybody who holds candidates: it needs no public data
Limits: gradients of one class point the same way, so that in a batch of 32 a member is hardly above another image of its class
at initialisation (AUC 0.55 to 0.67; 0.79 after training); the test 'likelihood-ratio' takes that away. Over several local steps u
is their mean. It names members only where public examples are granted, whose 99th percentile is its threshold
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedleak.attacks.membership.base import Evidence, MembershipCase, MembershipTest, membership_tests, ranked

FALSE_POSITIVES = 0.01


@membership_tests.register
class GradientAlignment(MembershipTest):
    """Cosine of gradient and update."""

    name = "gradient-alignment"

    def judge(self, case: MembershipCase) -> Evidence:
        """Return the cosines, and who is above all but 1 % of the public examples."""
        threshold = None
        if case.reference is not None:
            threshold = float(cosines(case.public, case.update).quantile(1 - FALSE_POSITIVES))
        return ranked(case, cosines(case.gradients, case.update), threshold)


def cosines(gradients: Tensor, update: Tensor) -> Tensor:
    """Return the cosines (N,) of gradients (N, D) with an update (D,), in float64; 0 for a gradient of zero."""
    products = (gradients @ update).double()
    lengths = torch.linalg.vector_norm(gradients, dim=1) * torch.linalg.vector_norm(update)
    found: Tensor = products / lengths.double().clamp(min=1e-30)
    return found
