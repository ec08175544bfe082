"""Risks against loops that spell the equations out."""

import pytest
import torch

from trainables.method_config import Concavity
from trainables.risks import complexity_risk, concentrate, concentration, hardness, imitation_risk


def test_the_exponent_is_equation_10() -> None:
    weight_bits, act_bits = torch.tensor([2.0, 3.5, 4.0]), torch.tensor([3.0, 2.5, 4.0])
    looped = sum((4 / float(w)) * (6 / float(a)) for w, a in zip(weight_bits, act_bits, strict=True)) / 3
    found = concentration(weight_bits.requires_grad_(), act_bits, capacity=24.0)
    assert float(found) == pytest.approx(looped, rel=1e-6)
    assert not found.requires_grad


@pytest.mark.parametrize(("concavity", "power"), [("sqrt", 0.5), ("linear", 1), ("square", 2)])
def test_the_exponents_of_other_concavity_are_equation_16(concavity: Concavity, power: float) -> None:
    weight_bits, act_bits = torch.tensor([2.0, 3.5, 4.0]), torch.tensor([3.0, 2.5, 4.0])
    pairs = zip(weight_bits.tolist(), act_bits.tolist(), strict=True)
    looped = sum((4 / w) ** power * (6 / a) ** power for w, a in pairs) / 3
    found = concentration(weight_bits, act_bits, capacity=24.0, concavity=concavity)
    assert float(found) == pytest.approx(looped, rel=1e-6)


def test_hardness_is_the_ratio_of_task_risks_from_1_to_6() -> None:
    ours = torch.tensor([0.3, 2.0, 0.1, 9.0, 0.5, 0.0], requires_grad=True)
    theirs = torch.tensor([0.2, 0.5, 0.4, 1.0, 0.0, 0.0])
    found = hardness(ours, theirs)
    assert found.tolist() == pytest.approx([1.5, 4.0, 1.0, 6.0, 6.0, 1.0])
    assert not found.requires_grad


def test_the_imitation_risk_of_equation_14_has_an_exponent_for_each_image() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
    exponents = torch.tensor([1.0, 2.5, 6.0])
    alone = [imitation_risk(ours[i : i + 1], theirs[i : i + 1], p=float(exponents[i]), top_k=9) for i in range(3)]
    torch.testing.assert_close(imitation_risk(ours, theirs, p=exponents, top_k=9), torch.stack(alone).mean())


def test_the_releases_form_is_the_mean_square_between_maps_of_unit_length() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.rand(5, 3, 4, dtype=torch.float64), torch.rand(5, 3, 4, dtype=torch.float64)
    total = 0.0
    for q, f in zip(ours.flatten(1).tolist(), theirs.flatten(1).tolist(), strict=True):
        length_q = sum(value**2 for value in q) ** 0.5
        length_f = sum(value**6 for value in f) ** 0.5
        highest = sorted(zip(f, q, strict=True), reverse=True)[:7]
        total += sum((mine / length_q - value**3 / length_f) ** 2 for value, mine in highest) / 7
    found = imitation_risk(ours, theirs, p=3.0, top_k=7, form="release")
    assert float(found) == pytest.approx(total / 5, rel=1e-9)
    assert float(imitation_risk(theirs * 4, theirs, p=1.0, top_k=12, form="release")) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.7])
@pytest.mark.parametrize("top_k", [3, 12, 500])
def test_the_imitation_risk_is_equation_9(p: float, top_k: int) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.rand(5, 3, 4, dtype=torch.float64), torch.rand(5, 3, 4, dtype=torch.float64)
    total = 0.0
    for q, f in zip(ours.tolist(), theirs.tolist(), strict=True):
        pixels = [(f[i][j], q[i][j]) for i in range(3) for j in range(4)]
        mass = sum(value**p for value, _ in pixels)
        highest = sorted(pixels, reverse=True)[:top_k]
        total += sum((mine - value**p / mass) ** 2 for value, mine in highest)
    assert float(imitation_risk(ours, theirs, p=p, top_k=top_k)) == pytest.approx(total / 5, rel=1e-9)


def test_the_target_keeps_order_and_sums_to_one_even_where_powers_underflow() -> None:
    maps = torch.tensor([[[1e-20, 3e-20], [2e-20, 0.0]]])
    target = concentrate(maps, 4.0)
    assert float(target.sum()) == pytest.approx(1.0)
    assert target.flatten().argsort().tolist() == maps.flatten().argsort().tolist()
    assert torch.equal(concentrate(torch.zeros(1, 2, 2), 2.0), torch.zeros(1, 2, 2))


def test_the_gradient_to_the_map_is_right() -> None:
    torch.manual_seed(0)
    ours = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    theirs = torch.rand(2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: imitation_risk(m, theirs, p=1.5, top_k=4), (ours,))


def test_complexity_is_one_at_the_start_and_its_gradient_passes_finite_differences() -> None:
    macs = torch.tensor([100.0, 7.0, 30.0], dtype=torch.float64)
    widths = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    start = float((macs * 9).sum())

    def risk(weight_logits: torch.Tensor, act_logits: torch.Tensor) -> torch.Tensor:
        weight_bits, act_bits = weight_logits.softmax(1) @ widths, act_logits.softmax(1) @ widths
        return complexity_risk(weight_bits, act_bits, macs=macs, start=torch.tensor(start))

    zeros = torch.zeros(3, 3, dtype=torch.float64)
    assert float(risk(zeros, zeros)) == pytest.approx(1.0)
    torch.manual_seed(0)
    logits = [torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(risk, logits)
