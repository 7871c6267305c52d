"""The mean over a cohort, worked out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fedleak.wire.cohort import mean_reply
from fedleak.wire.received import Reply


def test_the_mean_is_weighted_and_counters_stay_whole(reply: Callable[..., Any]) -> None:
    replies = {
        client: Reply(
            reply(client, {}), {"w": np.full((2, 3), client + 1, np.float32), "n": np.array(7 + client)}, 2 * (client + 1)
        )
        for client in (0, 3)
    }
    mean = mean_reply(replies)
    assert (mean.examples, mean.clients, mean.message.metadata.src_node_id) == (10, (0, 3), 100)
    assert np.allclose(mean.arrays["w"], 0.2 * 1 + 0.8 * 4, atol=1e-6)
    assert mean.arrays["n"] == round(0.2 * 7 + 0.8 * 10)
    assert [mean.arrays[name].dtype for name in ("w", "n")] == [np.float32, np.int64]
    assert np.array_equal(replies[3].arrays["w"], np.full((2, 3), 4))
    assert replies[3].clients == ()
