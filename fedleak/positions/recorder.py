"""From what came back to observations: what the threat model grants, and nothing more; kept as captures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation, Tensors
from fedleak.payload import Payload
from fedleak.positions.oracle import LabelOracle, together
from fedleak.positions.terms import Terms
from fedleak.runs.folder import Arrays, RunFolder
from fedleak.threat import Knowledge
from fedleak.wire.cohort import mean_reply
from fedleak.wire.received import Received, Reply


class Recorder:
    """Makes an observation of each reply, and saves it.

    Parameters
    ----------
    terms : Terms
        What the attacker is granted, and how clients train.
    folder : RunFolder
        Takes the captures.
    oracle : LabelOracle
        Asks for labels.
    input : InputSpec
        What the model takes.
    payload : Payload
        What of the model travels.
    surrogate : Tensor, optional
        Public images (N, C, H, W) in [0, 1].
    names : mapping, optional
        What the arrays that travel are called in the model, where that is something else; what it lacks is none of the model's.
    """

    def __init__(
        self,
        terms: Terms,
        folder: RunFolder,
        oracle: LabelOracle,
        *,
        input: InputSpec,
        payload: Payload,
        surrogate: Tensor | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._terms = terms
        self._folder = folder
        self._oracle = oracle
        self._input = input
        self._payload = payload
        self._surrogate = surrogate
        self._names = names

    def record(self, received: Received, grid: Grid) -> Iterator[Observation]:
        """Yield the observations of a round by client, each saved before; where only sums are shown, the one of all clients."""
        good = self._shown(received)
        labels = self._labels(received.round, good, grid)
        # The observations of a round share the model that was sent.
        sent = {id(model): self._tensors(model.values) for model in received.sent.values()}
        for client, reply in good.items():
            observation = self.keep(received.round, client, reply, sent[id(received.sent[client])], labels)
            if observation is not None:
                yield observation

    def _labels(self, server_round: int, good: Mapping[int, Reply], grid: Grid) -> dict[int, tuple[int, ...]]:
        asked = [one for client, reply in good.items() for one in reply.clients or (client,)]
        return self._oracle.ask(server_round, asked, grid)

    def keep(
        self, server_round: int, client: int, reply: Reply, sent: Tensors, labels: Mapping[int, tuple[int, ...]]
    ) -> Observation | None:
        """Return the observation of one reply, saved; ``None`` to leave it out."""
        told = together([labels.get(one) for one in reply.clients or (client,)])
        observation = self._observation(server_round, client, reply, sent, told)
        self._folder.save_capture(observation)
        return observation

    def recall(self) -> Iterator[Observation]:
        """Yield what is saved, by round and client, with the public images that are granted, which are not saved."""
        for path in self._folder.captures():
            yield replace(Observation.load(path), surrogate=self._surrogate)

    def _shown(self, received: Received) -> Mapping[int, Reply]:
        good = received.good
        if not self._terms.sums or any(reply.clients for reply in good.values()):
            return good
        # With fewer than a majority, SecAgg+ by its default threshold would have no sum to show either.
        return {min(good): mean_reply(good)} if len(good) > len(received.sent) // 2 else {}

    def _observation(
        self, server_round: int, client: int, reply: Reply, sent: Tensors, labels: tuple[int, ...] | None
    ) -> Observation:
        terms, granted, payload = self._terms, self._terms.granted, self._payload
        received = self._tensors(reply.arrays)
        local = terms.local_training(reply.examples, max(1, len(reply.clients)), server_round)
        return Observation(
            kind="gradient" if terms.protocol == "fedsgd" else "weights",
            parameters={name: sent[name] for name in sent if name in payload.trained},
            buffers={name: sent[name] for name in sent if name in payload.carried},
            update={name: received[name] for name in received if name in payload.trained},
            input=self._input,
            round=server_round,
            client=client,
            clients=reply.clients,
            local=local if Knowledge.LOCAL_TRAINING in granted else None,
            labels=labels if Knowledge.LABELS in granted else None,
            received_buffers={n: v for n, v in received.items() if n in payload.carried}
            if Knowledge.BATCHNORM in granted
            else None,
            surrogate=self._surrogate if Knowledge.SURROGATE in granted else None,
            defenses=terms.defenses if Knowledge.DEFENSE in granted else None,
            kept=payload.kept,
            kept_known=terms.threat.frozen_known,
        )

    def _tensors(self, arrays: Arrays) -> Tensors:
        """Return the values by the model's names, in memory of their own: those of a reply are not to be written into."""
        names = dict.fromkeys(arrays) if self._names is None else self._names
        return {names[name] or name: torch.from_numpy(values.copy()) for name, values in arrays.items() if name in names}
