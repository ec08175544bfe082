"""The hierarchical partition against its definition, taken literally: all pairs, in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from trainables.errors import ConfigError
from trainables.partition import coordinates, partition, smooth

ROUNDING = 1e-6
"""What differs by less than this share of the largest norm is equal, by definition."""


def by_definition(features: Tensor, *, size: int, levels: int, ratio: int, gamma: float) -> Tensor:
    """Eq. 12 with every pair of pixels of every level."""
    large = F.interpolate(features.double(), size=(size, size), mode="bilinear", align_corners=False)
    found = []
    for image in large:
        parents, step = torch.zeros(1, 1, dtype=torch.int64), size
        for level in range(1, levels + 1):
            pooled = F.avg_pool2d(image[None], ratio ** (levels - level), ceil_mode=True)[0]
            height, width = pooled.shape[1:]
            pixels = pooled.flatten(1).T
            norms = pixels.norm(dim=1)
            limit = gamma * norms.std(unbiased=False) + ROUNDING * norms.max()
            similar = torch.cdist(pixels, pixels, compute_mode="donot_use_mm_for_euclid_dist") <= limit
            owner = parents[torch.arange(height)[:, None] // step, torch.arange(width)[None] // step].flatten()
            _, labels = connected_components((similar & (owner[:, None] == owner[None])).numpy(), directed=False)
            parents, step = in_order(torch.from_numpy(labels)).view(height, width), ratio
        found.append(parents)
    return torch.stack(found)


def in_order(labels: Tensor) -> Tensor:
    """Labels 0, 1, … in the order in which they first appear."""
    _, firsts, inverse = np.unique(labels.numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(firsts.argsort().argsort()[inverse])


def random_features(seed: int, *, channels: int, side: int) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, side, side, generator=drawn).relu()


@pytest.mark.parametrize("gamma", [0.0, 0.05, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_groups_are_those_of_the_definition(levels: int, ratio: int, gamma: float) -> None:
    for seed, (side, channels, size) in enumerate([(4, 16, 16), (7, 20, 28), (5, 64, 32), (2, 1, 21)]):
        features = random_features(seed, channels=channels, side=side)
        settings = {"size": size, "levels": levels, "ratio": ratio, "gamma": gamma}
        assert torch.equal(partition(features, **settings).long(), by_definition(features, **settings)), settings


@pytest.mark.parametrize("levels", [1, 3])
def test_groups_are_those_of_the_definition_where_many_activations_repeat(levels: int) -> None:
    for seed in range(10):
        features = random_features(seed, channels=3, side=5).round()
        settings = {"size": 30, "levels": levels, "ratio": 2, "gamma": 0.05}
        expected = by_definition(features, **settings)
        assert torch.equal(partition(features, **settings).long(), expected)
        assert int(expected.max()) + 1 < 30 * 30


def test_a_map_without_change_is_one_group_and_one_with_two_halves_has_two() -> None:
    flat = torch.ones(1, 8, 4, 4)
    assert int(partition(flat, size=64, levels=3, ratio=2, gamma=0.0).max()) == 0
    halves = torch.zeros(1, 8, 2, 2)
    halves[:, :4, :, 0], halves[:, 4:, :, 1] = 1.0, 1.0
    # Half of the columns lie outside of the native centres, where nothing is interpolated.
    groups = partition(halves, size=4, levels=1, ratio=2, gamma=0.0)
    assert groups[0, :, 0].unique().tolist() == [0]
    assert [int(groups[0, 0, column]) for column in range(4)] == [0, 1, 2, 3]
    assert int(partition(halves, size=4, levels=1, ratio=2, gamma=1e6).max()) == 0


def test_the_number_of_threads_changes_nothing() -> None:
    features = random_features(3, channels=8, side=4).repeat(4, 1, 1, 1)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(partition(features, size=32, levels=3, ratio=2, gamma=0.5))
    torch.set_num_threads(before)
    assert torch.equal(*found)
    assert torch.equal(found[0][:2], found[0][2:4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_activations_on_a_gpu_have_the_groups_of_those_on_the_cpu() -> None:
    features = random_features(4, channels=64, side=7)
    settings = {"size": 56, "levels": 3, "ratio": 2, "gamma": 0.5}
    assert torch.equal(partition(features.cuda(), **settings), partition(features, **settings))


def test_a_smoothed_map_has_each_groups_mean() -> None:
    groups = torch.tensor([[[0, 0, 1], [0, 2, 1]], [[0, 1, 2], [3, 4, 5]]], dtype=torch.int32)
    maps = torch.tensor([[[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]] * 2)
    expected = torch.tensor([[[3.0, 3.0, 3.5], [3.0, 5.0, 3.5]], [[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]])
    assert torch.equal(smooth(maps, groups), expected)


def test_smoothing_keeps_the_sum_and_does_nothing_the_second_time() -> None:
    groups = partition(random_features(5, channels=4, side=4), size=32, levels=3, ratio=2, gamma=1.0)
    maps = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    once = smooth(maps, groups)
    assert not torch.allclose(once, maps)
    torch.testing.assert_close(once.sum((1, 2)), maps.sum((1, 2)))
    torch.testing.assert_close(smooth(once, groups), once)


def test_coordinates_keep_norms_and_distances_from_channels_as_from_pixels() -> None:
    for channels in (5, 40):
        features = random_features(6, channels=channels, side=4).double()
        points = coordinates(features)
        assert points.shape[3] <= min(channels, 16)
        pixels = features.flatten(2).transpose(1, 2)
        torch.testing.assert_close(points.flatten(1, 2).norm(dim=2), pixels.norm(dim=2))
        torch.testing.assert_close(torch.cdist(points.flatten(1, 2), points.flatten(1, 2)), torch.cdist(pixels, pixels))


def test_a_map_larger_than_the_size_and_windows_larger_than_the_map() -> None:
    with pytest.raises(ConfigError, match="the map has 8x8 pixels; give a size of at least that, not 4"):
        partition(torch.ones(1, 2, 8, 8), size=4, levels=1, ratio=2, gamma=0.0)
    features = random_features(7, channels=4, side=4)
    many = partition(features, size=8, levels=40, ratio=4, gamma=0.5)
    assert torch.equal(many, partition(features, size=8, levels=3, ratio=4, gamma=0.5))


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"ratio": 1}, {"gamma": -0.1}])
def test_settings_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    settings = {"levels": 3, "ratio": 2, "gamma": 0.05} | wrong
    with pytest.raises(ConfigError, match="give at least 1, 2 and 0"):
        partition(torch.ones(1, 2, 2, 2), size=4, **settings)
