"""LIMPQ (Tang et al. 2022): learned steps tell how much a width costs a layer; one training learns all of them at once.

Each step of the joint training takes the gradients of several passes over the same batch, adds them up, and updates
weights and steps (the indicators) once:

    Σ_k ∇L(b_w = w_k, b_a = a_k in all layers)  +  ∇L(random widths, drawn anew for every step)

What then follows from the indicators, and why, stands in `trainables.indicators` and `trainables.exclusion`.

Uniform passes. One for each width b that is offered to weights or to activations: both have b, or the nearest to it
that they are offered, of two as near the smaller. Where both are offered the same widths, b_w = b_a = b.

Batch normalisation has a set for each uniform pass (`trainables.quantizers.switchable_norm`). In the random pass it
takes, as the authors' code does, the set of the layer before it: of the passes with the layer's weight width the one
whose activation width is nearest. What runs before all searched layers sees the same in all passes, and has one set.

DEVIATION: the authors draw one width for weights and activation of a layer. Here layers that read the same activation
share its width, so that widths of weights are drawn by layer and widths of activations by group.

DEVIATION: the authors' code clips each entry of a gradient to ±1, and steps to at most 1, which depends on the scale of
what is quantised. Neither is done here: a training that diverges ends by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainables.allocate import allocate, ceilings
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.data.splits import Batch
from trainables.errors import DivergedError
from trainables.exclusion import offered_within
from trainables.indicators import ByWidth, Indicators
from trainables.method_config import LimpqConfig
from trainables.methods.offered import offered
from trainables.optimizers import fused_sgd
from trainables.quantizers.layers import calibrating, quant_layers, quantizer_parameters
from trainables.quantizers.lsq import LsqActivations, LsqWeights
from trainables.quantizers.switchable_norm import SwitchableBatchNorm, switch_norms
from trainables.reference import Bench
from trainables.report import EpochReport, Report
from trainables.stepping import Batches, StepTerms, TrainingPlan, check_precision, memory_layout
from trainables.supernet import Roles, mixed_copy
from trainables.training import cosine, train

CHECKPOINT_EVERY = 200
"""Steps, each of several passes."""


class Widths(NamedTuple):
    """A width for each searched layer's weights and for each group's activation."""

    weights: Mapping[str, int]
    acts: Mapping[str, int]


class JointBatch(NamedTuple):
    """Images with the widths of the random pass over them."""

    images: Tensor
    labels: Tensor
    drawn: Widths

    def to(self, device: torch.device) -> JointBatch:
        """With images and labels on `device`."""
        images, labels = self.images.to(device, non_blocking=True), self.labels.to(device, non_blocking=True)
        return self._replace(images=images, labels=labels)


@dataclass(frozen=True, slots=True)
class JointBatches:
    """The first so many of an epoch's batches, each with what `draw` gives for the number of its step."""

    batches: Batches[Batch]
    count: int
    draw: Callable[[int], Widths]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[JointBatch]:
        return self._numbered(self.batches, 0)

    def after(self, steps: int) -> Iterator[JointBatch]:
        """See `Batches`."""
        return self._numbered(self.batches.after(steps), steps)

    def _numbered(self, batches: Iterable[Batch], start: int) -> Iterator[JointBatch]:
        # The range comes first: it ends before a batch is made for nothing.
        for number, batch in zip(range(start, self.count), batches, strict=False):
            yield JointBatch(batch.images, batch.labels, self.draw(number))


