"""What holds for every test."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Compute on one thread: networks this small only wait for a second one, above all beside other workers."""
    torch.set_num_threads(1)
