"""Expected costs against the sum over all policies; the barrier against its closed form and finite differences."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from trainables.allocate import ceilings
from trainables.bops import COUNT_OF
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.counting import measure
from trainables.errors import ConfigError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import GmpqConfig
from trainables.risks import budget_barrier
from trainables.supernet import Supernet, assign_roles, build_supernet

LIMITS = {"bops_g": 10**6, "bops_paper_g": 3 * 10**5, "storage_mb": 7000, "mean_act_bits": 9000, "compression": 10**5}


class Branches(nn.Module):
    """A searched layer alone, one that shares its activation with a pinned one, an attention product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b, self.c = (nn.Conv2d(i, o, 1) for i, o in ((3, 4), (4, 6), (6, 5), (6, 5)))
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.a(self.stem(images).relu()).relu()
        x = (self.b(x) + self.c(x)).flatten(2)
        return self.head((x @ (x.transpose(1, 2) @ x)).mean(2))


def supernet(**network: object) -> Supernet:
    net = Branches()
    costs = measure(net, torch.randn(2, 3, 4, 4))
    config = GmpqConfig(zeta=0.1, eta=0.0, weight_bits=(2, 5), act_bits=(3, 4))
    found = build_supernet(net, costs, assign_roles(costs, NetworkConfig(name="net", **network)), config)
    for seed, logits in enumerate(found.bit_logits()):
        torch.manual_seed(seed)
        logits.data.normal_()
    return found


@pytest.mark.parametrize("network", [{}, {"pinned": {"c": 6}}])
def test_the_expected_cost_is_the_mean_over_all_policies(network: dict[str, object]) -> None:
    net = supernet(**network)
    choices, mean = net.choices("net"), dict.fromkeys(LIMITS, 0.0)
    for weights in itertools.product(*(scores.widths for scores in choices.weights.values())):
        for acts in itertools.product(*(scores.widths for scores in choices.acts.values())):
            policy = choices.policy(
                dict(zip(choices.weights, weights, strict=True)), dict(zip(choices.acts, acts, strict=True))
            )
            counts, chance = net.costs.counts(policy), math.exp(choices.score(policy))
            for name in LIMITS:
                mean[name] += chance * getattr(counts, COUNT_OF[name])
    assert len(choices.acts) == 2
    found = net.usage(LIMITS)
    expected = torch.tensor([mean[name] / most for name, most in LIMITS.items()])
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=0)


def test_a_policy_at_the_limit_uses_all_of_it() -> None:
    net = supernet()
    for logits in net.bit_logits():
        logits.data.copy_(torch.tensor([40.0, 0.0]))
    choices = net.choices("net")
    cost = net.costs.of(choices.best)
    limits = BudgetConfig(**{name: cost[name] for name in ("bops_g", "bops_paper_g", "storage_mb", "mean_act_bits")})
    torch.testing.assert_close(net.usage(ceilings(choices, net.costs, limits)).detach(), torch.ones(4))


def test_the_barrier_is_a_logarithm_inside_and_its_parabola_outside() -> None:
    def barrier(usage: float) -> float:
        return float(budget_barrier(torch.tensor([usage], dtype=torch.float64)))

    assert barrier(0.0) == 0.0
    assert barrier(0.5) == pytest.approx(math.log(2))
    assert barrier(0.9) == pytest.approx(math.log(10))
    # (s/δ − 2)² of s = 0, −0.1 and −2, with δ = 0.1.
    assert barrier(1.0) == pytest.approx((4 - 1) / 2 + math.log(10))
    assert barrier(1.1) == pytest.approx((9 - 1) / 2 + math.log(10))
    assert barrier(3.0) == pytest.approx((22**2 - 1) / 2 + math.log(10))
    both = budget_barrier(torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert float(both) == pytest.approx(barrier(0.5) + barrier(1.0))


def test_the_barrier_is_smooth_where_its_pieces_meet() -> None:
    near = torch.tensor([0.9 - 1e-9, 0.9 + 1e-9], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(budget_barrier(near), near, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), near)
    assert first.tolist() == pytest.approx([10.0, 10.0], rel=1e-6)
    assert second.tolist() == pytest.approx([100.0, 100.0], rel=1e-6)


def test_the_gradient_of_the_barrier_passes_finite_differences_and_is_finite_far_outside() -> None:
    usage = torch.tensor([0.0, 0.4, 0.89, 0.95, 1.0, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(budget_barrier, (usage,))
    net = supernet()
    budget_barrier(net.usage(dict.fromkeys(LIMITS, 1))).backward()
    for logits in net.bit_logits():
        assert torch.isfinite(logits.grad).all()
        # Down from the wider width.
        assert logits.grad[1] > 0 > logits.grad[0]


def test_a_barrier_needs_a_budget() -> None:
    settings = {
        "network": NetworkConfig(name="resnet8"),
        "data": DataConfig(name="digits", image_size=8),
        "reference": ReferenceConfig(epochs=1),
        "method": GmpqConfig(zeta=0.1, eta=0.0, barrier=0.5),
        "finetune": FinetuneConfig(epochs=1),
    }
    with pytest.raises(ConfigError, match=r"method\.barrier is 0\.5, but there is no budget"):
        TrialConfig(**settings)
    assert TrialConfig(**settings, budget=BudgetConfig(bops_g=1.0)).method.barrier == 0.5