class JointNetwork:
    """A copy of the reference that has one of several widths in each searched layer at a time."""

    def __init__(self, bench: Bench, config: LimpqConfig) -> None:
        roles = bench.roles
        self.roles: Roles = roles
        self.config = config
        self.net = mixed_copy(bench.reference, bench.costs, roles, config, "lsq")
        self.passes = uniform_passes(config.weight_bits, config.act_bits)
        layers = quant_layers(self.net)
        self.mixtures = {name: layers[name].mixture for name in roles.searched}
        self.norms = switch_norms(self.net, bench.probe, roles.searched, count=len(self.passes))
        self._calibrate(bench.calibration_images(config.batch_size))
        self.net.requires_grad_(True).to(memory_format=memory_layout(channels_last=config.channels_last))

    @torch.no_grad()
    def _calibrate(self, images: Tensor) -> None:
        """Sets the steps of each uniform pass from what its layers read in it.

        Batch normalisation works as it does in training, by the batch's own statistics: the reference's are far from
        those of few bits, and the difference grows from layer to layer.
        """
        self.net.eval()
        for norm in self._all_norms:
            norm.train()
        for place in range(len(self.passes)):
            self.use_uniform(place)
            with calibrating(layer.mixture for layer in quant_layers(self.net).values()):
                self.net(images)

    def use_uniform(self, place: int) -> None:
        """From now on all layers have the widths of one of `passes`, and its set of batch normalisation."""
        weight_bits, act_bits = self.passes[place]
        for name, mixture in self.mixtures.items():
            mixture.choose(weight_bits, self._act_bits(name, act_bits))
        for norm in self._all_norms:
            norm.choose(place)

    @property
    def _all_norms(self) -> list[SwitchableBatchNorm]:
        return [norm for norms in self.norms.values() for norm in norms]

    def use(self, widths: Widths) -> None:
        """From now on each layer has its own widths, and what follows it their set of batch normalisation."""
        for name, mixture in self.mixtures.items():
            weight_bits, act_bits = widths.weights[name], widths.acts[self.roles.group_of[name]]
            mixture.choose(weight_bits, self._act_bits(name, act_bits))
            for norm in self.norms.get(name, ()):
                norm.choose(nearest_pass(self.passes, weight_bits, act_bits))

    def _act_bits(self, name: str, act_bits: int) -> int:
        """What a pinned layer fixes for the activation that `name` reads, or else `act_bits`."""
        return self.roles.fixed_acts.get(self.roles.group_of[name], act_bits)

    def draw(self, *seed: int) -> Widths:
        """Random widths, all equally likely: a function of the numbers in `seed` alone."""
        random = Random(" ".join(map(str, seed)))
        weights = {name: random.choice(self.config.weight_bits) for name in self.roles.searched}
        return Widths(weights, {group: random.choice(self.config.act_bits) for group in self.roles.groups})

    def indicators(self) -> Indicators:
        """The present steps. Raises DivergedError where one is no longer finite."""
        weights: dict[str, ByWidth] = {}
        acts: dict[str, ByWidth] = {}
        for name, mixture in self.mixtures.items():
            assert isinstance(mixture.weights, LsqWeights)
            assert isinstance(mixture.activations, LsqActivations)
            weights[name], acts[name] = mixture.weights.steps(), mixture.activations.steps()
        if not all(math.isfinite(step) for found in (*weights.values(), *acts.values()) for step in found.values()):
            raise DivergedError("indicators are no longer finite; try a smaller method.lr.")
        return Indicators(weights, acts)


