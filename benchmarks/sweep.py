"""What a sweep takes beyond its trials' own computing: whole sweeps by `bitfront run`, from its start to its exit.

    python benchmarks/sweep.py [--trials 16] [--longer 1 4] [--growth 4 16 64] [--no-comparison]

`sweeps/quickstart.yaml` with real science on two slots of one core, its stages as long as there or so many times
longer. A trial's compute is what its process takes from the beginning of its search to the end of its measurement; that
its epochs are reported and kept meanwhile is in it. *Plain* trials, two at once in two processes that have one trial
behind them as the sweep's have, without Ray, storage and reports, say how much that is. What remains of the wall time
is told by parts, which sum up to it; parts in which slots stand idle or load are counted as their share of the slots.

With --growth: sweeps of tiny trials, one epoch each, by number of trials.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.baseline import Baseline, baseline_folder
from service.records import SweepStore, TrialRecord
from service.sweeps import stored_spec
from trainables.report import EpochReport

QUICKSTART = Path(__file__).parent.parent / "sweeps" / "quickstart.yaml"
SLOTS = 2
SEARCH_EPOCHS, FINETUNE_EPOCHS = 6, 8
"""Of the quickstart's trials."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
REACHED = 1.10
"""The ratio whose trial length is told."""
TINY = ("method.epochs=1", "method.lr_decay_every=1", "finetune.epochs=1", "reference.epochs=2", "gallery.random=false")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """A finished sweep, seconds."""

    wall: float
    trials: int
    compute: float
    """Of all trials, in their processes."""
    reference: float
    comparison: float
    """The finetune of the random policy beside the knee; 0 without one."""
    parts: dict[str, float]
    """Of the wall time; their sum."""

    @property
    def ratio(self) -> float:
        """Wall time over that of the trials' compute on all slots."""
        return self.wall * SLOTS / self.compute

    @property
    def ratio_of_all(self) -> float:
        """Likewise, where what the slots compute for the sweep as a whole counts as well."""
        return self.wall * SLOTS / (self.compute + self.reference + self.comparison)


