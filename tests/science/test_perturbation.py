"""The loss that rounding adds: against loops over images in double precision, and Hessians against the exact ones."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.errors import CoverageError, DivergedError
from trainables.hessian_trace import HessianTraces, mean_and_error
from trainables.methods.hawq import counted_traces, curvature_losses
from trainables.models import build_network
from trainables.perturbation import LossPerturbation
from trainables.quantizers.rounding import rounded

WIDTHS = (1, 2, 3, 5)


class Twice(nn.Module):
    """One convolution that runs twice, and operations in place behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        x = F.relu_(self.twice(x).add_(x))
        x = F.relu_(self.twice(x))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A layer that reads [images, tokens, features] and one that reads [images·windows, tokens, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.tokens = nn.Linear(6, 6)
        self.windows = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.embed(x).flatten(2).mT).tanh()
        x = self.windows(x.reshape(-1, 2, 6)).tanh().reshape(len(x), -1, 6)
        return self.head(x.mean(1))


class Mixed(nn.Module):
    """The images of a batch along the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.tokens = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0)


def convolutions() -> nn.Module:
    """Strides, dilation, groups, paddings of all kinds, rectangular kernels, normalisation, operations in place."""
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, (3, 2), stride=(1, 2), padding=(2, 1), groups=4),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(6, 6, 1, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 1, padding=1, padding_mode="reflect"),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.LazyLinear(5))


def prepared(make: Callable[[], nn.Module], images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = make().double()
    net.train()(images)
    return net.eval().requires_grad_(False)


def batch(count: int = 6, size: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=random, dtype=torch.float64)
    return images, torch.randint(0, 5, (count,), generator=random)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def changes_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: rounded(weight, WIDTHS, "minmax") - weight for name, weight in weights_of(net).items()}


def by_definition(net: nn.Module, changes: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Image by image, layer by layer, width by width."""
    weights = weights_of(net)
    found = torch.zeros(len(changes), len(WIDTHS), dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        loss_of = [weight.requires_grad_() for weight in weights.values()]
        grads = torch.autograd.grad(cross_entropy(net(image[None]), label[None]), loss_of)
        for row, (grad, change) in enumerate(zip(grads, changes.values(), strict=True)):
            for column in range(len(WIDTHS)):
                found[row, column] += (grad * change[column]).sum() ** 2 / 2
    net.requires_grad_(False)
    return found


@pytest.mark.parametrize(
    "make",
    [convolutions, Twice, Tokens, lambda: build_network("resnet8", num_classes=5, image_size=8)],
    ids=["convolutions", "a layer that runs twice", "tokens", "resnet8"],
)
def test_squares_are_those_of_a_loop_over_images_layers_and_widths(make: Callable[[], nn.Module]) -> None:
    torch.set_num_threads(1)
    images, labels = batch(count=4)
    net = prepared(make, images)
    changes = changes_of(net)
    found = LossPerturbation(net, changes)
    found.check_apart(images)
    expected = by_definition(net, changes, images, labels)
    assert bool((expected > 0).all())
    torch.testing.assert_close(found.squares(images, labels), expected, rtol=1e-9, atol=1e-20)
    # Nothing stays behind.
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())


def test_gradients_of_a_few_images_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batch()
    net = prepared(Tokens, images)
    whole = LossPerturbation(net, changes_of(net)).squares(images, labels)
    monkeypatch.setattr("trainables.perturbation._ENTRIES", {"cpu": 1})
    torch.testing.assert_close(LossPerturbation(net, changes_of(net)).squares(images, labels), whole)


