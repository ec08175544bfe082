"""Counts and reach against brute force, and the estimate of a trial's hours against a trial."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables import api
from trainables.bops import CostModel
from trainables.config import (
    BenchConfig,
    BudgetConfig,
    DataConfig,
    EvaluationConfig,
    NetworkConfig,
    ReferenceConfig,
    TrialConfig,
)
from trainables.counting import measure
from trainables.errors import ConfigError, CoverageError, InfeasibleBudgetError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import EdmipsConfig, GmpqConfig
from trainables.models import build_network
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.timing import Clock, Note

TINY = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=16),
    reference=ReferenceConfig(epochs=2, batch_size=100),
    method=GmpqConfig(zeta=0.3, eta=1.0, epochs=2, batch_size=64),
    finetune=FinetuneConfig(epochs=2, batch_size=128),
)
ATTEMPTS = 3
"""A shared machine may be busy during the estimate and idle during the trial, or the other way round."""


def quiet(epoch: api.EpochReport) -> None:
    """No report is wanted."""


def costs_of(costs: CostModel, policy: BitPolicy) -> dict[str, float]:
    return {
        "bops_g": costs.bops_g(policy),
        "bops_paper_g": costs.of(policy)["bops_paper_g"],
        "compression": costs.full_bops_g / costs.bops_g(policy),
        "storage_mb": costs.storage(policy).mb,
        "storage_mib": costs.storage(policy).mib,
        "mean_weight_bits": sum(costs.work[name].weights * b.weight for name, b in policy.bits.items())
        / sum(work.weights for work in costs.work.values()),
        "mean_act_bits": sum(costs.work[name].inputs * b.act for name, b in policy.bits.items())
        / sum(work.inputs for work in costs.work.values()),
    }


def test_the_reach_is_that_of_all_policies() -> None:
    """Three searched layers, widths out of order, other widths for weights than for activations."""
    network = NetworkConfig(name="resnet8", stem_bits=6, pinned={"layer[12].*": 5})
    method = GmpqConfig(zeta=0.3, eta=1.0, weight_bits=(4, 2, 7), act_bits=(5, 3))
    found = api.survey(replace(TINY, network=network, method=method))
    assert found.searched == ("layer3.0.conv1", "layer3.0.conv2", "layer3.0.downsample.0")
    costs = measure(build_network("resnet8", num_classes=10, image_size=16), torch.rand(2, 3, 16, 16))
    pairs = [LayerBits(w, a) for w, a in itertools.product(method.weight_bits, method.act_bits)]
    pinned = {name: LayerBits(b, b) for name, b in found.pinned.items()}
    values = [
        costs_of(
            costs,
            BitPolicy(
                network="resnet8",
                bits=pinned | dict(zip(found.searched, bits, strict=True)),
                pinned=frozenset(pinned),
            ),
        )
        for bits in itertools.product(pairs, repeat=3)
    ]
    assert len(values) == 216
    assert set(found.reach) == set(values[0])
    for name, (low, high) in found.reach.items():
        assert low == pytest.approx(min(v[name] for v in values), rel=1e-14)
        assert high == pytest.approx(max(v[name] for v in values), rel=1e-14)
    assert found.full_bops_g == costs.full_bops_g


def test_an_activation_that_a_pinned_layer_fixes_is_not_in_reach() -> None:
    """The downsampling convolution reads what layer3.0.conv1 reads."""
    network = NetworkConfig(name="resnet8", pinned={"layer[12].*": 4, "layer3.*.downsample.*": 8})
    found = api.survey(replace(TINY, network=network))
    assert found.searched == ("layer3.0.conv1", "layer3.0.conv2")
    costs = measure(build_network("resnet8", num_classes=10, image_size=16), torch.rand(2, 3, 16, 16))
    pinned = {name: LayerBits(b, b) for name, b in found.pinned.items()}
    for end, width in (("low", 2), ("high", 4)):
        bits = pinned | {"layer3.0.conv1": LayerBits(width, 8), "layer3.0.conv2": LayerBits(width, width)}
        policy = BitPolicy(network="resnet8", bits=bits, pinned=frozenset(pinned))
        assert getattr(found.reach["bops_g"], end) == costs.bops_g(policy)


def test_a_budget_out_of_reach_is_known_before_anything_is_trained() -> None:
    found = api.survey(TINY)
    floor = found.reach["mean_weight_bits"].low
    api.check_budget(replace(TINY, budget=BudgetConfig(mean_weight_bits=floor)), found)
    too_low = BudgetConfig(mean_weight_bits=floor - 1e-9, compression=found.reach["compression"].high * 2, bops_g=1.0)
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.compression is .*: give at most") as raised:
        api.check_budget(replace(TINY, budget=too_low), found)
    assert set(raised.value.problems) == {"mean_weight_bits", "compression"}


def test_counts_are_those_of_the_data_set() -> None:
    found = api.survey(TINY)
    assert len(found.searched) == 8
    assert found.pinned == {"conv1": 8, "fc": 8}
    assert (found.training_images, found.validation_images) == (1438, 359)
    assert found.steps_per_epoch == {"reference": 1438 // 100, "finetune": 1438 // 128}
    assert found.search_steps == TINY.method.search_epochs * (1438 // 64)
    assert found.map_pixels == {"native": 4 * 4, "input": 16 * 16}
    fewer = api.survey(replace(TINY, data=replace(TINY.data, fraction=0.5)))
    assert fewer.training_images == pytest.approx(1438 / 2, abs=5)
    assert fewer.validation_images == 359


@pytest.mark.parametrize(
    ("method", "pixels"),
    [
        (GmpqConfig(zeta=0.3, eta=1.0), 16),
        (GmpqConfig(zeta=0.3, eta=1.0, resolution="input"), 256),
        (GmpqConfig(zeta=0.3, eta=0.0), 0),
        (EdmipsConfig(zeta=0.3), 0),
    ],
)
def test_a_method_ranks_maps_only_where_it_compares_them(method: GmpqConfig | EdmipsConfig, pixels: int) -> None:
    found = api.survey(replace(TINY, method=method, evaluation=EvaluationConfig(resolution="input")))
    assert (found.method_pixels, found.evaluation_pixels) == (pixels, 256)


def test_what_would_fail_after_hours_fails_at_once() -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 2000, but there are only 1438 training images"):
        api.survey(replace(TINY, finetune=replace(TINY.finetune, batch_size=2000)))
    with pytest.raises(ConfigError, match=r"network\.pinned: 'layer9' matches no layer"):
        api.survey(replace(TINY, network=NetworkConfig(name="resnet8", pinned={"layer9": 4})))
    with pytest.raises(CoverageError, match="attribution has nothing to rank"):
        api.survey(replace(TINY, data=replace(TINY.data, image_size=4)))


def test_the_hours_are_steps_times_seconds() -> None:
    survey = api.survey(TINY)
    times = api.StepTimes(
        reference_s=1.0, search_s=2.0, finetune_s=3.0, reference_validation_s=0.5, validation_s=5.0, comparison_s=7.0
    )
    passes = 359 / 256
    trial_s = 2 * 22 * 2.0 + 2 * (11 * 3.0 + passes * (5.0 + 7.0))
    assert api.trial_hours(TINY, survey, times, workers=1) == pytest.approx(trial_s / 3600)
    assert api.trial_hours(TINY, survey, times, workers=4) == pytest.approx(4 * trial_s / 3600)
    reference_s = 2 * (14 * 1.0 + passes * 0.5)
    assert api.reference_hours(TINY, survey, times, workers=1) == pytest.approx(reference_s / 3600)
    # Fewer images than a batch holds are one batch.
    large = replace(TINY, evaluation=EvaluationConfig(batch_size=1000))
    assert api.reference_hours(large, survey, times, workers=1) == pytest.approx(2 * 14.5 / 3600)


def test_loader_processes_make_batches_during_the_work() -> None:
    """Each batch takes 6 s to make and 2 s to work on; the first, which is not timed, longer."""
    asked = [0.0, 20.0, 28.0, 36.0]
    notes = [Note("training", at, at + 6.0) for at in asked] + [Note("", 44.0, 44.0)]
    clock = Clock(torch.device("cpu"), notes)
    assert [clock.seconds("training", loaders) for loaders in (0, 1, 2, 3, 9)] == [8.0, 6.0, 3.0, 2.0, 2.0]


def test_surveying_and_timing_leave_the_process_as_it_was() -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.utils.deterministic.fill_uninitialized_memory,
        )

    torch.use_deterministic_algorithms(False)
    before = state()
    api.survey(TINY)
    api.time_steps(TINY, threads=torch.get_num_threads() + 1)
    assert state() == before


@pytest.mark.parametrize("method", [GmpqConfig(zeta=0.3, eta=5.0), EdmipsConfig(zeta=0.3)])
def test_every_step_takes_time_and_a_share_of_a_batch_takes_less(method: GmpqConfig | EdmipsConfig) -> None:
    config = replace(TINY, method=replace(method, batch_size=512), finetune=FinetuneConfig(epochs=1, batch_size=512))
    whole, share = api.time_steps(config, threads=1), api.time_steps(config, threads=1, workers=8)
    assert min(whole.reference_s, whole.reference_validation_s, whole.validation_s, whole.comparison_s) > 0
    assert share.search_s < whole.search_s
    assert share.finetune_s < whole.finetune_s


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has this precision")
def test_a_search_for_a_gpu_is_timed_without_one() -> None:
    config = replace(TINY, method=replace(TINY.method, amp="fp16"), finetune=replace(TINY.finetune, amp="fp16"))
    assert api.time_steps(config, threads=1).search_s > 0


@pytest.mark.long
def test_the_estimate_is_within_a_factor_of_two_of_a_trial(tmp_path: Path) -> None:
    survey = api.survey(TINY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reference = api.ensure_reference(TINY, quiet, store=tmp_path)
        ratios = []
        for _ in range(ATTEMPTS):
            times = api.time_steps(TINY, threads=1)
            result = api.run_trial(TINY, quiet, store=tmp_path)
            ratios.append(
                (
                    api.trial_hours(TINY, survey, times, workers=1) / result.metrics["device_hours"],
                    api.reference_hours(TINY, survey, times, workers=1) / reference.device_hours,
                )
            )
            if all(0.5 <= ratio <= 2 for ratio in ratios[-1]):
                break
        else:
            pytest.fail(f"estimated over measured (trial, reference) of {ATTEMPTS} attempts: {ratios}")
    finally:
        torch.set_num_threads(threads)
    for name, (low, high) in survey.reach.items():
        assert low <= result.metrics[name] <= high
    assert result.metrics["attribution_pixels"] == survey.evaluation_pixels


PROMOTION = BenchConfig(
    network=TINY.network,
    data=TINY.data,
    reference=TINY.reference,
    finetune=FinetuneConfig(epochs=3, batch_size=128, quantizer="lsq", ema=0.9, accumulate=2),
)


def policy_found_elsewhere() -> PolicyRecord:
    """On other images, in other classes, with a stem of 6 bits."""
    work = api.count("resnet8", image_size=32, num_classes=3)
    bits = {name: LayerBits(3, 2) for name in work.layers} | {"conv1": LayerBits(6, 6)}
    policy = BitPolicy(network="resnet8", bits=bits, pinned=frozenset({"conv1"}))
    return PolicyRecord.measured(policy, work, method="gmpq", settings={}, image_size=32, num_classes=3)


def test_a_finetune_is_counted_where_it_will_be_and_its_hours_are_steps_times_seconds() -> None:
    given = policy_found_elsewhere()
    found = api.survey_finetune(PROMOTION, given, threads=1)
    here = api.count("resnet8", image_size=16, num_classes=10)
    assert found.costs["bops_g"] == here.bops_g(given.policy)
    assert found.costs["bops_g"] < given.costs["bops_g"] / 3
    assert found.costs["float_mb"] > 0
    assert found.steps == 3 * (1438 // 128)
    assert found.device_hours > found.steps * found.step_s / 3600 > 0
    many = api.survey_finetune(PROMOTION, given, threads=1, workers=3)
    assert many.steps == found.steps


def test_a_finetune_that_would_fail_later_fails_in_its_survey() -> None:
    given = policy_found_elsewhere()
    other = replace(given, policy=replace(given.policy, bits={**given.policy.bits, "layer9": LayerBits(2, 2)}))
    with pytest.raises(ConfigError, match="layers the network does not have: layer9"):
        api.survey_finetune(PROMOTION, other, threads=1)
    large = replace(PROMOTION, finetune=replace(PROMOTION.finetune, batch_size=2000))
    with pytest.raises(ConfigError, match="batch_size is 2000, but there are only 1438 training images"):
        api.survey_finetune(large, given, threads=1)
    few = replace(PROMOTION, finetune=replace(PROMOTION.finetune, batch_size=2))
    with pytest.raises(ConfigError, match="3 workers cannot share 1438 images in batches of 2"):
        api.survey_finetune(few, given, threads=1, workers=3)
    unnamed = replace(PROMOTION, finetune=replace(PROMOTION.finetune, quantizer="searched"))
    with pytest.raises(ConfigError, match="nothing was searched here; name a quantiser"):
        api.survey_finetune(unnamed, given, threads=1)
    with pytest.raises(CoverageError, match="attribution has nothing to rank"):
        api.survey_finetune(replace(PROMOTION, data=replace(PROMOTION.data, image_size=4)), given, threads=1)


@pytest.mark.long
def test_the_survey_of_a_finetune_is_within_a_factor_of_two_of_the_finetune(tmp_path: Path) -> None:
    given, threads = policy_found_elsewhere(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        api.ensure_reference(PROMOTION, quiet, store=tmp_path)
        ratios = []
        for _ in range(ATTEMPTS):
            found = api.survey_finetune(PROMOTION, given, threads=1)
            result = api.finetune(PROMOTION, given, quiet, store=tmp_path)
            ratios.append(found.device_hours / result.metrics["device_hours"])
            if 0.5 <= ratios[-1] <= 2:
                break
        else:
            pytest.fail(f"estimated over measured of {ATTEMPTS} attempts: {ratios}")
    finally:
        torch.set_num_threads(threads)
    assert {name: result.metrics[name] for name in found.costs} == dict(found.costs)
