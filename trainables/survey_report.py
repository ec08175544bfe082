"""What can be known of a trial before it runs, in values without tensors: counts, reach, times of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from trainables.config import AT_LEAST, TrialConfig
from trainables.method_config import Resolution
from trainables.report import Stage


class Reach(NamedTuple):
    """The smallest and the largest value that a policy can have."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What a trial's settings come to with its network and its data. Needs no training."""

    searched: tuple[str, ...]
    """Names of the searched layers, in order of execution."""
    pinned: Mapping[str, int]
    """Bits of the other layers, stem and head included."""
    full_bops_g: float
    """BOPs of the network in full precision, 10^9."""
    reach: Mapping[str, Reach]
    """Each cost of `CostModel.of` over all policies of the offered widths, whatever the budget."""
    map_pixels: Mapping[Resolution, int]
    """Pixels of an attribution map as the network makes it and at the image's size."""
    method_pixels: int
    """Pixels of the maps that the search ranks; 0 where it compares none."""
    evaluation_pixels: int
    """Pixels of the maps that a finished policy is measured on."""
    search_steps: int
    """Steps of the whole search: of training, or whatever else its method does again and again."""
    training_images: int
    validation_images: int
    steps_per_epoch: Mapping[Stage, int]
    """Training steps of an epoch of reference and finetune, the same for any number of workers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Seconds of one worker for its share of one batch, the making of the batch included."""

    reference_s: float
    """Training step of the full-precision network."""
    search_s: float
    """Step of the search, attribution included where the method uses it."""
    finetune_s: float
    """Training step of a policy's quantised network."""
    reference_validation_s: float
    """Validation batch of the full-precision network."""
    validation_s: float
    """Validation batch of a policy's quantised network."""
    comparison_s: float
    """Validation batch whose attribution maps, of the quantised and of the full-precision network, are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSurvey:
    """What the finetune of a policy comes to with its network and its data. Needs no training."""

    costs: Mapping[str, float]
    """`policy_file.all_costs` of the policy on the network that is finetuned."""
    step_s: float
    """Seconds of one worker for its share of one batch, the making of the batch included."""
    steps: int
    """Training steps in all."""
    device_hours: float
    """Of the whole finetune, with its measures after each epoch, over all workers; without the reference's training."""


def check_budget(config: TrialConfig, survey: Survey) -> None:
    """Raises InfeasibleBudgetError for limits of `config` that no policy keeps: each with its floor, and the fix."""
    config.budget.check_floor(
        {name: reach.high if name in AT_LEAST else reach.low for name, reach in survey.reach.items()}
    )


def trial_hours(config: TrialConfig, survey: Survey, times: StepTimes, *, workers: int) -> float:
    """Device-hours of a trial that runs to its end: search, finetune with top-1 and attribution after each epoch."""
    search_s = survey.search_steps * times.search_s
    return search_s * workers / 3600 + finetune_hours(config, survey, times, workers=workers)


def finetune_hours(config: TrialConfig, survey: Survey, times: StepTimes, *, workers: int) -> float:
    """Device-hours of a finetune alone, of one policy."""
    finetune_s = config.finetune.epochs * survey.steps_per_epoch["finetune"] * times.finetune_s
    measured_s = _validation_batches(config, survey) * (times.validation_s + times.comparison_s)
    return (finetune_s + config.finetune.epochs * measured_s) * workers / 3600


def reference_hours(config: TrialConfig, survey: Survey, times: StepTimes, *, workers: int) -> float:
    """Device-hours of the full-precision reference: training with a validation after each epoch."""
    step_s = survey.steps_per_epoch["reference"] * times.reference_s
    validation_s = _validation_batches(config, survey) * times.reference_validation_s
    return config.reference.epochs * (step_s + validation_s) * workers / 3600


def _validation_batches(config: TrialConfig, survey: Survey) -> float:
    """Batches of one pass, the incomplete last one by its share."""
    return max(1.0, survey.validation_images / config.evaluation.batch_size)
