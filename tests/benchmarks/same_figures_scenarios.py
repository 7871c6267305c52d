"""The scenarios of same_figures.py, each small enough for some CPU seconds, with one way through fedleak that no other takes."""

from __future__ import annotations

from dataclasses import dataclass

SMALL = """
name = "NAME"
seed = 3
[data]
source = "samples"
image_size = 16
normalize = true
"""


def attack(name: str, **parameters: str | int | float) -> str:
    """Return the lines of one attack."""
    lines = [f"{key} = {value!r}" for key, value in parameters.items()]
    return "\n".join(["[[attacks]]", f"name = {name!r}", *lines, ""])


def defense(name: str, **parameters: str | int | float) -> str:
    """Return the lines of one defense."""
    return attack(name, **parameters).replace("[[attacks]]", "[[defenses]]")


@dataclass(frozen=True)
class Case:
    """One scenario or sweep.

    Attributes
    ----------
    name : str
        What it is called in the output.
    text : str
        Its TOML, or what is added to that of ``source``.
    source : str
        A file of the repository.
    overrides : tuple of str
        As for ``--set``; ``DATA`` stands for the folder of made-up images.
    command : str
        Of fedleak.
    defenses : bool
        Whether ``text`` replaces the defenses of a sweep; it then also keeps to one seed.
    """

    name: str
    text: str = ""
    source: str = ""
    overrides: tuple[str, ...] = ()
    command: str = "run"
    defenses: bool = False


BATCH_ONE = (
    SMALL
    + """
[model]
name = "resnet20"
[federation]
clients = 2
rounds = 1
[local]
batch_size = 2
mode = "eval"
[threat]
preset = "batchnorm-known"
"""
    + attack("auto", iterations=6, clients=1)
    + attack("mmse", iterations=6, clients=1, labels="given")
    + attack("inverting-gradients", iterations=12, restarts=2, labels="given")
    + attack("inverting-gradients", title="one-by-one", iterations=12, restarts=2, together=1, labels="given", clients=1)
    + attack("grad-inversion", iterations=6, clients=1)
    + attack("fedleak", iterations=6, clients=1)
    + attack("dlg", title="pixels", iterations=2, coordinates="pixel", restarts=1, clients=1)
    + attack("idlg", iterations=2, clients=1)
)

EXACT = (
    SMALL
    + """
[model]
name = "mlp"
hidden = [64]
[federation]
clients = 2
rounds = 2
[local]
batch_size = 4
[threat]
preset = "labels-known"
"""
    + "".join(attack(name) for name in ("analytic", "closed-form", "spear", "cocktail-party", "exact", "auto"))
    + attack("dlg-fb", iterations=4, restarts=1)
)

RULES = (
    "bias-corrected",
    "certified",
    "consistent",
    "given",
    "idlg",
    "ilrg",
    "interpolated",
    "llg",
    "llg-plus",
    "row-min",
    "row-sum",
    "zero-shot",
    "joint",
)

LABELS = (
    SMALL
    + """
[federation]
clients = 2
rounds = 1
[local]
batch_size = 6
[threat]
preset = "labels-known"
"""
    + "".join(attack("inverting-gradients", title=rule, labels=rule, iterations=1) for rule in RULES)
)

FEDAVG = (
    attack("unrolled", iterations=6, labels="given", clients=1)
    + attack("surrogate-model", iterations=6, labels="given", clients=1)
    + attack("general-dlg", iterations=6, clients=1)
    + attack("auto", iterations=4, clients=1)
    + attack("mmse", iterations=4, labels="given", clients=1)
)

DEFENSES = (
    SMALL
    + """
[federation]
clients = 3
rounds = 2
[local]
batch_size = 2
[threat]
preset = "labels-known"
defense_known = true
"""
    + attack("closed-form")
    + attack("natural", iterations=4)
    + attack("adaptive", base="natural", iterations=4)
    + attack("adaptive", title="cosine", iterations=6)
    + defense("dropout", p=0.5)
    + defense("gaussian-noise", std=0.001)
    + defense("gradient-pruning", ratio=0.5)
)

SECURE = (
    SMALL
    + """
[federation]
clients = 4
clients_per_round = 3
rounds = 3
[local]
batch_size = 5
learning_rate = 1e-5
[threat]
preset = "labels-known"
defense_known = true
"""
    + attack("adaptive", base="natural", iterations=4)
    + attack("cohort-difference", iterations=6)
    + defense("secure-aggregation")
)