def uniform_passes(weight_bits: tuple[int, ...], act_bits: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Widths of weights and activations of each uniform pass: every offered width is in one of them at least."""

    def nearest(widths: tuple[int, ...], wanted: int) -> int:
        return min(widths, key=lambda width: (abs(width - wanted), width))

    pairs = [(nearest(weight_bits, b), nearest(act_bits, b)) for b in sorted({*weight_bits, *act_bits})]
    return tuple(dict.fromkeys(pairs))


def nearest_pass(passes: tuple[tuple[int, int], ...], weight_bits: int, act_bits: int) -> int:
    """Place of the pass that is most like a layer with these widths, its weights first."""
    distances = [(abs(weight_bits - w), abs(act_bits - a)) for w, a in passes]
    return distances.index(min(distances))


def search(bench: Bench, config: LimpqConfig, budget: BudgetConfig, report: Report) -> Choices:
    """What the indicators are worth. Reports each epoch's losses, and the BOPs of the policy that would be chosen now.

    Raises InfeasibleBudgetError before the first step where no policy keeps the budget, and ConfigError for a precision
    that the device does not have.
    """
    check_precision("method.amp", config.amp, bench.workers.device)
    template = offered(bench, config)
    ceilings(template, bench.costs, budget)
    joint = JointNetwork(bench, config)
    model = bench.workers.wrap(joint.net)

    def choices_of(indicators: Indicators) -> Choices:
        return offered_within(indicators, template, bench.costs, alpha=config.alpha, budget=budget).choices

    def on_epoch(epoch: int, means: dict[str, float]) -> None:
        indicators = joint.indicators()
        choices = choices_of(indicators)
        metrics = {
            **means,
            "policy_bops_g": bench.costs.bops_g(allocate(choices, bench.costs, budget)),
            "excluded_widths": float(len(indicators.excluded(template))),
        }
        report(EpochReport(stage="search", epoch=epoch, epochs=config.epochs, metrics=metrics))

    kept = bench.checkpoint.begin("search", joint.net)
    plan, passes = joint_plan(bench, joint, config), pass_terms(model, joint, config)
    train(model, plan, passes, workers=bench.workers, on_epoch=on_epoch, checkpoint=kept)
    indicators = joint.indicators()
    return replace(choices_of(indicators), indicators=indicators.to_content())


def joint_plan(bench: Bench, joint: JointNetwork, config: LimpqConfig) -> TrainingPlan[JointBatch]:
    """SGD with Nesterov's momentum, half a cosine to zero, over a share of each epoch's batches."""

    def batches(epoch: int) -> JointBatches:
        whole = bench.training_batches(epoch, config.batch_size)
        return JointBatches(whole, config.steps(len(whole)), lambda step: joint.draw(bench.config.seed, epoch, step))

    return TrainingPlan(
        epochs=config.epochs,
        batch_size=config.batch_size,
        batches=batches,
        optimizers=[make_optimizer(joint, config)],
        lr_factor=cosine(config.epochs),
        precision=config.amp,
        checkpoint_every=CHECKPOINT_EVERY,
    )


def make_optimizer(joint: JointNetwork, config: LimpqConfig) -> torch.optim.Optimizer:
    """Decay for the weights of layers alone: none for indicators, batch normalisation and biases, as the authors do."""
    rows = [p for norms in joint.norms.values() for norm in norms for p in norm.parameters()]
    free = {id(p) for p in (*rows, *quantizer_parameters(joint.net))}
    free |= {id(p) for p in joint.net.parameters() if p.dim() <= 1}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in joint.net.parameters() if (id(p) in free) is without], "weight_decay": decay}
        for without, decay in ((False, config.weight_decay), (True, 0.0))
    ]
    return fused_sgd(groups, lr=config.lr, momentum=config.momentum, nesterov=True)


def pass_terms(model: nn.Module, joint: JointNetwork, config: LimpqConfig) -> list[StepTerms[JointBatch]]:
    """The terms of the uniform passes and of the random one. `model` is the joint network as the workers wrap it.

    The random pass has the cross-entropy without label smoothing as well: `task_risk`, the name by which early stopping
    knows what foretells top-1. Like a policy it has other widths in every layer, and it is the same for all smoothings.
    """

    layout = memory_layout(channels_last=config.channels_last)

    def terms(logits: Tensor, batch: JointBatch, name: str) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
        return {"loss": loss, f"loss_{name}": loss}

    def uniform(place: int) -> StepTerms[JointBatch]:
        def step_terms(batch: JointBatch) -> dict[str, Tensor]:
            joint.use_uniform(place)
            return terms(
                model(batch.images.contiguous(memory_format=layout)), batch, "w{}a{}".format(*joint.passes[place])
            )

        return step_terms

    def drawn(batch: JointBatch) -> dict[str, Tensor]:
        joint.use(batch.drawn)
        logits = model(batch.images.contiguous(memory_format=layout))
        risk = nn.functional.cross_entropy(logits.detach(), batch.labels)
        return {**terms(logits, batch, "random"), "task_risk": risk}

    return [*(uniform(place) for place in range(len(joint.passes))), drawn]