def test_it_is_the_square_of_the_product_and_not_a_sum_of_squares() -> None:
    """Two weights whose changes undo each other: nothing is lost, whatever each would cost alone."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).requires_grad_(False).eval()
    images = torch.tensor([[1.0, 1.0], [2.0, 2.0]]).reshape(2, 2, 1, 1)
    changes = torch.tensor([[[0.3, -0.3], [0.1, -0.1]], [[0.3, 0.3], [0.0, 0.0]]])
    undone, alone = LossPerturbation(net, {"1": changes}).squares(images, torch.tensor([0, 1]))[0].tolist()
    assert undone == pytest.approx(0.0, abs=1e-12)
    assert alone > 1e-3


def test_in_a_softmax_regression_that_is_right_about_chances_it_is_the_true_second_order_loss() -> None:
    """Labels drawn from the network's own probabilities: then g·gᵀ is the Hessian in the mean (proposition 1)."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 4)).double().requires_grad_(False).eval()
    images = torch.randn(40_000, 3, 1, 1, dtype=torch.float64)
    labels = torch.multinomial(net(images).softmax(1), 1)[:, 0]
    change = 0.01 * torch.randn(1, 4, 3, dtype=torch.float64)
    found = LossPerturbation(net, {"1": change}).squares(images, labels) / len(images)

    def loss(weight: Tensor) -> Tensor:
        return cross_entropy(F.linear(images.flatten(1), weight, net[1].bias), labels)

    hessian = torch.autograd.functional.hessian(loss, net[1].weight).reshape(12, 12)
    exact = change.flatten() @ hessian @ change.flatten() / 2
    assert float(found) == pytest.approx(float(exact), rel=0.03)


def test_a_layer_that_mixes_the_images_of_a_batch_is_named() -> None:
    images, _ = batch()
    net = prepared(Mixed, images)
    with pytest.raises(CoverageError, match=r"tokens: .*which is 16 for 6 images"):
        LossPerturbation(net, changes_of(net)).check_apart(images)
    # Sixteen places and eight images: the numbers alone tell nothing.
    with pytest.raises(CoverageError, match=r"tokens: .*which is 16 for 8 images"):
        LossPerturbation(net, changes_of(net)).check_apart(torch.cat([images, images[:2]]))


def smooth_net() -> nn.Module:
    layers = [nn.Conv2d(3, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2, stride=2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(5))


def exact_traces(net: nn.Module, layers: list[str], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Tr H_l of each layer, and the standard deviation of one probe's estimate [L] both, from the whole Hessian."""
    sizes = [net.get_parameter(f"{name}.weight").numel() for name in layers]
    start = torch.cat([net.get_parameter(f"{name}.weight").flatten() for name in layers])

    def loss(flat: Tensor) -> Tensor:
        parts = dict(zip(layers, flat.split(sizes), strict=True))
        weights = {f"{name}.weight": p.reshape(net.get_parameter(f"{name}.weight").shape) for name, p in parts.items()}
        return cross_entropy(torch.func.functional_call(net, weights, (images,)), labels)

    rows = torch.autograd.functional.hessian(loss, start).split(sizes)
    blocks = [part.split(sizes, dim=1) for part in rows]
    traces = torch.stack([row[place].trace() for place, row in enumerate(blocks)])
    variances = []
    for place, row in enumerate(blocks):
        own = row[place] - row[place].diag().diag()
        others = sum(float(block.square().sum()) for other, block in enumerate(row) if other != place)
        variances.append(2 * float(own.square().sum()) + others)
    return traces, torch.tensor(variances, dtype=torch.float64).sqrt()


def test_the_mean_over_probes_is_the_trace_of_the_exact_hessian() -> None:
    images, labels = batch(count=5, size=4)
    net, layers = prepared(smooth_net, images), ["0", "2", "5"]
    traces, spread = exact_traces(net, layers, images, labels)
    found = HessianTraces(net, layers, probes=400, seed=3).products(images, labels) / len(images)
    mean, error = mean_and_error(found)
    assert bool((spread > 0.2 * traces.abs()).all())
    # The variance is the one that theory names, and the mean lies within three of its standard errors.
    torch.testing.assert_close(found.std(1), spread, rtol=0.15, atol=0)
    torch.testing.assert_close(error, spread / 20, rtol=0.15, atol=0)
    assert bool(((mean - traces).abs() < 3 * spread / 20).all())


def test_of_a_diagonal_hessian_one_probe_tells_the_trace_exactly() -> None:
    """One feature and two classes of which one has a weight of 0: the Hessian has a single entry."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), nn.ZeroPad1d((0, 1))).double().eval()
    net.requires_grad_(False)
    images = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    products = HessianTraces(net, ["1"], probes=4, seed=0).products(images, torch.tensor([0, 1, 1]))
    chance = (images.flatten() * net[1].weight.item()).sigmoid()
    exact = float((images.flatten().square() * chance * (1 - chance)).sum())
    torch.testing.assert_close(products, torch.full((1, 4), exact, dtype=torch.float64))


class Attention(nn.Module):
    """One head over sixteen tokens of four features, fused where it may be."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 2, stride=2)
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(x).flatten(2).mT)[:, None].chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v)[:, 0].mean(1))