TRAINING = """
name = "training"
seed = 5
[data]
source = "parquet"
partition = { name = "dirichlet", alpha = 0.5 }
normalize = true
[federation]
clients = 6
clients_per_round = 4
rounds = 3
protocol = "fedavg"
strategy = { name = "FedProx", proximal_mu = 0.1 }
[local]
batch_size = 8
steps = 2
learning_rate = 0.05
[threat]
preset = "surrogate-data"
[evaluation]
test_images = 100
""" + attack("natural", iterations=2, clients=1, rounds=0).replace("rounds = 0", "rounds = [2]")

PRIVATE = TRAINING.replace('"training"', '"private"').replace('"FedProx", proximal_mu = 0.1', '"FedAdam"') + defense(
    "dp-sgd", max_norm=1.0, noise_multiplier=1.0
)

BATCHNORM = TRAINING.replace('"training"', '"batchnorm"').replace("rounds = 3", "rounds = 2") + (
    '[model]\nname = "resnet20"\n' + attack("grad-inversion", iterations=2, clients=1)
)

SWEPT_BATCHES = "".join(
    f"""
[[defenses]]
name = {name!r}
{strength}
"""
    for name, strength in (("mixup", "strengths.alpha = [1.0]"), ("instahide", "strengths.k = [4]"), ("secagg-view", ""))
)

STRENGTHS = {
    "laplacian-noise": "scale = [7e-3]",
    "clipping": "max_norm = [0.1]",
    "deep-gradient-compression": "ratio = [0.99]",
    "random-masking": "p = [0.4]",
    "quantization": 'format = ["int8"]',
    "soteria": "pruning_rate = [0.6]",
    "grad-defense": "scale = [0.1]",
    "outpost": "noise_base = [0.8]",
    "precode": "size = [64]",
    "ats": 'policy = ["3-1-7"]',
    "oasis": 'transforms = ["flips"]',
    "client-dp": "max_norm = [1.0]\nnoise_multiplier = 1e-2",
}

SWEPT_DEFENSES = "".join(f"[[defenses]]\nname = {name!r}\nstrengths.{strength}\n" for name, strength in STRENGTHS.items())

SWEPT_NETWORKS = (
    SMALL.partition("[data]")[0].replace("seed = 3\n", "")
    + """
[scenario]
seed = 3
[scenario.data]
source = "samples"
image_size = 32
[scenario.federation]
clients = 2
rounds = 1
"""
    + attack("auto", iterations=2, clients=1).replace("[[attacks]]", "[[scenario.attacks]]")
    + attack("inverting-gradients", iterations=2, clients=1).replace("[[attacks]]", "[[scenario.attacks]]")
    + """
[[axes]]
name = "network"
variants = [
    { name = "convnet", set = ["model={name='convnet', width=8}"] },
    { name = "vit", set = ["model.name=vit"] },
    { name = "vgg", set = ["model.name=vgg11"] },
    { name = "tanh", set = ["model={name='lenet', activation='tanh'}", "local.mode=eval"] },
]
"""
)

SCENARIOS = (
    Case("quickstart", source="scenarios/quickstart.toml"),
    Case(
        "fedavg",
        FEDAVG,
        source="scenarios/fedavg.toml",
        overrides=("federation.clients=2", "data.image_size=16", "attacks.0.iterations=12", "attacks.1.iterations=12"),
    ),
    Case("batch-one", BATCH_ONE),
    Case("exact", EXACT),
    Case("labels", LABELS),
    Case("defenses", DEFENSES),
    Case("secure-aggregation", SECURE),
    Case("training", TRAINING, overrides=('data.path="DATA"',)),
    Case("private", PRIVATE, overrides=('data.path="DATA"',)),
    Case("batchnorm", BATCHNORM, overrides=('data.path="DATA"', "data.image_size=16")),
    Case(
        "sweep-batches",
        SWEPT_BATCHES,
        source="scenarios/sweeps/batches.toml",
        overrides=("attacks.0.iterations=3", "attacks.1.iterations=3"),
        command="sweep",
        defenses=True,
    ),
    Case(
        "sweep-defenses",
        SWEPT_DEFENSES,
        source="scenarios/sweeps/defenses.toml",
        overrides=("attacks.1.iterations=3", "attacks.2.iterations=3", "federation.clients=2"),
        command="sweep",
        defenses=True,
    ),
    Case("sweep-networks", SWEPT_NETWORKS, command="sweep"),
)
