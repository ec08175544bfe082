"""Whether a driver's memory stays flat: minutes of a sweep whose trials come and go, its resident memory each second.

    python benchmarks/soak.py [--minutes 10] [--concurrency 2] [--out benchmarks/soak]
    python benchmarks/soak.py --epochs 4 --epoch-s 0.05 --out benchmarks/soak/rush

Trials compute nothing, as in `load.py`; they report 20 epochs in 5 s, as fast as real ones can be, or rush. The sweep
has more of them than fit in the time, and is stopped as `bitfront stop` does it. What a driver must remember of a
trial, that it has been, grows with the trials: the slope is told per minute and per thousand trials. Without the
first fifth of the time, in which processes start and caches fill, memory is fitted by least squares,

    RSS(t) = a + b t + e,    s_b = √(Σe²/(n − 2) / Σ(t − t̄)²) · √((1 + ρ)/(1 − ρ)),

ρ the correlation of residuals that follow each other (Bayley & Hammersley 1946), as samples a second apart are not
independent. Flat is what grows over the whole time, b plus two standard errors, by less than 5 % of the mean. Writes
the samples, the figures and a plot; `--trace` tells where Python objects were made that were there at the end and not
after two fifths.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import platform
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import ray
from load import MIB, SPEC, Gated, Watch, start_ray
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from service import driver
from service.orchestrate.sweep import run_sweep
from service.progress import Progress
from service.records import SweepStore, now_ms
from service.spec import load_spec
from service.sweeps import open_sweep
from trainables.api import EpochReport, Report, TrialResult
from trainables.config import TrialConfig

WARM_SHARE = 0.2
FLAT_SHARE = 0.05
INK, FIT = "#0072B2", "#D55E00"


@dataclass(frozen=True, slots=True)
class Reporting(Gated):
    """As `Gated`, with epochs to report that take some time."""

    epochs: int
    epoch_s: float

    def run_trial(
        self, config: TrialConfig, report: Report, *, store: Path, checkpoint: Path | None = None
    ) -> TrialResult:
        for epoch in range(1, self.epochs + 1):
            time.sleep(self.epoch_s)
            report(EpochReport(stage="search", epoch=epoch, epochs=self.epochs, metrics={"loss": 1.0 / epoch}))
        return Gated.run_trial(self, config, report, store=store, checkpoint=checkpoint)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the samples say."""

    minutes: float
    trials: int
    mean_mib: float
    first_mib: float
    """Fitted, at the end of the first fifth."""
    last_mib: float
    slope_mib_per_min: float
    error_mib_per_min: float
    growth_share: float
    """Of the mean, over the whole time, with two standard errors."""
    mib_per_1000_trials: float
    flat: bool


def fitted(times_s: np.ndarray, rss_mib: np.ndarray) -> tuple[float, float, float]:
    """Value at the first time, slope per second and the slope's standard error."""
    t = times_s - times_s.mean()
    slope = float(t @ rss_mib / (t @ t))
    rest = rss_mib - rss_mib.mean() - slope * t
    rho = float(rest[1:] @ rest[:-1] / (rest @ rest)) if rest.any() else 0.0
    rho = min(max(rho, 0.0), 0.999)
    error = float(np.sqrt(rest @ rest / (len(t) - 2) / (t @ t) * (1 + rho) / (1 - rho)))
    return float(rss_mib.mean() + slope * t[0]), slope, error


def figures(times_s: np.ndarray, rss_mib: np.ndarray, trials: np.ndarray) -> Figures:
    """Of all but the first fifth of the samples."""
    warm = times_s >= times_s[0] + WARM_SHARE * (times_s[-1] - times_s[0])
    t, rss = times_s[warm], rss_mib[warm]
    first, slope, error = fitted(t, rss)
    whole_s, mean = float(times_s[-1] - times_s[0]), float(rss.mean())
    ended = int(trials[warm][-1] - trials[warm][0])
    growth = (slope + 2 * error) * whole_s / mean
    return Figures(
        minutes=whole_s / 60,
        trials=int(trials[-1]),
        mean_mib=mean,
        first_mib=first,
        last_mib=first + slope * float(t[-1] - t[0]),
        slope_mib_per_min=60 * slope,
        error_mib_per_min=60 * error,
        growth_share=growth,
        mib_per_1000_trials=slope * float(t[-1] - t[0]) / ended * 1000 if ended else float("nan"),
        flat=growth < FLAT_SHARE,
    )


