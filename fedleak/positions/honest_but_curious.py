"""The honest-but-curious server: follows the protocol to the letter, keeps what it legitimately received, and attacks that."""

from __future__ import annotations

import time

from flwr.serverapp import Grid

from fedleak.observation import Observation
from fedleak.positions.base import Honest
from fedleak.positions.campaign import Campaign
from fedleak.positions.inference import Inference
from fedleak.positions.recorder import Recorder
from fedleak.wire.received import Received


class HonestButCurious(Honest):
    """Send what the strategy says; record what comes back, and run the attacks on it.

    The model trained with it is bit-identical to the one trained without it.

    Parameters
    ----------
    recorder : Recorder
        Makes observations of what came back.
    campaign : Campaign
        The attacks.
    every_round : bool
        Whether rounds in which no attack strikes are recorded too.
    inference : Inference, optional
        Reads off the same observations what they tell without an image.
    """

    def __init__(
        self, recorder: Recorder, campaign: Campaign, *, every_round: bool = True, inference: Inference | None = None
    ) -> None:
        self._recorder = recorder
        self._campaign = campaign
        self._every_round = every_round
        self._inference = inference

    def see(self, received: Received, grid: Grid) -> None:
        """Record and attack one round; whatever goes wrong becomes a row, never an exception."""
        started = time.perf_counter()
        campaign, inference, server_round = self._campaign, self._inference, received.round
        campaign.record_failures(server_round, received.failures)
        campaign.note_undefended(server_round, received.undefended)
        reads = inference is not None and inference.due(server_round)
        if self._every_round or campaign.remembers or campaign.due(server_round) or reads:
            most = self._most(server_round)
            observations: list[Observation] = []
            for observation in self._recorder.record(received, grid):
                if most is None or len(observations) < most:  # the others are written, and not held
                    observations.append(observation)
            campaign.attack(server_round, observations, grid)
            if inference is not None and reads:
                inference.look(server_round, observations, grid)
        self.seconds = time.perf_counter() - started

    def _most(self, server_round: int) -> int | None:
        """Return how many of a round's observations anybody looks at, always the first; ``None`` for all."""
        wanted = [self._campaign.wanted(server_round), self._inference.wanted(server_round) if self._inference else 0]
        return None if None in wanted else max(one or 0 for one in wanted)

    def close(self) -> None:
        """End what runs the attacks."""
        self._campaign.close()

    def recall(self) -> None:
        """Show the attacks that remember the rounds that an earlier process saw."""
        if self._campaign.remembers:
            for observation in self._recorder.recall():
                self._campaign.remember(observation.round, [observation])
