"""Improved Deep Leakage from Gradients: reads the label from the last layer first, then matches over the image alone.

Formula: y = argmin_c sum_m dW[c, m];  x = argmin sum_l |grad_l L(f(x), y) - g_l|^2 / sum_l |g_l|^2
Source: Zhao, Mopuri, Bilen 2020, "iDLG: Improved Deep Leakage from Gradients", arXiv 2001.02610
For: one image, smooth networks
Limits: its label rule refuses batches, and is certain only for hard labels and features that sum to more than zero; otherwise
the limits are those of dlg
"""

from __future__ import annotations

from typing import ClassVar

from fedleak.attacks.base import attacks
from fedleak.attacks.dlg import DLG


@attacks.register
class IDLG(DLG):
    """Improved Deep Leakage from Gradients (arXiv 2001.02610)."""

    name: ClassVar[str] = "idlg"
    default_labels: ClassVar[str | None] = "idlg"
