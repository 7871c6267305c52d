"""Closed form: solve the layers of a feed-forward network from the last to the first, for one image or a small batch.

Formula: classifier dW = d h^T, d = p - y; then, layer by layer, activation inverses and least squares of a convolution's
forward equations K u + b = z stacked on its weight-gradient equations sum_l d_l u_patch(l)^T = dK.
Where a learned position is added to each patch, as in vision transformers: X = lstsq(dP^T, dW), ``exact/positions.py``.
Source: R-GAP (Zhu and Blaschko, "Recursive Gradient Attack on Privacy", ICLR 2021, arXiv 2010.07733), with both kinds of
equations solved together by preconditioned conjugate gradients in float64; batches are fedleak's own (``exact/batch.py``).
For: feed-forward networks of linear layers, convolutions and activations that can be inverted, or ReLU; one image, or a batch
of fewer images than classes; and one image behind patches with learned positions, whatever follows them
Limits: refuses pooling, residual connections, LayerNorm and BatchNorm in train mode by name, and batches of as many images as
classes, or whose labels do not satisfy the equations. Momentum, weight decay and rates that differ are inverted exactly; steps of
Adam and its kin are refused by name. A layer with few equations to spare can fail without a flag: look at the
loss. Of one image behind five local steps at a rate of 0.01 it has over 70 dB on tanh networks, on sigmoid ones not
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.base import Attack, Budget, Reconstruction, attacks
from fedleak.attacks.exact.batch import invert_batch
from fedleak.attacks.exact.chain import ChainSolution, ImagePrior, check_chain, walk
from fedleak.attacks.exact.count import count_layers
from fedleak.attacks.exact.drift import follow_drift, gradient_of
from fedleak.attacks.exact.missing import survivors
from fedleak.attacks.exact.passages import promised, read_passage
from fedleak.attacks.exact.patches import foreseen, read_patches
from fedleak.attacks.exact.positions import find_positions
from fedleak.attacks.labels.base import label_rules
from fedleak.attacks.victims.stepping import clipped
from fedleak.errors import AttackError
from fedleak.local.losses import Loss, loss_function
from fedleak.modalities.image import InputSpec
from fedleak.modalities.text import TokenSpec
from fedleak.models.inspect import ExecutionOrder, execution_order
from fedleak.models.trial import evaluating, tried
from fedleak.observation import LocalTraining, Observation, Tensors, UpdateKind
from fedleak.seeding import Seed

# Standard deviations over natural photographs of 32 x 32 pixels, in units of the [0, 1] range.
_SPREAD = 0.25
_DIFFERENCE = 0.08


@attacks.register
class ClosedForm(Attack):
    """Exact where the equations outnumber the unknowns in each layer; flags ``not-identifiable`` elsewhere.

    One image needs no batch size: the rank of the classifier's gradient tells whether there is one. A batch must have fewer
    images than classes; its labels are restored by the rule ``consistent`` unless another is given, and labels that do not
    satisfy the equations are a named failure. Several local steps are read of one image only. Behind patches with learned
    positions one image is exact after any number of local steps of SGD, in train mode with dropout too; ``loss`` is then what
    the equations leave over. Where it is known that the client has masked or pruned its gradient, entries at zero are no
    equations, and one image is solved for by those left. ``restarts`` and ``iterations`` do not apply. Elsewhere the loss is
    the norm of the difference between the observed gradient and that of the solution, relative to the observed one.
    """

    name = "closed-form"
    modalities = frozenset({"image", "text"})
    exact = True
    own_labels = True
    models_local_steps = True

    def foresee(
        self, model: nn.Module, input: InputSpec, local: LocalTraining, kind: UpdateKind, defenses: Sequence[str]
    ) -> str | None:
        """Return what the equations of patches and positions promise, for a network that has them."""
        if isinstance(input, TokenSpec):
            return promised(model, input, local.num_examples)
        found = find_positions(model, input) if local.num_examples == 1 else None
        return None if found is None else foreseen(model, found, input)

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Solve for the images, or raise where they cannot be told apart or the network is not a chain."""
        if (result := self._by_positions(observation, model, device)) is not None:
            return result
        order = execution_order(model, observation.input)
        mode = observation.local.mode if observation.local else "eval"
        check_chain(order, training=mode == "train")
        parameters, buffers, gradient = (
            _double(named, device) for named in (observation.parameters, observation.buffers, observation.gradient())
        )
        if not all(bool(torch.isfinite(value).all()) for value in gradient.values()):
            raise AttackError("the update is not finite")
        local = observation.local
        told = None if local is None else local.loss
        softmax, loss_of = told is None or told["name"] == "cross-entropy", loss_function(told)
        steps = local.steps if observation.kind == "weights" and local is not None else 1
        left = survivors(observation) if observation.batch_size == steps == 1 else None
        known, gradient = (None, gradient) if left is None else (_double(left.known, device), _double(left.gradient, device))
        label = self._ruled(observation, model)
        spec = observation.input
        image = _natural(spec, device)
        if observation.batch_size > 1:
            if steps > 1:
                raise AttackError(
                    f"the closed form reads several local steps of one image, but {observation.batch_size} are behind the "
                    f"{steps} steps; use 'unrolled' or 'natural'"
                )
            if told is not None:
                raise AttackError(f"the closed form separates a batch by the plain cross-entropy, not by '{told['name']}'")
            labels = label_rules.get(self.config.labels or "consistent")().restore(observation, model)
            state = parameters, buffers, gradient
            return invert_batch(observation, model, order, state, labels, image, rng, budget)
        if local is not None and steps > 1:
            return self._after_local_steps(observation, local, model, order, (parameters, buffers), label, image, budget)
        with torch.no_grad():
            solution = walk(
                order,
                parameters,
                buffers,
                gradient,
                label=label,
                image=image,
                known=known,
                softmax=softmax,
                out_of_time=lambda: budget.exhausted,
            )
        clips = local.gradient_clipping if local is not None and observation.kind == "weights" else None
        loss = _residual(model, solution, parameters, buffers, gradient, known, loss_of, clips)
        # Convolutions are counted by the outputs that were in fact known, which for ReLU the shapes do not tell.
        kept = 1.0 if known is None else sum(int(v.sum()) for v in known.values()) / sum(v.numel() for v in known.values())
        counts = {counted.layer: counted for counted in (*count_layers(order, 1, kept), *solution.counts)}
        flags = ("not-identifiable",) if any(counted.slack < 0 for counted in counts.values()) else ()
        return Reconstruction(
            images=spec.denormalize(solution.input[None]).float(),
            labels=(solution.label,),
            loss=loss,
            stop_reason="solved",
            flags=flags,
        )

    def _by_positions(self, observation: Observation, model: nn.Module, device: torch.device) -> Reconstruction | None:
        """Return the passage, or the image, that learned positions give away; ``None`` for images without them."""
        label = self._ruled(observation, model)
        if isinstance(observation.input, TokenSpec):
            return read_passage(observation, model, label, device)
        found = find_positions(model, observation.input)
        return None if found is None else read_patches(observation, model, found, label, device)

    def _ruled(self, observation: Observation, model: nn.Module) -> int | None:
        """Return the label of one image by the rule that was asked for, if one was."""
        if self.config.labels is None or observation.batch_size > 1:
            return None
        return label_rules.get(self.config.labels)().restore(observation, model)[0]

    def _after_local_steps(
        self,
        observation: Observation,
        local: LocalTraining,
        model: nn.Module,
        order: ExecutionOrder,
        state: tuple[Tensors, Tensors],
        label: int | None,
        image: ImagePrior,
        budget: Budget,
    ) -> Reconstruction:
        """Solve again and again, each time without the drift of the local steps as far as the last solution tells it."""
        (sent, buffers), received = state, _double(observation.update, image.center.device)

        told = local.loss
        softmax = told is None or told["name"] == "cross-entropy"

        def solve(parameters: Tensors, gradient: Tensors, noise: float) -> tuple[Tensor, int]:
            solution = walk(order, parameters, buffers, gradient, label=label, image=image, least_noise=noise, softmax=softmax)
            return solution.input, solution.label

        spec = observation.input
        with torch.no_grad(), evaluating(model):
            gradient, head = gradient_of(model, buffers, loss_function(told)), order.calls[-1].name
            found = follow_drift(solve, gradient, sent, received, local, spec, head, lambda: budget.exhausted, softmax=softmax)
        flags = ("not-identifiable",) if any(counted.slack < 0 for counted in count_layers(order, 1)) else ()
        images = spec.denormalize(found.input[None]).float()
        return Reconstruction(images, (found.label,), found.misfit, iterations=found.passes, stop_reason="solved", flags=flags)


