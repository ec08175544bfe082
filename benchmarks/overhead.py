"""What the service adds to a trial: whole sweeps whose trials compute nothing, from 10 to 1 000 of them.

    python benchmarks/overhead.py [TRIALS ...]

Everything is real but the science: Ray Tune, Optuna's journal, the sweep's storage, the MLflow mirror, front and pages.
Printed: seconds of wall time per trial, for the first and the last tenth of each sweep and their slope over the trials
(zero is flat), and the front's update by number of policies, over n·log n.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from service.front import find_front
from service.orchestrate.sweep import run_sweep
from service.progress import Progress
from service.records import SweepRecord, TrialRecord, now_ms
from service.spec import load_spec
from service.sweeps import open_sweep
from trainables.api import EpochReport, ReferenceRecord, Report, TrialResult
from trainables.choices import Choices, Scores
from trainables.config import TrialConfig
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

SPEC = """\
name: overhead
network: {{name: resnet8}}
data: {{name: digits, image_size: 8}}
reference: {{epochs: 1}}
method: {{name: gmpq, epochs: 1}}
finetune: {{epochs: 1}}
space: {{method.zeta: {{loguniform: [0.05, 2.0]}}, method.eta: {{uniform: [0.0, 2.0]}}}}
sampler: {{name: {sampler}}}
trials: {trials}
resources: {{concurrency: 2}}
gallery: {{images: 0}}
storage: {{path: {storage}}}
"""


class NoScience:
    """Metrics from a formula, at once."""

    def ensure_reference(self, config: TrialConfig, report: Report, *, store: Path) -> ReferenceRecord:
        record = ReferenceRecord(key=config.reference_key, top1=99.0, device_hours=0.0, data_fingerprint="none")
        (store / record.key).mkdir(parents=True, exist_ok=True)
        (store / record.key / "record.json").write_text(json.dumps(dataclasses.asdict(record)))
        return record

    def run_trial(
        self, config: TrialConfig, report: Report, *, store: Path, checkpoint: Path | None = None
    ) -> TrialResult:
        numbers = {"loss": 1.0, "task_risk": config.method.zeta, "policy_bops_g": 1.0 / config.method.zeta}
        for stage in ("search", "finetune"):
            report(EpochReport(stage=stage, epoch=1, epochs=1, metrics=numbers))  # type: ignore[arg-type]
        bits = {f"layer{i}": LayerBits(2 + (i + int(10 * config.method.zeta)) % 3, 4) for i in range(8)}
        costs = {"bops_g": 0.02 / config.method.zeta, "compression": 100.0, "storage_mb": 0.1}
        policy = PolicyRecord(policy=BitPolicy(network="resnet8", bits=bits), method="gmpq", settings={}, costs=costs)
        eta = getattr(config.method, "eta", 0.0)
        metrics = {
            **costs,
            "top1": 90 + 5 * math.tanh(1 / config.method.zeta) - eta,
            "ard": 2.0 / (1 + eta) + config.method.zeta,
            "ard_normalised": 0.5,
            "entropy": 1.0,
            "bops_paper_g": 0.01,
            "storage_mib": 0.1,
            "device_hours": 0.0,
        }
        choices = Choices(
            network="resnet8",
            layers=tuple(bits),
            weights={name: Scores((b.weight,), (0.0,)) for name, b in bits.items()},
            acts={name: Scores((b.act,), (0.0,)) for name, b in bits.items()},
            group_of={name: name for name in bits},
            pinned={},
        )
        return TrialResult(record=policy, choices=choices, metrics=metrics)


def run(trials: int, *, sampler: str = "random") -> list[float]:
    """Seconds from the first trial's start to the end of each trial, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overhead.yaml"
        path.write_text(SPEC.format(trials=trials, storage=Path(folder) / "storage", sampler=sampler))
        spec = load_spec(path)
        store = open_sweep(spec, now_ms=now_ms())
        quiet = Console(file=(Path(folder) / "out.txt").open("w"))
        outcome = run_sweep(spec, store, lambda store: Progress(quiet, store, epochs_per_trial=2), science=NoScience())
        records = outcome.store.trials()
        assert [record.state for record in records] == ["done"] * trials, records
        assert outcome.mirror_error is None, outcome.mirror_error
        began = min(record.started_ms for record in records)
        return sorted((record.ended_ms - began) / 1000 for record in records)


def slope(ends: list[float]) -> float:
    """Least squares: how many seconds per trial are added by each trial before it."""
    gaps = [b - a for a, b in pairwise(ends)]
    mean_n, mean_gap = (len(gaps) - 1) / 2, sum(gaps) / len(gaps)
    above = sum((n - mean_n) * (gap - mean_gap) for n, gap in enumerate(gaps))
    return above / sum((n - mean_n) ** 2 for n in range(len(gaps)))


def front_update(policies: int) -> float:
    """Seconds to find the front of so many policies."""
    numbers = random.Random(0)
    sweep = SweepRecord(name="s", spec_hash="", facts={}, total_trials=policies, created_ms=0)
    trials = [
        TrialRecord(
            trial_id=f"t{n}", number=n, state="done", settings={},
            metrics={"top1": numbers.random(), "bops_g": numbers.random(), "ard": numbers.random()},
        )
        for n in range(policies)
    ]  # fmt: skip
    began = time.perf_counter()
    find_front(trials, sweep)
    return time.perf_counter() - began


def main() -> None:
    logging.disable(logging.WARNING)
    sizes = [int(argument) for argument in sys.argv[1:]] or [10, 100, 1000]
    print("| trials | s per trial | first tenth | last tenth | slope, s per trial per 1 000 trials |")
    print("|---|---|---|---|---|")
    for trials in sizes:
        ends = run(trials)
        tenth = max(2, trials // 10)
        first, last = ends[tenth - 1] / tenth, (ends[-1] - ends[-tenth - 1]) / tenth
        print(
            f"| {trials} | {ends[-1] / trials:.3f} | {first:.3f} | {last:.3f} | {1000 * slope(ends):+.3f} |", flush=True
        )
    print("\n| policies | front's update, ms | over n·log2(n), ns |")
    print("|---|---|---|")
    for policies in (100, 1_000, 10_000, 100_000):
        seconds = min(front_update(policies) for _ in range(3))
        per = seconds / (policies * math.log2(policies)) * 1e9
        print(f"| {policies} | {1000 * seconds:.2f} | {per:.0f} |")


if __name__ == "__main__":
    main()