def draw(times_s: np.ndarray, rss_mib: np.ndarray, trials: np.ndarray, found: Figures, path: Path) -> None:
    """Memory and trials over time."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    minutes = (times_s - times_s[0]) / 60
    axes.plot(minutes, rss_mib, color=INK, linewidth=1, label="resident memory of the driver")
    ends = [WARM_SHARE * found.minutes, found.minutes]
    told = f"{found.slope_mib_per_min:+.2f} ± {found.error_mib_per_min:.2f} MiB a minute"
    axes.plot(ends, [found.first_mib, found.last_mib], color=FIT, linewidth=2, label=told)
    axes.set_ylim(0, 1.25 * float(rss_mib.max()))
    axes.set_xlabel("minutes")
    axes.set_ylabel("MiB")
    axes.grid(linewidth=0.4, alpha=0.6)
    right = axes.twinx()
    right.plot(minutes, trials, color="grey", linewidth=1, linestyle="--", label="trials that have ended")
    right.set_ylabel("trials")
    right.set_ylim(0, 1.25 * max(1, int(trials[-1])))
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


class _Stop:
    """Asks the driver to end after a time, and compares what Python holds where that is wanted."""

    def __init__(self, folder: Path, seconds: float, trace: bool) -> None:
        self._folder, self._seconds, self._trace = folder, seconds, trace
        self.told: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not driver.alive(self._folder) or not any(self._folder.glob("trials/*/result.json")):
            time.sleep(0.5)
        time.sleep(WARM_SHARE * self._seconds)
        if self._trace:
            tracemalloc.start(12)
        time.sleep(WARM_SHARE * self._seconds)
        before = tracemalloc.take_snapshot() if self._trace else None
        time.sleep((1 - 2 * WARM_SHARE) * self._seconds)
        if before is not None:
            after = tracemalloc.take_snapshot()
            for one in after.compare_to(before, "traceback")[:12]:
                lines = "\n".join(one.traceback.format(limit=6))
                self.told.append(f"{one.size_diff / MIB:+.2f} MiB, {one.count_diff:+d} objects\n{lines}")
        driver.request_stop(self._folder)


def ended_by(store: SweepStore, times_ms: Sequence[int]) -> np.ndarray:
    """How many trials had ended at each time."""
    ends = np.sort([trial.ended_ms for trial in store.trials() if trial.final])
    return np.searchsorted(ends, np.asarray(times_ms), side="right")


def soak(folder: Path, options: argparse.Namespace) -> tuple[Watch, SweepStore, list[str]]:
    """The sweep, with samples of its driver from the first trial's end on."""
    path, gate = folder / "soak.yaml", folder / "gate"
    gate.mkdir()
    path.write_text(
        SPEC.format(name="soak", epochs=options.epochs, trials=1_000_000, concurrency=options.concurrency,
                    sampler="random", storage=folder / "st")
    )  # fmt: skip
    spec = load_spec(path)
    store = open_sweep(spec, now_ms=now_ms())
    quiet = Console(file=(folder / "out.txt").open("w"))
    science = Reporting(gate, options.concurrency, options.epochs, options.epoch_s)
    stop, watch = _Stop(store.folder, 60 * options.minutes, options.trace), Watch()
    with watch.running():
        run_sweep(spec, store, lambda store: Progress(quiet, store, epochs_per_trial=options.epochs), science=science)
    trials = [trial for trial in store.trials() if trial.final]
    began = min(trial.ended_ms for trial in trials)
    # What comes after the last trial, page and last sync, is no part of the course.
    last = max(trial.ended_ms for trial in trials)
    watch.samples = [one for one in watch.samples if began <= one.time_ms <= last]
    return watch, store, stop.told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--epoch-s", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "soak")
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    start_ray(options.concurrency)
    with tempfile.TemporaryDirectory() as folder:
        watch, store, told = soak(Path(folder), options)
        times_ms = [one.time_ms for one in watch.samples]
        trials = ended_by(store, times_ms)
    times_s = np.array(times_ms) / 1000
    rss = np.array([one.rss for one in watch.samples]) / MIB
    found = figures(times_s, rss, trials)
    conditions = f"{options.concurrency} trials at once of {options.epochs} epochs; {os.cpu_count()} cores, "
    conditions += f"Python {platform.python_version()}, Ray {ray.__version__}"
    options.out.mkdir(parents=True, exist_ok=True)
    draw(times_s, rss, trials, found, options.out / "soak.png")
    (options.out / "soak.json").write_text(json.dumps({"conditions": conditions, **asdict(found)}, indent=2) + "\n")
    with (options.out / "soak.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["seconds", "rss_mib", "trials"])
        rows.writerows([f"{s - times_s[0]:.1f}", f"{r:.1f}", n] for s, r, n in zip(times_s, rss, trials, strict=True))
    print(conditions)
    print("| minutes | trials | RSS, MiB | slope, MiB a minute | in the whole time | MiB per 1 000 trials |\n"
          "|---|---|---|---|---|---|")  # fmt: skip
    print(f"| {found.minutes:.1f} | {found.trials} | {found.mean_mib:.0f} | {found.slope_mib_per_min:+.3f} ± "
          f"{found.error_mib_per_min:.3f} | {100 * found.growth_share:+.1f} % at most | "
          f"{found.mib_per_1000_trials:+.1f} |")  # fmt: skip
    print("flat" if found.flat else "not flat")
    print("\n\n".join(told))


if __name__ == "__main__":
    main()
