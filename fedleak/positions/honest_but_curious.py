"""The honest-but-curious server: follows the protocol to the letter, keeps what it legitimately received, and attacks that."""

from __future__ import annotations

import time

from flwr.serverapp import Grid

from fedleak.observation import Observation
from fedleak.positions.base import Honest
from fedleak.positions.campaign import Campaign
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
    """

    def __init__(self, recorder: Recorder, campaign: Campaign, *, every_round: bool = True) -> None:
        self._recorder = recorder
        self._campaign = campaign
        self._every_round = every_round

    def see(self, received: Received, grid: Grid) -> None:
        """Record and attack one round; whatever goes wrong becomes a row, never an exception."""
        started = time.perf_counter()
        campaign, server_round = self._campaign, received.round
        campaign.record_failures(server_round, received.failures)
        if self._every_round or campaign.remembers or campaign.due(server_round):
            most = campaign.wanted(server_round)
            observations: list[Observation] = []
            for observation in self._recorder.record(received, grid):
                if most is None or len(observations) < most:  # the others are written, and not held
                    observations.append(observation)
            campaign.attack(server_round, observations, grid)
        self.seconds = time.perf_counter() - started

    def close(self) -> None:
        """End what runs the attacks."""
        self._campaign.close()

    def recall(self) -> None:
        """Show the attacks that remember the rounds that an earlier process saw."""
        if self._campaign.remembers:
            for observation in self._recorder.recall():
                self._campaign.remember(observation.round, [observation])
