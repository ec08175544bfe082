"""Augmentation, resizing and normalising against brute force, image by image."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from trainables.data.images import (
    CROP_AREA,
    CROP_ASPECT,
    FileImages,
    MemoryImages,
    augmented,
    crop_boxes,
    decoded,
    statistics,
    to_rgb,
)
from trainables.data.splits import DRAWS
from trainables.errors import DataMissingError


def random_images(count: int, size: int, *, channels: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=random, dtype=torch.uint8)


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed))


def test_grey_images_are_repeated_and_resized_as_one_call_would() -> None:
    grey = random_images(1500, 12, channels=1)
    rgb = to_rgb(grey, 8)
    expected = tv.resize(grey, [8, 8], antialias=True)
    assert all(torch.equal(rgb[:, channel], expected[:, 0]) for channel in range(3))


def test_shrinking_averages_and_does_not_skip_pixels() -> None:
    stripes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::4] = 200
    inner = to_rgb(stripes, 8)[..., 2:-2].float()
    assert (inner - 50).abs().max() < 5


def test_images_of_the_right_size_are_left_as_they_are() -> None:
    images = random_images(4, 16)
    assert torch.equal(to_rgb(images, 16), images)


def test_statistics_are_those_of_all_pixels_of_a_channel() -> None:
    images = random_images(50, 9)
    images[:, 1] //= 7
    images[:, 2] = 42
    mean, std = statistics(images)
    values = images.numpy().astype(np.float64)
    np.testing.assert_allclose(mean.flatten(), values.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.flatten(), [*values.std(axis=(0, 2, 3))[:2], 1.0], rtol=1e-6)


def test_a_whole_training_set_is_normalised_to_mean_zero_and_deviation_one() -> None:
    images = random_images(64, 8)
    images[:, 0] //= 3
    found, labels = MemoryImages(images, torch.arange(64), *statistics(images)).batch(torch.arange(64), None)
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(labels, torch.arange(64))


def test_flip_mirrors_exactly_the_images_whose_first_draw_is_below_one_half() -> None:
    images, random = random_images(400, 6), draws(400)
    found = augmented(images, "flip", random)
    for image, changed, row in zip(images, found, random, strict=True):
        assert torch.equal(changed, image.flip(2) if row[0] < 0.5 else image)
    assert 160 < int((random[:, 0] < 0.5).sum()) < 240


def test_crop_flip_takes_a_window_of_the_padded_image() -> None:
    images, random = random_images(300, 16), draws(300)
    random[:, 0] = 0.9
    corners = []
    for image, changed in zip(images, augmented(images, "crop-flip", random), strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        windows = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(changed, padded[:, top : top + 16, left : left + 16])
        ]
        assert len(windows) == 1
        corners += windows
    assert len(set(corners)) == 25


def test_the_largest_draw_stays_inside_the_padded_image_at_every_size() -> None:
    last = torch.full((1, DRAWS), 1 - 2**-24)
    for size in range(1, 300):
        image = random_images(1, size)
        margin = max(1, size // 8)
        expected = torch.nn.functional.pad(image, (margin,) * 4)[:, :, 2 * margin :, 2 * margin :]
        assert torch.equal(augmented(image, "crop-flip", last), expected)


@pytest.mark.parametrize("size", [1, 5, 32])
def test_resized_crop_flip_equals_torchvision_on_the_same_box(size: int) -> None:
    images, random = random_images(100, size), draws(100)
    found = augmented(images, "resized-crop-flip", random)
    boxes = crop_boxes(random, height=size, width=size).tolist()
    for image, changed, row, box in zip(images, found, random, boxes, strict=True):
        expected = tv.resized_crop(image.float(), *box, [size, size], antialias=False)
        if row[0] < 0.5:
            expected = expected.flip(2)
        # Positions are rounded differently in the two.
        assert (changed.float() - expected).abs().max() <= 1.0


@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 300), (1, 1)])
def test_crop_boxes_lie_inside_the_image(height: int, width: int) -> None:
    tops, lefts, heights, widths = crop_boxes(draws(3000), height=height, width=width).unbind(dim=1)
    assert min(tops.min(), lefts.min()) >= 0
    assert min(heights.min(), widths.min()) >= 1
    assert (tops + heights).max() <= height
    assert (lefts + widths).max() <= width


def test_crop_boxes_have_the_areas_and_ratios_of_random_resized_crops() -> None:
    side = 1000
    _, _, heights, widths = crop_boxes(draws(20_000), height=side, width=side).double().unbind(dim=1)
    uncut = (heights < side) & (widths < side)
    share, ratio = (heights * widths / side**2)[uncut], (widths / heights)[uncut]
    assert CROP_AREA[0] - 0.002 < float(share.min()) < CROP_AREA[0] + 0.01
    assert CROP_ASPECT[0] - 0.005 < float(ratio.min()) < CROP_ASPECT[0] + 0.01
    assert CROP_ASPECT[1] - 0.01 < float(ratio.max()) < CROP_ASPECT[1] + 0.005
    # Crops of less than three quarters of the area always fit: there the area is uniform and the ratio even-handed.
    small = share < 0.7
    assert float(share[small].mean()) == pytest.approx((CROP_AREA[0] + 0.7) / 2, abs=0.01)
    assert float(ratio[small].log().mean()) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip", "resized-crop-flip"])
def test_an_image_is_changed_alike_in_any_company(augment: str) -> None:
    images, random = random_images(37, 32), draws(37)
    together = augmented(images, augment, random)
    alone = torch.cat([augmented(images[i : i + 1], augment, random[i : i + 1]) for i in range(37)])
    assert torch.equal(together, alone)
    assert torch.equal(together, images) == (augment == "none")


def test_files_are_resized_by_their_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    pixels = torch.nn.functional.interpolate(random_images(1, 5).float(), (90, 140), mode="bicubic")[0].clamp(0, 255)
    image = Image.fromarray(pixels.byte().permute(1, 2, 0).numpy())
    image.save(tmp_path / "wide.png")
    found, _ = FileImages([tmp_path / "wide.png"], torch.tensor([3]), 28).batch(torch.tensor([0]), None)
    # 28 * 256 / 224 = 32 for the shorter side, 49 for the longer; then the middle 28.
    expected = np.asarray(image.resize((49, 32), Image.Resampling.BILINEAR).crop((10, 2, 38, 30)), dtype=np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    difference = (found[0].permute(1, 2, 0).numpy() * std + mean) * 255 - expected
    assert np.abs(difference).max() < 3


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip", "resized-crop-flip"])
def test_files_become_batches_of_rgb_squares_whatever_their_shape_and_mode(
    tmp_path: Path, write_image_folder: Callable[..., None], augment: str
) -> None:
    write_image_folder(tmp_path)
    paths = sorted((tmp_path / "train").rglob("*.png"))
    files = FileImages(paths, torch.arange(len(paths)), 16, augment)
    images, labels = files.batch(torch.tensor([7, 0, 3]), draws(3))
    plain, _ = files.batch(torch.tensor([7, 0, 3]), None)
    assert images.shape == (3, 3, 16, 16)
    assert labels.tolist() == [7, 0, 3]
    assert torch.equal(images, plain) == (augment == "none")


def _claiming(png: bytes, *, side: int) -> bytes:
    """The image with a header of many more pixels: to decode it would take gigabytes."""
    header = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def test_a_damaged_image_is_an_error_with_its_path(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "noise.jpg")
    content = (tmp_path / "whole.png").read_bytes()
    damaged = {
        "cut.png": content[:60],
        "cut.jpg": (tmp_path / "noise.jpg").read_bytes()[:400],
        "text.png": b"not an image",
        "empty.jpg": b"",
        "turned.png": content[:40] + bytes(255 - byte for byte in content[40:]),
        "bomb.png": _claiming(content, side=30_000),
    }
    for name, bad in damaged.items():
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(DataMissingError, match=rf"{name}: cannot be read as an image"):
            decoded(tmp_path / name)