def test_fused_attention_has_a_trace_as_well() -> None:
    images, labels = batch(count=5, size=8)
    net, layers = prepared(Attention, images), ["qkv", "head"]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        traces, spread = exact_traces(net, layers, images, labels)
    found = HessianTraces(net, layers, probes=100, seed=3).products(images, labels) / len(images)
    assert bool(((found.mean(1) - traces).abs() < 3 * spread / 10).all())
    deit = build_network("deit_tiny_patch4", num_classes=5, image_size=8).eval().requires_grad_(False)
    products = HessianTraces(deit, ["blocks.0.attn.qkv"], probes=1, seed=0).products(images.float(), labels)
    assert bool(products.isfinite().all())


def test_a_probe_is_the_same_for_every_batch_and_another_for_every_number_and_seed() -> None:
    images, labels = batch(count=6, size=4)
    net, layers = prepared(smooth_net, images), ["0", "2"]
    traces = HessianTraces(net, layers, probes=3, seed=0)
    whole = traces.products(images, labels)
    parts = traces.products(images[:2], labels[:2]) + traces.products(images[2:], labels[2:])
    torch.testing.assert_close(parts, whole)
    more = HessianTraces(net, layers, probes=5, seed=0).products(images, labels)
    assert torch.equal(more[:, :3], whole)
    assert len({round(float(each), 9) for each in more[0]}) == 5
    assert not torch.equal(HessianTraces(net, layers, probes=3, seed=1).products(images, labels), whole)


def test_curvature_losses_are_half_the_mean_eigenvalue_times_the_squared_change() -> None:
    changes = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]])
    found = curvature_losses(torch.tensor(6.0, dtype=torch.float64), changes)
    assert found.tolist() == [6.0 / 2 * 25 / 2, 6.0 / 2 * 1 / 2]


def test_a_trace_counts_as_no_less_than_its_standard_error() -> None:
    """Means of 5, 0.5, -0.5 and 0, with a standard error of 1 each but for the last."""
    spread = torch.tensor([-3.0, 3.0, -1.0, 1.0], dtype=torch.float64) * (12 / 20) ** 0.5
    means = torch.tensor([[5.0], [0.5], [-0.5], [0.0]], dtype=torch.float64)
    products = means + spread * torch.tensor([[1.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(counted_traces("abcd", products), torch.tensor([5.0, 1.0, 1.0, 0.0]).double())
    # More bits are never worse.
    for trace in counted_traces("abcd", products):
        few, many = curvature_losses(trace, torch.tensor([[[0.5]], [[0.1]]])).tolist()
        assert few >= many
    assert counted_traces("ab", torch.tensor([[-2.0], [3.0]])).tolist() == [2.0, 3.0]


def test_noise_around_zero_ends_no_search_and_a_trace_that_is_negative_does_by_name() -> None:
    random = torch.Generator().manual_seed(0)
    for probes in (2, 3, 4, 32):
        noise = torch.randn(1000, probes, generator=random, dtype=torch.float64)
        assert bool((counted_traces(["x"] * 1000, noise) > 0).all())
    products = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-5.0, -5.1, -4.9, -5.0]], dtype=torch.float64)
    told = r"hawq: .* negative.* over 4 probes .*\(layer2: -5 ± 0\.041\); give more method\.images or method\.probes"
    with pytest.raises(DivergedError, match=told):
        counted_traces(["layer1", "layer2"], products)


def test_a_network_at_a_maximum_of_its_loss_is_told_by_its_trace() -> None:
    """The right class's logit is a sum of exp(w^2) with all w = 0: the loss falls to all sides."""

    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            made = self.layer(x.flatten(1))
            return torch.stack([made.square().exp().sum(1), torch.zeros(len(x), dtype=x.dtype)], 1)

    net = Bowl().double().eval().requires_grad_(False)
    net.layer.weight.zero_()
    images = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    products = HessianTraces(net, ["layer"], probes=4, seed=0).products(images, torch.tensor([0, 0, 0])) / 3
    assert bool((products < 0).all())
    with pytest.raises(DivergedError, match="layer: -"):
        counted_traces(["layer"], products)