def run(folder: Path, changes: Sequence[str]) -> tuple[float, float]:
    """`bitfront run` in `folder`: when it began, Unix time, and seconds until it had exited."""
    settings = [argument for change in (*changes, f"resources.concurrency={SLOTS}") for argument in ("--set", change)]
    command = [sys.executable, "-m", "service.cli", "run", str(QUICKSTART), *settings]
    began, ticking = time.time(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    seconds = time.perf_counter() - ticking
    assert done.returncode == 0, done.stdout + done.stderr
    return began, seconds


def compute_s(metrics: dict[str, float]) -> float:
    """A trial's, or a finetune's, own."""
    return 3600 * metrics["device_hours"]


def timeline(store: SweepStore, began: float, wall: float) -> Timeline:
    """What became of the wall time, from what the storage says and from when its files were written."""
    trials = store.trials()
    assert all(trial.state == "done" for trial in trials), [trial.state for trial in trials]
    (key,) = store.sweep().references
    reference = 3600 * store.sweep().references[key]["device_hours"]
    kept = (store.references / key / "record.json").stat().st_mtime
    first = min(trial.started_ms for trial in trials) / 1000
    last = max(trial.ended_ms for trial in trials) / 1000
    baseline = Baseline.find(store.folder)
    compared = (baseline_folder(store.folder) / "record.json").stat().st_mtime if baseline else last
    compute = sum(compute_s(dict(trial.metrics)) for trial in trials)
    loads = sum((trial.ended_ms - trial.started_ms) / 1000 for trial in trials) - compute
    between, tail = idle(trials, first, last)
    created = store.sweep().created_ms / 1000
    parts = {
        "command, YAML, checks": created - began,
        "Ray, process of the reference": kept - reference - created,
        "reference": reference,
        "to the first trial": first - kept,
        "trials' compute": compute / SLOTS,
        "loading and keeping, in trials": loads / SLOTS,
        "between trials": between / SLOTS,
        "slots empty at the end": tail / SLOTS,
        "comparison with a random policy": compared - last,
        "pages, records, exit": began + wall - compared,
    }
    comparison = compute_s(dict(baseline.metrics)) if baseline else 0.0
    return Timeline(
        wall=wall, trials=len(trials), compute=compute, reference=reference, comparison=comparison, parts=parts
    )


def length_s(found: Timeline, *, compared: bool, counts_all: bool) -> float:
    """How long a trial computes where the ratio is REACHED, by a sweep whose trials alone are longer or shorter.

    Wall time = n T / s + F + c T: n trials of T seconds on s slots, a random policy whose finetune is c trials, F for
    all else. The ratio is over n T / s, or where all compute counts over (n T + R + c T) / s with the reference's R.
    Without the comparison its whole part is gone. Infinite where no length reaches it.
    """
    of_trials, each = found.compute / SLOTS, found.compute / found.trials
    share = found.comparison / each if compared else 0.0
    gone = found.comparison if compared else found.parts["comparison with a random policy"]
    fixed, rate = found.wall - of_trials - gone, (REACHED - 1) * found.trials / SLOTS - share
    if counts_all:
        fixed -= REACHED * found.reference / SLOTS
        rate += REACHED * share / SLOTS
    return fixed / rate if rate > 0 else float("inf")


def idle(trials: Sequence[TrialRecord], first: float, last: float) -> tuple[float, float]:
    """Seconds of all slots without a trial: before their next one, and after their last one."""
    free, between = [first] * SLOTS, 0.0
    for trial in sorted(trials, key=lambda trial: trial.started_ms):
        began = trial.started_ms / 1000
        # The slot that was free for the shortest time, of those that were free.
        place = max((n for n in range(SLOTS) if free[n] <= began), key=lambda n: free[n])
        between += began - free[place]
        free[place] = trial.ended_ms / 1000
    return between, sum(last - at for at in free)


def plain_ratio(store: SweepStore) -> float:
    """Compute of the sweep's second round of trials over what the same trials take without the service."""
    chosen = store.trials()[SLOTS : 2 * SLOTS] or store.trials()[:SLOTS]
    context = multiprocessing.get_context("spawn")
    # As the sweep's processes have it; it is read when torch is imported.
    os.environ.update(ENVIRONMENT)
    with context.Pool(SLOTS) as pool:
        plain = pool.starmap(_plain, [(store.folder, trial.trial_id) for trial in chosen], chunksize=1)
    return sum(compute_s(dict(trial.metrics)) for trial in chosen) / sum(plain)


def _plain(folder: Path, trial_id: str) -> float:
    """Of a process that has run a trial before, as that of the sweep's second round has."""
    import torch

    from trainables import api

    store = SweepStore(folder)
    spec = stored_spec(store)
    torch.set_num_threads(spec.resources.cpus_per_worker)
    config = spec.trial_config(store.trial(trial_id).settings)
    api.run_trial(config, _unheard, store=store.references)
    return compute_s(dict(api.run_trial(config, _unheard, store=store.references).metrics))


def _unheard(epoch: EpochReport) -> None:
    """Nobody listens."""


def print_lengths(trials: int, lengths: Sequence[int], *, compared: bool) -> None:
    """Sweeps whose trials' stages are so many times as long as the quickstart's."""
    found: list[tuple[Timeline, float]] = []
    for longer in lengths:
        changes = [
            f"trials={trials}",
            f"method.epochs={SEARCH_EPOCHS * longer}",
            f"method.lr_decay_every={SEARCH_EPOCHS * longer // 2}",
            f"finetune.epochs={FINETUNE_EPOCHS * longer}",
            f"gallery.random={json.dumps(compared)}",
        ]
        with tempfile.TemporaryDirectory() as folder:
            began, wall = run(Path(folder), changes)
            store = SweepStore.open(Path(folder) / "bitfront-sweeps" / "quickstart")
            found.append((timeline(store, began, wall), plain_ratio(store)))
    print("| " + " | ".join(["", *(f"{one.compute / one.trials:.1f} s a trial" for one, _ in found)]) + " |")
    print("|---" * (len(found) + 1) + "|")
    for name in found[0][0].parts:
        print(row(name, [f"{one.parts[name]:.1f}" for one, _ in found]))
    print(row("**wall time, s**", [f"**{one.wall:.1f}**" for one, _ in found]))
    print(row("wall / (Σ trials' compute / slots)", [f"{one.ratio:.3f}" for one, _ in found]))
    print(row("wall / (Σ all compute / slots)", [f"{one.ratio_of_all:.3f}" for one, _ in found]))
    without = [
        (one.wall - one.parts["reference"] - one.parts["comparison with a random policy"]) * SLOTS / one.compute
        for one, _ in found
    ]
    print(row("without reference and comparison", [f"{ratio:.3f}" for ratio in without]))
    for name, counted, counts_all in (
        ("", compared, False),
        (", without comparison", False, False),
        (", all compute", compared, True),
    ):
        lengths_s = [length_s(one, compared=counted, counts_all=counts_all) for one, _ in found]
        print(row(f"s a trial for {REACHED:.2f}{name}", [f"{seconds:.0f}" for seconds in lengths_s]))
    print(row("a trial's compute / plain", [f"{plain:.3f}" for _, plain in found]))


def row(name: str, cells: Sequence[str]) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join([name, *cells])} |"


def print_growth(sizes: Sequence[int]) -> None:
    """Sweeps of tiny trials."""
    print("| trials | wall, s | compute, s a trial | loading and keeping, s a trial | between trials, s | ratio |")
    print("|---|---|---|---|---|---|")
    for trials in sizes:
        with tempfile.TemporaryDirectory() as folder:
            began, wall = run(Path(folder), [f"trials={trials}", *TINY])
            found = timeline(SweepStore.open(Path(folder) / "bitfront-sweeps" / "quickstart"), began, wall)
        each = SLOTS / trials
        cells = [
            f"{wall:.1f}",
            f"{found.compute / trials:.2f}",
            f"{found.parts['loading and keeping, in trials'] * each:.2f}",
            f"{found.parts['between trials'] * each:.3f}",
            f"{found.ratio:.2f}",
        ]
        print(row(str(trials), cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--longer", type=int, nargs="*", default=[1, 4], help="times as long as the quickstart's")
    parser.add_argument("--growth", type=int, nargs="*", default=[4, 16, 64], help="numbers of tiny trials")
    parser.add_argument("--no-comparison", action="store_true", help="with gallery.random: false")
    options = parser.parse_args()
    if options.longer:
        print_lengths(options.trials, options.longer, compared=not options.no_comparison)
    if options.growth:
        print()
        print_growth(options.growth)


if __name__ == "__main__":
    main()