def _natural(spec: InputSpec, device: torch.device) -> ImagePrior:
    """Return what is known of any photograph, in units of model inputs."""
    grey = spec.normalize(torch.full((1, *spec.shape), 0.5, dtype=torch.float64, device=device))[0]
    unit = len(spec.std) / sum(spec.std)
    return ImagePrior(grey, _SPREAD * unit, _DIFFERENCE * unit)


def _double(named: Tensors, device: torch.device) -> Tensors:
    return {
        name: value.detach().to(device, torch.float64) if value.is_floating_point() else value.detach().to(device)
        for name, value in named.items()
    }


def _residual(
    model: nn.Module,
    solution: ChainSolution,
    parameters: Tensors,
    buffers: Tensors,
    gradient: Tensors,
    known: Tensors | None = None,
    loss_of: Loss = functional.cross_entropy,
    clips: float | None = None,
) -> float:
    """Return the relative misfit of the known gradient at the solution.

    The model runs in eval mode, as no layer passed differs.
    """
    leaves: dict[str, Tensor] = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    logits = tried(model, solution.input[None], {**leaves, **buffers})
    loss = loss_of(logits, torch.tensor([solution.label], device=logits.device))
    found = clipped(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True), clips)
    pairs = [(mine if known is None else mine * known[name], gradient[name]) for name, mine in zip(leaves, found, strict=True)]
    misfit = sum(float((mine - seen).square().sum()) for mine, seen in pairs)
    return float((misfit / sum(float(seen.square().sum()) for _, seen in pairs)) ** 0.5)
