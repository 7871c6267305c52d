"""How hard a case is, before anything is spent: unknowns, equations, and what blurs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from torch import nn

from fedleak.attacks.base import attacks
from fedleak.attacks.exact.count import LayerCount, count_update
from fedleak.data.batches import images_behind, private_batch
from fedleak.defenses.base import defenses
from fedleak.defenses.secagg_view import only_sums
from fedleak.errors import ends_contained
from fedleak.experiment.check import Checked
from fedleak.modalities.base import Measure
from fedleak.modalities.find import measure
from fedleak.observation import UpdateKind
from fedleak.positions.terms import Terms
from fedleak.printable import plural
from fedleak.scenario.schema import Scenario
from fedleak.scenario.secret import is_secret
from fedleak.threat import Knowledge


@dataclass(frozen=True)
class Difficulty:
    """How hard the case is for any attack, in facts.

    Attributes
    ----------
    facts : list of (str, str)
        Name and value, in reading order.
    layers : list of LayerCount
        Equations against unknowns: layer by layer where the network is a plain chain and the update one gradient, and
        last for the whole.
    verdict : str
        One or two sentences.
    """

    facts: list[tuple[str, str]]
    layers: list[LayerCount]
    verdict: str


@ends_contained("code that the scenario names")
def difficulty(checked: Checked) -> Difficulty:
    """Say how hard it is to rebuild one client's batch, or a cohort's from its sum: unknowns, equations, and what blurs them."""
    scenario, data, model = checked.scenario, checked.data, checked.model
    clients = scenario.federation.sampled if only_sums(scenario) else 1
    shards = [data.shard(client) for client in range(clients)]
    images = sum(images_behind(scenario, len(shard)) for shard in shards)
    local = replace(Terms.of(scenario).local_training(images, clients), num_examples=images)
    measured = measure(data.input.modality)
    shape = " x ".join(map(str, data.input.shape)) + ("" if len(data.input.shape) > 1 else f" {measured.cost_label}")
    parameters = sum(p.numel() for p in model.parameters())
    unknowns = images * data.input.unknowns
    batchnorm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules())
    mode = scenario.local.mode
    defended = ", ".join(defense.name for defense in scenario.defenses)
    facts = [
        (
            f"{measured.nouns} in one update" if clients == 1 else f"{measured.nouns} in the sum of {clients} clients",
            f"{images} of {shape}",
        ),
        *([("files", data.source.train.form)] if data.source.train.form else []),
        (f"unknown {measured.cost_label}", f"{unknowns:,}"),
        ("parameters", f"{parameters:,} ({parameters / unknowns:.2f} for each of them)"),
        ("update", _update(scenario, local.steps)),
        (
            "labels (client 0, round 1)" if clients == 1 else f"labels (clients 0 to {clients - 1}, round 1)",
            _repeats(checked, clients),
        ),
        ("BatchNorm", f"yes, in {mode} mode" if batchnorm else "none"),
        ("dropout", f"yes, in {mode} mode" if dropout else "none in the model"),
        ("defenses", defended or "none"),
        ("attacker knows", f"{', '.join(sorted(scenario.threat.granted)) or 'the updates alone'} ({scenario.threat.preset})"),
        ("attacks", ", ".join(spec.result_name for spec in scenario.attacks) if scenario.server.curious else "none: not curious"),
    ]
    known = [defense.name for defense in scenario.defenses if Knowledge.DEFENSE in scenario.threat.granted]
    kind: UpdateKind = "gradient" if scenario.federation.protocol == "fedsgd" else "weights"
    for spec in scenario.attacks:
        attack = attacks.get(spec.name)(**spec.parameters)
        if said := attack.foresee(model, data.input, local, kind, known):
            facts.append((f"{spec.result_name} would run", said))
    blurs = {
        plural(local.steps, "local step"): local.steps > 1,
        "BatchNorm in train mode": batchnorm and mode == "train",
        "dropout in train mode": dropout and mode == "train",
        f"the defenses ({defended})": bool(scenario.defenses),
    }
    layers = count_update(model, data.input, local, _kept(scenario))
    return Difficulty(facts, layers, _verdict(layers, [name for name, applies in blurs.items() if applies], measured))


def _kept(scenario: Scenario) -> float:
    """Return the share of an update's entries that the defenses leave, as far as they say it."""
    built = [defenses.get(spec.name)(**spec.parameters) for spec in scenario.defenses]
    return prod(1 - defense.removed_share() for defense in built)


def _repeats(checked: Checked, clients: int) -> str:
    """Return how many labels repeat another's in the first round's batches, where these are known."""
    scenario, data = checked.scenario, checked.data
    if not is_secret(scenario.secret):
        return "each run has batches of its own: the scenario holds no secret, from which clients draw them"
    if not len(data.source.train):
        return "not known here"  # on the server of a deployment
    shards = [data.shard(client) for client in range(clients)]
    labels = [
        label
        for client, shard in enumerate(shards)
        for label in data.labels(shard[private_batch(scenario, len(shard), client, 1)]).tolist()
    ]
    repeats = len(labels) - len(set(labels))
    return f"{repeats} of {len(labels)} repeat another's" if repeats else "all different"


def _update(scenario: Scenario, steps: int) -> str:
    return (
        "the gradient of one batch"
        if scenario.federation.protocol == "fedsgd"
        else f"weights after {plural(steps, 'local step')}"
    )


def _verdict(counts: list[LayerCount], blurs: list[str], measured: Measure) -> str:
    *layers, whole = counts
    if whole.slack < 0:
        return (
            f"No attack can be exact: the update gives at most {whole.equations:,} equations for {whole.unknowns:,} unknown "
            f"{measured.cost_label}. A prior on {measured.nouns} must fill the rest."
        )
    short = [layer.layer for layer in layers if layer.slack < 0]
    if blurs:
        verdict = f"The equations would suffice, but between them and the {measured.nouns}: {', '.join(blurs)}."
    elif not layers:
        verdict = "The update holds enough equations as a whole; the network is no plain chain of layers, so more cannot be said."
    elif short:
        verdict = "The update holds enough equations as a whole: an exact reconstruction is not excluded."
    elif any(layer.slack < 0.1 * layer.unknowns for layer in layers if layer.kind != "Linear"):
        verdict = "The equations suffice on paper, with less than 10 % to spare: expect float32 rounding to decide."
    else:
        verdict = "The equations suffice: an exact reconstruction is possible."
    if short:
        verdict += (
            f" Solving layer by layer ends at {', '.join(short)}, which falls short alone; the layers must be solved together."
        )
    return verdict
