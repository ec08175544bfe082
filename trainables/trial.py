"""A trial from end to end: supernet search, discretisation, short finetune, and what came out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from trainables import methods
from trainables.config import TrialConfig, method_name
from trainables.distributed import make_repeatable
from trainables.evaluation import device_hours
from trainables.finetune.classify import finetune
from trainables.policy import BitPolicy, PolicyRecord
from trainables.reference import Bench, load_bench
from trainables.report import Report, TrialResult


def run_trial(config: TrialConfig, report: Report, *, store: Path) -> TrialResult:
    """See `trainables.api.run_trial`."""
    bench = load_bench(config, store=store)
    make_repeatable(config.seed)
    started = time.perf_counter()
    policy = methods.search(bench, report)
    searched = time.perf_counter()
    top1, attribution = finetune(bench, policy, report)
    finetuned = time.perf_counter()

    record = _record(bench, policy)
    search_hours = device_hours(started, searched, bench.workers)
    finetune_hours = device_hours(searched, finetuned, bench.workers)
    metrics = {
        "top1": top1,
        "ard": attribution.ard,
        "ard_normalised": attribution.ard_normalised,
        "entropy": attribution.entropy,
        "attribution_pixels": float(attribution.pixels),
        "reference_top1": bench.record.top1,
        **record.costs,
        "search_device_hours": search_hours,
        "finetune_device_hours": finetune_hours,
        "device_hours": search_hours + finetune_hours,
    }
    return TrialResult(record=record, metrics=metrics)


def _record(bench: Bench, policy: BitPolicy) -> PolicyRecord:
    costs, method = bench.costs, bench.config.method
    bops_g, storage = costs.bops_g(policy), costs.storage(policy)
    return PolicyRecord(
        policy=policy,
        method=method_name(method),
        settings=dataclasses.asdict(method),
        costs={
            "bops_g": bops_g,
            "bops_paper_g": costs.bops_g(policy, convention="paper"),
            "full_bops_g": costs.full_bops_g,
            "compression": costs.full_bops_g / bops_g,
            "storage_mb": storage.mb,
            "storage_mib": storage.mib,
            "float_mb": storage.float_mb,
        },
    )
