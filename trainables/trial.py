"""A trial from end to end: supernet search, choice of bits within the budget, short finetune, and what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from trainables import methods
from trainables.allocate import allocate
from trainables.choices import Choices
from trainables.config import BenchConfig, BudgetConfig, TrialConfig
from trainables.distributed import make_repeatable
from trainables.finetune.classify import finetune
from trainables.greedy import allocate_greedily
from trainables.method_config import SensitivityConfig, method_name
from trainables.model_files import ModelCard
from trainables.model_folder import save_model
from trainables.policy import BitPolicy
from trainables.policy_file import PolicyRecord, all_costs
from trainables.recount import recount
from trainables.reference import Bench, load_bench
from trainables.report import FinetuneResult, Report, TrialResult
from trainables.supernet import deploy


def run_trial(config: TrialConfig, report: Report, *, store: Path, checkpoint: Path | None = None) -> TrialResult:
    """See `trainables.api.run_trial`."""
    bench = load_bench(config, store=store, checkpoint=checkpoint)
    clock = bench.checkpoint
    make_repeatable(config.seed)
    clock.watch("search")
    # Both are kept once the finetune has begun: another version of the solver may choose otherwise among equals.
    choices, policy = clock.choices, clock.policy
    if choices is None or policy is None:
        choices = clock.choices = methods.search(bench, config, report)
        policy = _allocated(bench, choices, config)
        _check_recount(bench, policy, config.budget)
    found, _ = _finetuned(bench, policy, report)
    search_hours = clock.hours("search") + clock.hours("maps")
    metrics = {
        **found.metrics,
        "search_device_hours": search_hours,
        "search_cost_hours": clock.hours("search") + clock.hours("shared maps"),
        "device_hours": search_hours + found.metrics["device_hours"],
    }
    return TrialResult(record=_record(bench, policy, config), choices=choices, metrics=metrics, samples=found.samples)


def _allocated(bench: Bench, choices: Choices, config: TrialConfig) -> BitPolicy:
    match config.method:
        case SensitivityConfig(solver="greedy"):
            return allocate_greedily(choices, bench.costs, config.budget)
        case _:
            return allocate(choices, bench.costs, config.budget)


def finetune_policy(
    config: BenchConfig,
    record: PolicyRecord,
    report: Report,
    *,
    store: Path,
    checkpoint: Path | None,
    output: Path | None,
) -> FinetuneResult:
    """See `trainables.api.finetune`."""
    bench, policy = load_bench(config, store=store, checkpoint=checkpoint), record.policy
    if bench.checkpoint.policy not in (None, policy):
        bench = replace(bench, checkpoint=bench.checkpoint.emptied())
    make_repeatable(config.seed)
    _check_recount(bench, policy, BudgetConfig())
    result, net = _finetuned(bench, policy, report)
    if output and bench.workers.rank == 0:
        save_model(net, _card(bench, result.metrics), _on_bench(bench, record), output)
    return result


def _on_bench(bench: Bench, record: PolicyRecord) -> PolicyRecord:
    """The same policy with the work and the costs of the network that was finetuned."""
    return PolicyRecord.measured(
        record.policy,
        bench.costs,
        method=record.method,
        settings=record.settings,
        image_size=bench.config.data.image_size,
        num_classes=bench.data.num_classes,
        parent=record.parent,
        changes=record.changes,
    )


def _card(bench: Bench, metrics: Mapping[str, float]) -> ModelCard:
    config, data = bench.config, bench.data
    normalisation = data.validation.normalisation
    return ModelCard(
        task="classification",
        network=config.network.name,
        num_classes=data.num_classes,
        image_size=config.data.image_size,
        quantizer=config.quantizer,
        mean=normalisation.mean,
        std=normalisation.std,
        class_names=data.class_names,
        metrics=metrics,
        config=dataclasses.asdict(config),
        data_fingerprint=bench.record.data_fingerprint,
    )


def _finetuned(bench: Bench, policy: BitPolicy, report: Report) -> tuple[FinetuneResult, nn.Module]:
    clock = bench.checkpoint
    clock.watch("finetune")
    found = finetune(bench, policy, report)
    clock.stop()
    hours = clock.hours("finetune")
    metrics = {
        **found.accuracy,
        "ard": found.attribution.ard,
        "ard_normalised": found.attribution.ard_normalised,
        "entropy": found.attribution.entropy,
        "attribution_pixels": float(found.attribution.pixels),
        "reference_top1": bench.record.top1,
        **all_costs(policy, bench.costs),
        "images_per_s": found.images_per_s,
        "finetune_device_hours": hours,
        "device_hours": hours,
    }
    return FinetuneResult(metrics=metrics, samples=found.samples), found.net


def _check_recount(bench: Bench, policy: BitPolicy, budget: BudgetConfig) -> None:
    """That the network which is deployed costs what its policy says, and keeps the budget."""
    deployed = deploy(bench.reference, bench.costs, policy, bench.config.quantizer)
    recounted = bench.costs.costs(recount(deployed, bench.probe, searched=policy.searched))
    broken = budget.broken(recounted)
    if recounted != bench.costs.of(policy) or broken:
        raise RuntimeError(f"the deployed network costs {recounted}, its policy {bench.costs.of(policy)}; {broken=}")


def _record(bench: Bench, policy: BitPolicy, config: TrialConfig) -> PolicyRecord:
    return PolicyRecord.measured(
        policy,
        bench.costs,
        method=method_name(config.method),
        settings=dataclasses.asdict(config.method),
        image_size=config.data.image_size,
        num_classes=bench.data.num_classes,
    )
