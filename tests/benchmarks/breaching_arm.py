"""breaching 0.1.2 (PyPI, unpatched) as one side of a comparison, through its own user, server, attacker and configurations.

Ours are the images, the labels, the network and the number of iterations; all else is as breaching is configured.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import breaching
import torch
from breaching.cases.models.model_preparation import VisionContainer, construct_model
from breaching.cases.users import UserMultiStep, UserSingleStep
from torch import Tensor, nn

from fedleak.modalities.image import InputSpec
from fedleak.seeding import Seed

STRATEGIES = ("iDLG", "analytic", "yin", "wainakh-simple", "bias-corrected")
"""breaching's label strategies; "wainakh-whitebox" fails with its own labels of the wrong type, "random" guesses."""
SETUP = {"device": torch.device("cpu"), "dtype": torch.float}
FEW = 4


class Client(NamedTuple):
    """What a client has and does: images (B, C, H, W) in [0, 1], labels (B,), a network, and local steps (0 for a gradient)."""

    images: Tensor
    labels: Tensor
    model: nn.Module
    input: InputSpec
    steps: int = 0
    rate: float = 1e-3
    labels_known: bool = True


class Answer(NamedTuple):
    """Images (B, C, H, W) meant for [0, 1], or none, with the labels, and why it ended."""

    images: Tensor | None
    labels: list[int]
    stop_reason: str = ""


def quiet() -> None:
    """Silence breaching's log and the warnings that its age causes."""
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="breaching|torch|hydra")


def network(name: str, input: InputSpec, seed: int) -> nn.Module:
    """Return breaching's own network: ``lenet_zhu``, ``ConvNet``, ``ResNet20`` or ``ResNet18``, with its own initialisation.

    Its ReLUs work in place, which changes no value; here they do not, as some attacks look at what goes into them.
    """
    config = _configuration(input, 1, 0, 0.0, True, [])
    with Seed(seed).derive("breaching-network").isolated():
        container, _ = construct_model(name, config.data, pretrained=False)
    for module in container.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    inner: nn.Module = container.model
    return inner.eval()


def attack(name: str, client: Client, iterations: int, seed: int) -> Callable[[], Answer]:
    """Set all up, and return what is timed: the call of breaching's attack ``name``."""
    attacker, payloads, shared, secrets = _prepared(client, name, [f"optim.max_iterations={iterations}"])
    trials: list[Any] = []
    trial = attacker._run_trial

    def recorded(*args: Any) -> Any:
        trials.append(trial(*args))
        return trials[-1]

    attacker._run_trial = recorded  # only listens: `deepleakage` does not hand out the labels that it found

    def run() -> Answer:
        with Seed(seed).derive("breaching").isolated():
            result, _ = attacker.reconstruct(payloads, shared, secrets)
        labels = trials[0][1].argmax(-1) if isinstance(trials[0], tuple) else result["labels"]
        return Answer(client.input.denormalize(result["data"]), labels.tolist())

    return run


def iterations_in(name: str, client: Client, seconds: float) -> int:
    """Return how many iterations of attack ``name`` fill the CPU seconds, from timing a few of them."""
    attack(name, client, 1, 0)()  # what only the first call costs
    few, spent = FEW, _seconds(attack(name, client, FEW, 0))
    if spent < seconds / 20:  # too short to tell an iteration's cost from that of the call
        few = max(FEW, round(FEW * seconds / 10 / spent))
        spent = _seconds(attack(name, client, few, 0))
    return max(1, round(few * seconds / spent))


def _seconds(run: Callable[[], Answer]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def restored_labels(strategy: str, client: Client) -> list[int]:
    """Return the labels by breaching's ``strategy``."""
    unknown = client._replace(labels_known=False)
    attacker, payloads, shared, _ = _prepared(unknown, "invertinggradients", [f"label_strategy={strategy}"])
    with Seed(0).derive("breaching-labels").isolated():
        _, labels, _ = attacker.prepare_attack(payloads, shared)
    found: list[int] = labels.tolist()
    return found


def update(client: Client) -> list[Tensor]:
    """Return what breaching's user sends: the gradient, or the change of the weights over its local steps."""
    _, _, shared, _ = _prepared(client, "invertinggradients", [])
    sent: list[Tensor] = list(shared[0]["gradients"])
    return sent


def _configuration(input: InputSpec, count: int, steps: int, rate: float, known: bool, more: list[str]) -> Any:
    overrides = [
        f"data.mean={list(input.mean)}",
        f"data.std={list(input.std)}",
        f"data.shape={list(input.shape)}",
        f"data.classes={input.num_classes}",
        f"user.provide_labels={known}",
        f"user.num_data_points={count}",
    ]
    if steps:
        overrides += [
            "user=local_updates",
            f"user.num_local_updates={steps}",
            f"user.num_data_per_local_update_step={count // steps}",
            f"user.local_learning_rate={rate}",
        ]
    with contextlib.redirect_stdout(None):
        return breaching.get_case_config("1_single_image_small", overrides + more)


def _prepared(client: Client, name: str, more: list[str]) -> tuple[Any, Any, Any, Any]:
    """Let breaching's server and user talk; return the attacker, and what it is given."""
    count = len(client.images)
    case = _configuration(client.input, count, client.steps, client.rate, client.labels_known, [])
    with contextlib.redirect_stdout(None):
        config = breaching.get_attack_config(name, more)
    model = VisionContainer(client.model)
    model.name = case.model
    loss = torch.jit.script(nn.CrossEntropyLoss())
    server = breaching.cases.construct_server(model, loss, case, SETUP)
    batch = {"inputs": client.input.normalize(client.images), "labels": client.labels}
    kind = UserMultiStep if client.steps else UserSingleStep
    user = kind(server.vet_model(model), loss, [batch], SETUP, idx=0, cfg_user=case.user)
    shared, payloads, _ = server.run_protocol(user)
    attacker = breaching.attacks.prepare_attack(server.model, loss, config, SETUP)
    return attacker, payloads, shared, server.secrets
