"""The one search loop: a supernet trained with its bit logits.

Each step minimises R = R_E + ζ·R_C + η·R_G (eq. 6) in weights and logits at once, with one optimiser for each. A method
is what it adds as R_G.

DEVIATION: the paper's ζ only presses on the cost. Here bits are chosen within a budget once the search has ended. A
barrier, an idea of BP-NAS (Yu et al. 2020), keeps the expected cost within the budget already during the search, so
that the probabilities gather where the budget will cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.allocate import allocate, ceilings
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.data.splits import Batch
from trainables.method_config import SupernetConfig
from trainables.optimizers import fused_sgd
from trainables.quantizers.layers import calibrate, quantizer_parameters
from trainables.reference import Bench, fresh_network
from trainables.report import EpochReport, Report
from trainables.risks import budget_barrier, complexity_risk
from trainables.stepping import Batches, StepTerms, TrainingPlan, check_precision, memory_layout
from trainables.supernet import Supernet, build_supernet
from trainables.training import every, train

DAQ_LR = 1e-4
"""Of DAQ's intervals and gains: Adam's, without decay (Kim, Lee and Ham 2021)."""
GeneralisationTerms = Callable[[Batch, Tensor], dict[str, Tensor]]
"""(batch, logits of the supernet for it) -> terms to record; `generalisation_risk` is weighed by eta."""


@dataclass(frozen=True, slots=True)
class Generalisation:
    """R_G of a method with its weight η."""

    eta: float
    terms: GeneralisationTerms


def new_supernet(bench: Bench, config: SupernetConfig) -> Supernet:
    """A trainable supernet with the reference's weights, or with fresh ones.

    DEVIATION: clips start at 6 (PACT) where a layer reads no negative values. Else they are calibrated on a few images:
    what a transformer's projections read is so small that with a range of ±6 it is rounded to zero, and stays there.
    Steps, intervals and gains have no such start: a first training batch sets those of all layers.

    Raises ConfigError for a precision that the device does not have.
    """
    check_precision("method.amp", config.amp, bench.workers.device)
    net = bench.reference
    if config.start == "scratch":
        net = fresh_network(bench.config, bench.data).to(bench.workers.device)
    supernet = build_supernet(net, bench.costs, bench.roles, config)
    if config.quantizer in ("pact", "hwgq"):
        signed = [name for name in supernet.searched if bench.costs.work[name].reads_negative]
        calibrate(supernet.net, bench.probe, layers=signed)
    else:
        calibrate(supernet.net, bench.calibration_images(config.batch_size))
    supernet.net.requires_grad_(True).to(memory_format=memory_layout(channels_last=config.channels_last))
    return supernet


def run(
    bench: Bench,
    supernet: Supernet,
    config: SupernetConfig,
    report: Report,
    *,
    budget: BudgetConfig,
    generalisation: Generalisation | None,
) -> Choices:
    """Trains `supernet` and returns what its logits say. Reports each epoch's risks, and the BOPs of the policy that
    would be chosen now. Raises InfeasibleBudgetError before the first step where no policy keeps the budget."""
    workers, costs = bench.workers, bench.costs
    model = workers.wrap(supernet.net)
    name = bench.config.network.name
    limits = ceilings(supernet.choices(name), costs, budget)

    def on_epoch(epoch: int, means: dict[str, float]) -> None:
        policy_bops = costs.bops_g(allocate(supernet.choices(name), costs, budget))
        metrics = {**means, "policy_bops_g": policy_bops, "certainty": supernet.certainty()}
        report(EpochReport(stage="search", epoch=epoch, epochs=config.epochs, metrics=metrics))

    plan = training_plan(supernet, config, lambda epoch: bench.training_batches(epoch, config.batch_size))
    objective = make_objective(model, supernet, config, generalisation, limits=limits)
    kept = bench.checkpoint.begin("search", supernet.net)
    train(model, plan, objective, workers=workers, on_epoch=on_epoch, checkpoint=kept)
    return supernet.choices(name)


def training_plan(
    supernet: Supernet, config: SupernetConfig, batches: Callable[[int], Batches[Batch]]
) -> TrainingPlan[Batch]:
    """How a supernet is trained, on this worker's shares of an epoch's batches (from 0)."""
    return TrainingPlan(
        epochs=config.epochs,
        batch_size=config.batch_size,
        batches=batches,
        optimizers=make_optimizers(supernet, config),
        lr_factor=every(config.lr_decay_every),
        precision=config.amp,
    )


def make_objective(
    model: nn.Module,
    supernet: Supernet,
    config: SupernetConfig,
    generalisation: Generalisation | None,
    *,
    limits: Mapping[str, int] | None = None,
) -> StepTerms[Batch]:
    """The terms of eq. 6 for a batch, and the barrier. `model` is the supernet's network as the workers wrap it.

    `limits` are what the barrier stands at (`allocate.ceilings`).
    """

    layout = memory_layout(channels_last=config.channels_last)

    def step_terms(batch: Batch) -> dict[str, Tensor]:
        with supernet.probabilities_at_once():
            return terms_of(batch, model(batch.images.contiguous(memory_format=layout)))

    def terms_of(batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        terms = {"task_risk": nn.functional.cross_entropy(logits, batch.labels)}
        weight_bits, act_bits = supernet.expected_bits()
        terms["complexity_risk"] = complexity_risk(weight_bits, act_bits, macs=supernet.macs, start=supernet.start)
        loss = terms["task_risk"] + config.zeta * terms["complexity_risk"]
        if generalisation is not None:
            terms |= generalisation.terms(batch, logits)
            loss = loss + generalisation.eta * terms["generalisation_risk"]
        if config.barrier and limits:
            terms["barrier"] = budget_barrier(supernet.usage(limits))
            loss = loss + config.barrier * terms["barrier"]
        return {"loss": loss, **terms}

    return step_terms


def make_optimizers(supernet: Supernet, config: SupernetConfig) -> list[torch.optim.Optimizer]:
    """SGD for the weights and SGD for the bit logits, each with its own rate; Adam for what DAQ's quantisers learn.

    What other quantisers learn is trained as weights are.

    Fused: an update is one pass over memory, not one for each of its parts, and a loss scaler's overflows are looked at
    on the device.
    """
    logits = supernet.bit_logits()
    learned = quantizer_parameters(supernet.net) if config.quantizer == "daq" else []
    apart = {id(p) for p in (*logits, *learned)}
    weights = [p for p in supernet.net.parameters() if id(p) not in apart]
    found: list[torch.optim.Optimizer] = [
        fused_sgd(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)
        for parameters, lr in ((weights, config.weight_lr), (logits, config.bit_lr))
        if parameters  # there are no logits where each layer is offered one width
    ]
    return [*found, torch.optim.Adam(learned, lr=DAQ_LR, fused=True)] if learned else found
