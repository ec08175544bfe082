import pytest
import torch
from torch import Tensor

from trainables.quantizers.grid import Grid
from trainables.quantizers.hwgq import HwgqActivations, HwgqWeights
from trainables.quantizers.pact import PactActivations, PactWeights
from trainables.quantizers.staircase import staircase

BITS = (2, 3, 4)


def branch(grid: Grid, x: Tensor, step: Tensor) -> Tensor:
    """One quantiser, element by element, by looking for the nearest of its levels."""
    levels = torch.arange(grid.lo, grid.hi + 1, dtype=x.dtype) + grid.offset
    nearest = levels[(x.reshape(-1, 1) / step - levels).abs().argmin(dim=1)].reshape(x.shape) * step
    return torch.where(x > 0, nearest, torch.zeros(())) if grid.half_wave else nearest


def mixtures() -> list[tuple[str, tuple[Grid, ...], Tensor]]:
    return [
        ("pact weights", PactWeights(BITS).grids, torch.tensor([0.7, 0.4, 0.1])),
        ("pact activations", PactActivations(BITS, signed=False).grids, torch.tensor([0.5, 0.2, 0.1])),
        ("pact signed", PactActivations(BITS, signed=True).grids, torch.tensor([0.5, 0.2, 0.1])),
        ("hwgq weights", HwgqWeights(BITS).grids, torch.tensor([0.9, 0.5, 0.3])),
        ("hwgq activations", HwgqActivations(BITS, signed=False).grids, torch.tensor([0.5, 0.3, 0.2])),
        ("hwgq signed", HwgqActivations(BITS, signed=True).grids, torch.tensor([0.9, 0.5, 0.3])),
    ]


@pytest.mark.parametrize(("grids", "steps"), [m[1:] for m in mixtures()], ids=[m[0] for m in mixtures()])
def test_the_mixture_is_the_sum_of_its_branches(grids: tuple[Grid, ...], steps: Tensor) -> None:
    torch.manual_seed(0)
    x, probs = torch.randn(4, 5, 6, 7), torch.tensor([0.2, 0.5, 0.3])
    expected = sum(p * branch(g, x, s) for p, g, s in zip(probs, grids, steps, strict=True))
    torch.testing.assert_close(staircase(x, probs, steps, grids), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("grids", "steps"), [m[1:] for m in mixtures()], ids=[m[0] for m in mixtures()])
def test_the_gradient_of_a_probability_is_the_branch_itself(grids: tuple[Grid, ...], steps: Tensor) -> None:
    torch.manual_seed(1)
    x, probs = torch.randn(200), torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
    upstream = torch.randn(200)
    (grad,) = torch.autograd.grad(staircase(x, probs, steps, grids), probs, upstream)
    expected = torch.stack([(branch(g, x, s) * upstream).sum() for g, s in zip(grids, steps, strict=True)])
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_tensors_larger_than_a_piece_and_other_memory_layouts_give_the_same() -> None:
    torch.manual_seed(2)
    grids, steps = PactActivations(BITS, signed=False).grids, torch.tensor([2.0, 6 / 7, 0.4])
    clip = torch.tensor(6.0, requires_grad=True)
    images = torch.randn(3, 40, 30, 40) * 4
    layouts = [images, images.to(memory_format=torch.channels_last), images.repeat(1, 1, 1, 2)[..., ::2]]
    layouts[2].copy_(images)
    results = []
    for layout in layouts:
        x = layout.detach().requires_grad_()
        probs = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
        y = staircase(x, probs, steps, grids, clip=clip)
        torch.manual_seed(3)
        results.append((y, *torch.autograd.grad(y, [x, probs, clip], torch.randn(3, 40, 30, 40))))
    assert images.numel() > 2 * (1 << 16)
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-3)
    whole = sum(p * branch(g, images, s) for p, g, s in zip((0.2, 0.5, 0.3), grids, steps, strict=True))
    torch.testing.assert_close(results[0][0], whole, rtol=1e-5, atol=1e-5)


def test_an_expanded_gradient_is_paired_with_the_right_elements() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    probs = torch.tensor([1.0])
    (grad,) = torch.autograd.grad(staircase(x, probs, torch.tensor([0.1]), (Grid(lo=-7, hi=7),)).sum(), x)
    assert torch.equal(grad, torch.ones(3, 4))


@pytest.mark.parametrize("name", ["pact", "pact signed", "hwgq", "hwgq signed"])
def test_the_gradient_can_be_differentiated_again_like_a_straight_through_estimator_by_autograd(name: str) -> None:
    """Against x + (Q(x) − x).detach() under clips and windows, with second derivatives in x's factor and in π."""
    signed = name.endswith("signed")
    quantizer = (PactActivations if name.startswith("pact") else HwgqActivations)(BITS, signed=signed).double()
    torch.manual_seed(4)
    base, mix, factor = torch.randn(40).double() * 4, torch.randn(3).double(), torch.rand(40).double() + 0.5

    def by_autograd(x: Tensor, probs: Tensor) -> Tensor:
        if isinstance(quantizer, PactActivations):
            clip = quantizer.clip
            low = -clip if signed else torch.zeros_like(clip)
            clipped, steps = torch.minimum(torch.maximum(x, low), clip), clip.detach() / quantizer.levels
            branches = [
                clipped + (g.codes(x, s) * s - clipped).detach() for g, s in zip(quantizer.grids, steps, strict=True)
            ]
        else:
            windows = [g.window(x, s).double() for g, s in zip(quantizer.grids, quantizer.steps, strict=True)]
            levels = [(g.codes(x, s) * s).detach() for g, s in zip(quantizer.grids, quantizer.steps, strict=True)]
            branches = [w * x + (q - w * x).detach() for w, q in zip(windows, levels, strict=True)]
        return sum(p * b for p, b in zip(probs, branches, strict=True))

    results = []
    for mixture in (quantizer, by_autograd):
        logits, scale = mix.clone().requires_grad_(), factor.clone().requires_grad_()
        x = (base * scale).requires_grad_()
        y = mixture(x, logits.softmax(0))
        (first,) = torch.autograd.grad((y * scale).square().sum(), x, create_graph=True)
        results.append((y, first, *torch.autograd.grad(first.square().sum(), [logits, scale])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
