"""The seam: what the service may ask of the science, in values without tensors.

Imports torch only when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.bops import CostModel
from trainables.choices import Choices
from trainables.config import BenchConfig, BudgetConfig, NetworkConfig, TrialConfig
from trainables.detector_config import DetectorConfig
from trainables.errors import ConfigError
from trainables.method_config import WidthsConfig
from trainables.policy import BitPolicy
from trainables.policy_file import PolicyRecord
from trainables.report import EpochReport, FinetuneResult, ReferenceRecord, Report, TrialResult
from trainables.survey_report import (
    FinetuneSurvey,
    Reach,
    StepTimes,
    Survey,
    check_budget,
    finetune_hours,
    reference_hours,
    trial_hours,
)

if TYPE_CHECKING:
    from trainables.offer import Offer

__all__ = [
    "EpochReport",
    "FinetuneResult",
    "FinetuneSurvey",
    "Reach",
    "ReferenceRecord",
    "Report",
    "StepTimes",
    "Survey",
    "TrialResult",
    "allocate",
    "check_budget",
    "count",
    "count_gpus",
    "device",
    "ensure_reference",
    "finetune",
    "finetune_hours",
    "offer",
    "random_policies",
    "reference_hours",
    "run_trial",
    "step_ratio",
    "survey",
    "survey_finetune",
    "surveys",
    "time_steps",
    "times",
    "trial_hours",
]


def allocate(choices: Choices, costs: CostModel, budget: BudgetConfig) -> BitPolicy:
    """The policy of the highest score within `budget`, exactly. Needs scipy, no torch.

    Raises InfeasibleBudgetError naming every limit that no policy keeps, with its floor; ConfigError where `costs` are
    those of another network.
    """
    from trainables import allocate as program

    return program.allocate(choices, costs, budget)


def count_gpus() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def count(network: str, *, image_size: int, num_classes: int) -> CostModel:
    """The work of a network with fresh weights, on one image. Raises a BitfrontError where it cannot be counted."""
    import torch

    from trainables.counting import measure
    from trainables.models import build_network

    net = build_network(network, num_classes=num_classes, image_size=image_size)
    try:
        return measure(net, torch.zeros(1, 3, image_size, image_size))
    except RuntimeError as error:
        raise ConfigError(f"{network} does not run on {image_size}×{image_size} pixels: {error}") from None


def device() -> str:
    """What this process computes on: a GPU's name, or cpu."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def ensure_reference(config: BenchConfig, report: Report, *, store: Path) -> ReferenceRecord:
    """Trains the full-precision reference of `config` into `store`, unless it is there."""
    from trainables import reference
    from trainables.data import processes

    with processes.let_go():
        return reference.ensure_reference(config, report, store=store)


def finetune(
    config: BenchConfig | DetectorConfig,
    policy: PolicyRecord,
    report: Report,
    *,
    store: Path,
    checkpoint: Path | None = None,
    output: Path | None = None,
) -> FinetuneResult:
    """Finetunes and measures a given policy as a trial does the one that it finds: on every worker alike.

    Of a `TrialConfig` whatever it says of the search and its budget is left aside, except for the quantiser. Needs the
    classifier's reference in `store`. Goes on from the file `checkpoint`, if it is there; one of another policy counts
    as none. Rank 0 writes the finetuned network into the folder `output`, whole or not at all, where one is given.
    Raises ConfigError where the policy names other layers, DivergedError where a loss left the finite numbers.
    """
    from trainables import trial
    from trainables.data import processes

    with processes.let_go():
        if isinstance(config, DetectorConfig):
            from trainables.detection.finetune_detector import finetune_detector

            return finetune_detector(config, policy, report, checkpoint=checkpoint, output=output)
        return trial.finetune_policy(config, policy, report, store=store, checkpoint=checkpoint, output=output)


def offer(network: NetworkConfig, widths: WidthsConfig, *, image_size: int, num_classes: int) -> Offer:
    """The widths that a network's layers may have, none worth more, and its work, on one image.

    Raises a BitfrontError where it cannot be counted, and for patterns that match no layer.
    """
    from trainables import offer as offered

    return offered.offer(network, widths, image_size=image_size, num_classes=num_classes)


def random_policies(
    choices: Choices, costs: CostModel, *, bops_g: float, count: int, seed: int | tuple[int, ...]
) -> tuple[BitPolicy, ...]:
    """Of all policies of the widths of `choices` with 97 to 100 % of `bops_g`, `count` drawn uniformly. Needs no torch.

    Raises ConfigError where there are none.
    """
    from trainables import random_policy

    return random_policy.random_policies(choices, costs, bops_g=bops_g, count=count, seed=seed)


def run_trial(config: TrialConfig, report: Report, *, store: Path, checkpoint: Path | None = None) -> TrialResult:
    """Search, discretise, finetune, measure: on every worker of the trial alike. Needs the reference in `store`.

    Goes on from the file `checkpoint`, if it is there, and keeps it up to date after every epoch. Raises DivergedError
    where a loss left the finite numbers.
    """
    from trainables import trial
    from trainables.data import processes

    with processes.let_go():
        return trial.run_trial(config, report, store=store, checkpoint=checkpoint)


def step_ratio(config: TrialConfig, *, threads: int, workers: int = 1) -> float | None:
    """What a search step takes over a plain full-precision step of the same network on the same batch.

    Both are timed in turn on this machine's device, a few seconds; the median counts. A step is one worker's share of a
    batch. None for methods whose search has no steps. Reads the data set.
    """
    from trainables import step_ratio as timed

    return timed.step_ratio(config, threads=threads, workers=workers)


def survey(config: TrialConfig) -> Survey:
    """Layers, reachable costs, maps and steps of a trial, counted on a network with fresh weights. Trains nothing.

    Reads the data set. Raises a BitfrontError for what would fail later: uncounted work, patterns, batches, tiny maps.
    """
    return surveys([config])[0]


def surveys(configs: Sequence[TrialConfig]) -> list[Survey]:
    """`survey` of several trials; reads each data set once, and holds one at a time."""
    from trainables import survey as counted

    return counted.surveys(configs)


def survey_finetune(
    config: BenchConfig | DetectorConfig, policy: PolicyRecord, *, threads: int, workers: int = 1
) -> FinetuneSurvey:
    """Costs of a policy on the network and data of `config`, and the device-hours of its finetune. Trains nothing.

    A few steps are timed on this machine's device. Raises a BitfrontError for what would fail later: layers that do not
    match, data, batches, weights, tiny maps.
    """
    from trainables import survey_finetune as surveyed

    if isinstance(config, DetectorConfig):
        from trainables.detection.survey_detector import survey_detector

        return survey_detector(config, policy, threads=threads, workers=workers)
    return surveyed.survey_finetune(config, policy, threads=threads, workers=workers)


def time_steps(config: TrialConfig, *, threads: int, workers: int = 1) -> StepTimes:
    """Seconds of each kind of step on this machine's device: the median of three, after one, on fresh networks.

    A step is one worker's share of a batch. What `workers` have to tell each other is left out.
    """
    return times([config], threads=threads, workers=workers)[0]


def times(configs: Sequence[TrialConfig], *, threads: int, workers: int = 1) -> list[StepTimes]:
    """`time_steps` of several trials; reads each data set once, and holds one at a time."""
    from trainables import survey as timed

    return timed.times(configs, threads=threads, workers=workers)
