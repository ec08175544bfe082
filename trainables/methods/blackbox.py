"""Black-box search of bits: policies are tried one after the other, and what they score decides what is tried next.

A stand-in for HAQ (Wang et al. 2019) in comparisons, and not HAQ: its agent, which is trained by reinforcement learning
and walks from layer to layer, is replaced by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), which
proposes all widths at once. Shared with HAQ are what makes such searches costly, a quantised network that is tuned and
scored for every policy, and the lowering of widths until a policy keeps the budget (`genome`).

The estimator is told the policies that were scored, not those that it proposed. A sampler is made anew for each
proposal, seeded by (seed of the trial, number of the evaluation, attempt): what it proposes follows from these and from
the scores before it, however often the search was cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from trainables.checkpoint import Position
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.errors import DivergedError
from trainables.method_config import BlackboxConfig
from trainables.methods.genome import Genome
from trainables.methods.offered import fixed, offered
from trainables.methods.quick_score import LOST, QuickScore
from trainables.reference import Bench
from trainables.report import EpochReport, Report

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

STARTUP = 5
"""Evaluations whose proposals are independent draws."""
GUIDED, ATTEMPTS = 8, 16
"""Proposals for one evaluation, until one has not been tried: so many by the estimator, then independent draws."""


def search(bench: Bench, config: BlackboxConfig, budget: BudgetConfig, report: Report) -> Choices:
    """The best policy that was tried as the one choice of every layer; of equals the first.

    An evaluation is reported as an epoch. Raises InfeasibleBudgetError before the first one where no policy keeps the
    budget, DivergedError where no policy had a finite score.
    """
    choices = offered(bench, config)
    genome = Genome(choices, bench.costs, budget)
    tried = Tried(genome, seed=bench.config.seed)
    score = QuickScore(bench, config)
    kept = bench.checkpoint.begin("search", nn.Identity())
    kept.restore({"tried": tried})
    if tried.scores:
        # It may have been cut off between being kept and being told.
        report(_epoch(bench, config, genome, tried))
    while len(tried.scores) < config.evaluations:
        # All workers go by rank 0: a last digit must not lead two of them to different policies.
        told = bench.workers.told({gene: float(width) for gene, width in tried.propose().items()})
        widths = {gene: int(width) for gene, width in told.items()}
        known = tried.score_of(widths)
        found = score(genome.policy(widths)) if known is None else known
        tried.add(widths, bench.workers.told({"score": found})["score"])
        kept.save({"tried": tried}, Position(epoch=len(tried.scores)))
        report(_epoch(bench, config, genome, tried))
    if max(tried.scores) <= LOST:
        raise DivergedError("blackbox: no policy had a finite loss; try a smaller method.lr.")
    return fixed(choices, genome.policy(tried.best))


def _epoch(bench: Bench, config: BlackboxConfig, genome: Genome, tried: Tried) -> EpochReport:
    """The last evaluation: its score and cost, and those of the policy that would be chosen now."""
    best = max(tried.scores)
    metrics = {
        "score": tried.scores[-1],
        "tried_bops_g": bench.costs.bops_g(genome.policy(tried.widths[-1])),
        "best": best,
        # The name by which early stopping knows what foretells top-1.
        "task_risk": -best,
        "policy_bops_g": bench.costs.bops_g(genome.policy(tried.best)),
    }
    return EpochReport(stage="search", epoch=len(tried.scores), epochs=config.evaluations, metrics=metrics)


class Tried:
    """The policies that were tried, in order, and the estimator that learns from them."""

    def __init__(self, genome: Genome, *, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._genome, self._seed = genome, seed
        self._study = optuna.create_study(direction="maximize")
        self._distributions = {
            gene: optuna.distributions.IntDistribution(0, len(offered) - 1) for gene, offered in genome.genes.items()
        }
        self._scores: dict[tuple[int, ...], float] = {}
        self.widths: list[dict[str, int]] = []
        self.scores: list[float] = []

    @property
    def best(self) -> dict[str, int]:
        """The widths of the highest score, of equals the first."""
        return self.widths[self.scores.index(max(self.scores))]

    def score_of(self, widths: dict[str, int]) -> float | None:
        """None where they have not been tried."""
        return self._scores.get(tuple(widths.values()))

    def propose(self) -> dict[str, int]:
        """Widths within the budget: ones that have not been tried, unless all that were proposed have."""
        widths: dict[str, int] = {}
        for attempt in range(ATTEMPTS):
            widths = self._genome.within(self._asked(attempt))
            if self.score_of(widths) is None:
                break
        return widths

    def _asked(self, attempt: int) -> dict[str, int]:
        from optuna.trial import TrialState

        self._study.sampler = self._sampler(attempt)
        asked = self._study.ask(self._distributions)
        # What is learned from is added with the widths that were scored; this trial ends without a value.
        self._study.tell(asked, state=TrialState.FAIL)
        return {gene: offered[asked.params[gene]] for gene, offered in self._genome.genes.items()}

    def _sampler(self, attempt: int) -> BaseSampler:
        from optuna.samplers import RandomSampler, TPESampler

        numbers = (self._seed, len(self.scores), attempt)
        seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
        return TPESampler(seed=seed, n_startup_trials=STARTUP) if attempt < GUIDED else RandomSampler(seed=seed)

    def add(self, widths: dict[str, int], score: float) -> None:
        """What was tried, and scored."""
        from optuna.trial import create_trial

        genes = self._genome.genes
        places = {gene: offered.index(widths[gene]) for gene, offered in genes.items()}
        self._study.add_trial(create_trial(params=places, distributions=self._distributions, value=score))
        self.widths.append({gene: widths[gene] for gene in genes})
        self.scores.append(score)
        self._scores[tuple(self.widths[-1].values())] = score

    def state_dict(self) -> dict[str, Any]:
        """Of a checkpoint."""
        return {"widths": self.widths, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Fills one that is empty."""
        for widths, score in zip(state_dict["widths"], state_dict["scores"], strict=True):
            self.add(widths, score)
