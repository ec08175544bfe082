"""The ratio of a search step to a plain step: what is timed, and against what."""

from dataclasses import replace

import pytest
import torch

from trainables import api
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.data import load_data
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import GmpqConfig, LimpqConfig, UniformConfig
from trainables.step_ratio import ROUNDS, WARM_UP, _InTurn
from trainables.timing import Clock

TINY = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8),
    reference=ReferenceConfig(epochs=1, batch_size=64),
    method=GmpqConfig(zeta=0.3, eta=1.0, epochs=9, batch_size=16, weight_bits=(2, 4), act_bits=(2, 4)),
    finetune=FinetuneConfig(epochs=1, batch_size=64, quantizer="pact"),
    budget=BudgetConfig(),
)


def test_a_search_step_takes_longer_than_a_plain_one_and_repeats_nothing_of_it() -> None:
    before = torch.random.get_rng_state(), torch.get_num_threads()
    found = api.step_ratio(TINY, threads=1)
    assert found is not None
    assert 1.0 < found < 20.0
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


@pytest.mark.long
def test_a_joint_training_of_more_widths_takes_more_plain_steps() -> None:
    ratios = [
        api.step_ratio(
            replace(
                TINY,
                budget=BudgetConfig(bops_g=0.05),
                method=LimpqConfig(epochs=1, batch_size=16, weight_bits=bits, act_bits=bits),
            ),
            threads=1,
        )
        for bits in ((2, 3), (2, 3, 4, 5, 6))
    ]
    assert ratios[0] is not None
    assert ratios[1] is not None
    assert ratios[1] > 1.3 * ratios[0]


def test_a_method_without_steps_has_no_ratio() -> None:
    assert api.step_ratio(replace(TINY, method=UniformConfig()), threads=1) is None


class _Stopped(Clock):
    """A clock that shows what it was told: a busy machine changes no ratio."""

    shown_s = 0.0

    def now_s(self) -> float:
        return self.shown_s

    def pass_by(self, seconds: float) -> None:
        self.shown_s += seconds


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_ratio_is_that_of_the_times_between_batches_and_of_plain_steps(factor: float) -> None:
    """A plain step of 4 ms, a search step of `factor` times that. What is read for maps is no plain step."""
    plain_s, clock = 0.004, _Stopped(torch.device("cpu"))
    images = _InTurn(load_data(TINY.data).train, 16 * 20, clock, lambda batch: clock.pass_by(plain_s))
    places, draws = torch.arange(16), torch.rand(16, 5)
    for _ in range(WARM_UP + ROUNDS):
        images.batch(places, None)
        images.batch(places, draws)
        clock.pass_by(factor * plain_s)
    images.asked_s.append(clock.now_s())
    assert images.ratio() == pytest.approx(factor)
