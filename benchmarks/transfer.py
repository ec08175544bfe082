"""Whether policies searched on a small data set serve a larger one, at equal BOPs and equal finetunes.

Searches policies on digits and on Fashion-MNIST with EdMIPS, GMPQ and R-GMPQ, allocates each search's bits under the
same budgets, and finetunes all of them, with random and uniform policies of the same cost, on both data sets from the
same full-precision weights with the same quantiser. Seeds vary search, random policies and finetune. Prints tables of
top-1 and ARD with their spread over the seeds. What was finished is kept in --out, and is not done again.

Run: python benchmarks/transfer.py --out transfer [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from trainables import methods
from trainables.allocate import allocate
from trainables.bops import CostModel
from trainables.choices import Choices
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.distributed import make_repeatable
from trainables.finetune.classify import finetune
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import EdmipsConfig, GmpqConfig, MethodConfig, RgmpqConfig
from trainables.policy import BitPolicy
from trainables.random_policy import random_policies
from trainables.reference import Bench, ensure_reference, load_bench
from trainables.report import EpochReport

DATA = {
    "digits": DataConfig(name="digits", image_size=16),
    "fashion-mnist": DataConfig(name="fashion-mnist", image_size=16, fraction=0.1, augment="flip"),
}
FINETUNE = {"digits": FinetuneConfig(epochs=8, batch_size=64), "fashion-mnist": FinetuneConfig(epochs=4, batch_size=64)}
RECIPE = {"epochs": 6, "batch_size": 64, "lr_decay_every": 3, "bit_lr": 0.5}
ZETA = 0.03
"""So little that the budgets decide: the BOPs of all policies are then equal, not merely within them."""
METHODS: dict[str, MethodConfig] = {
    "EdMIPS": EdmipsConfig(zeta=ZETA, **RECIPE),
    "GMPQ": GmpqConfig(zeta=ZETA, eta=10.0, **RECIPE),
    # With the paper's 0.05 no pixels of a 4x4 map that was upsampled to 16x16 are alike but those at the edges.
    "R-GMPQ": RgmpqConfig(zeta=ZETA, eta=10.0, gamma=0.5, **RECIPE),
}
UNIFORM = ((3, 3), (2, 3), (3, 2))
"""Weight and activation bits; the budgets are their BOPs."""
RANDOM_PER_SEED = 2


class Ledger:
    """Finished searches and finetunes, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def searched(self, data: str, method: str, seed: int) -> Choices:
        """What a search ended with."""
        path = self.folder / f"search-{data}-{method}-{seed}.json"
        if not path.exists():
            config, bench = self.bench(data, METHODS[method], seed)
            make_repeatable(seed)
            path.write_text(methods.search(bench, config, quiet).to_json())
        return Choices.load(path)

    def finetuned(self, data: str, policy: BitPolicy, seed: int) -> tuple[float, float]:
        """Top-1 (percent) and ARD (ranks) of a policy. The same bits are finetuned once, whoever found them."""
        path = self.folder / f"finetune-{data}-{policy.hash[:16]}-{seed}.json"
        if not path.exists():
            _, bench = self.bench(data, METHODS["GMPQ"], seed)
            make_repeatable(seed)
            found = finetune(bench, policy, quiet)
            path.write_text(json.dumps([found.accuracy["top1"], found.attribution.ard]))
            print(
                f"{data} seed {seed} {policy.hash[:8]}: top-1 {found.accuracy['top1']:.2f} "
                f"ARD {found.attribution.ard:.2f}",
                flush=True,
            )
        top1, ard = json.loads(path.read_text())
        return top1, ard

    def bench(self, data: str, method: MethodConfig, seed: int) -> tuple[TrialConfig, Bench]:
        """Settings; data, reference and costs."""
        config = TrialConfig(
            network=NetworkConfig(name="resnet8"),
            data=DATA[data],
            reference=ReferenceConfig(epochs=20),
            method=method,
            finetune=FINETUNE[data],
            seed=seed,
        )
        ensure_reference(config, quiet, store=self.folder / "references")
        return config, load_bench(config, store=self.folder / "references")


def quiet(epoch: EpochReport) -> None:
    """Only results are printed."""


def uniform(choices: Choices, weight: int, act: int) -> BitPolicy:
    """The same bits in every searched layer."""
    return choices.policy(dict.fromkeys(choices.weights, weight), dict.fromkeys(choices.acts, act))


def candidates(ledger: Ledger, costs: CostModel, budget_bops_g: float, seed: int) -> Iterator[tuple[str, BitPolicy]]:
    """Where a policy is from, and the policy."""
    budget = BudgetConfig(bops_g=budget_bops_g)
    for data in DATA:
        for method in METHODS:
            yield f"{method} on {data}", allocate(ledger.searched(data, method, seed), costs, budget)
    any_choices = ledger.searched("digits", "EdMIPS", seed)
    for policy in random_policies(any_choices, costs, bops_g=budget_bops_g, count=RANDOM_PER_SEED, seed=seed):
        yield "random", policy
    for weight, act in UNIFORM:
        policy = uniform(any_choices, weight, act)
        if costs.bops_g(policy) == budget_bops_g:
            yield f"uniform {weight}/{act}", policy


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for what was finished")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", nargs="+", choices=sorted(DATA), default=list(DATA))
    args = parser.parse_args()
    torch.set_num_threads(1)
    ledger = Ledger(args.out)
    costs = ledger.bench("digits", METHODS["EdMIPS"], 0).costs
    reached = ledger.searched("digits", "EdMIPS", 0)
    budgets = sorted({costs.bops_g(uniform(reached, *bits)) for bits in UNIFORM})
    print(f"resnet8, 16x16, {platform.machine()}, torch {torch.__version__}, {args.seeds} seeds")
    for target in args.targets:
        reference = replace(ledger.bench(target, METHODS["EdMIPS"], 0).record, device_hours=0.0)
        print(f"\nFinetuned on {target}; full precision {reference.top1:.2f} %.\n")
        print("| budget, G | policies | BOPs, G | distinct | top-1, % | ARD, ranks |\n|---|---|---|---|---|---|")
        for budget in budgets:
            scores: dict[str, list[tuple[float, float, float, str]]] = defaultdict(list)
            for seed in range(args.seeds):
                for name, policy in candidates(ledger, costs, budget, seed):
                    top1, ard = ledger.finetuned(target, policy, seed)
                    scores[name].append((top1, ard, costs.bops_g(policy), policy.hash))
            for name, found in scores.items():
                top1s, ards, spent, hashes = zip(*found, strict=True)
                print(
                    f"| {budget:.4f} | {name} | {statistics.mean(spent):.4f} | {len(set(hashes))} of {len(found)} "
                    f"| {statistics.mean(top1s):.2f} ± {statistics.stdev(top1s):.2f} "
                    f"| {statistics.mean(ards):.2f} ± {statistics.stdev(ards):.2f} |"
                )


if __name__ == "__main__":
    main()
