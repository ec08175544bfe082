"""Batches: the same for the same seed, shared by several workers without loss, and no trace in the global state."""

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.config import Augment, DataConfig
from trainables.data import load_data
from trainables.data.images import MemoryImages, statistics
from trainables.data.splits import Batch, loader, stratified
from trainables.errors import ConfigError, DataMissingError

AUGMENTS: tuple[Augment, ...] = ("none", "flip", "crop-flip", "resized-crop-flip")


def images_in_memory(count: int, augment: Augment = "none") -> MemoryImages:
    """Each image's label is its place."""
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=drawn, dtype=torch.uint8)
    return MemoryImages(images, torch.arange(count), *statistics(images), augment)


def same(found: list[Batch], expected: list[Batch]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    both = [(a, b) for batches in pairs for a, b in zip(*batches, strict=True)]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in both)


def labels(batches: list[Batch]) -> list[int]:
    return [label for batch in batches for label in batch.labels.tolist()]


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("workers", [0, 2])
def test_seed_and_epoch_alone_decide_the_batches_and_global_random_state_is_untouched(
    augment: Augment, workers: int
) -> None:
    def batches(*, seed: int = 3, epoch: int = 5) -> list[Batch]:
        made = loader(
            images_in_memory(50, augment), batch_size=16, shuffle=True, seed=seed, epoch=epoch, workers=workers
        )
        return list(made)

    first = batches()
    torch.manual_seed(123)
    random.seed(4)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert same(batches(), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    for other in (batches(epoch=6), batches(seed=4)):
        assert labels(other) != labels(first)


def test_neighbouring_seeds_and_epochs_have_nothing_in_common() -> None:
    orders = [
        labels(list(loader(images_in_memory(64), batch_size=64, shuffle=True, seed=seed, epoch=epoch)))
        for seed in range(6)
        for epoch in range(6)
    ]
    assert len({tuple(order) for order in orders}) == 36
    # Two random orders of 64 agree in one place on average.
    agreements = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairwise(orders)]
    assert sum(agreements) / len(agreements) < 2


def test_augmentation_is_new_each_epoch_for_the_same_image() -> None:
    images = images_in_memory(1, "resized-crop-flip")
    found = [next(iter(loader(images, batch_size=1, shuffle=True, seed=0, epoch=epoch)))[0] for epoch in range(8)]
    assert len({tuple(batch.flatten().tolist()) for batch in found}) == 8


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_shares_of_several_workers_put_together_are_the_batches_of_one(augment: Augment, world_size: int) -> None:
    def batches(rank: int, world_size: int) -> list[Batch]:
        return list(
            loader(
                images_in_memory(70, augment),
                batch_size=16,
                shuffle=True,
                seed=1,
                epoch=2,
                rank=rank,
                world_size=world_size,
            )
        )

    by_rank = [batches(rank, world_size) for rank in range(world_size)]
    together = [Batch(*map(torch.cat, zip(*step, strict=True))) for step in zip(*by_rank, strict=True)]
    assert same(together, batches(0, 1))
    assert {len(batch.images) for batches in by_rank for batch in batches} == {16 // world_size}


@pytest.mark.parametrize("augment", ["none", "resized-crop-flip"])
def test_decoding_in_other_processes_gives_the_same_batches(
    tmp_path: Path, write_image_folder: Callable[..., None], augment: Augment
) -> None:
    write_image_folder(tmp_path)
    train = load_data(DataConfig(name="imagefolder", image_size=12, root=str(tmp_path), augment=augment)).train
    here, there = (
        list(loader(train, batch_size=4, shuffle=True, seed=0, epoch=0, workers=workers)) for workers in (0, 2)
    )
    assert len(here) == 3
    assert same(here, there)


@pytest.mark.parametrize("count", [3, 16, 17, 40, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once_over_all_workers_and_in_order(count: int, world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        made = loader(
            images_in_memory(count, "resized-crop-flip"),
            batch_size=16,
            shuffle=False,
            seed=0,
            epoch=0,
            rank=rank,
            world_size=world_size,
        )
        batches = list(made)
        assert len(made) == len(batches)
        assert all(len(batch.images) > 0 for batch in batches)
        assert labels(batches) == sorted(labels(batches))
        seen += labels(batches)
    assert sorted(seen) == list(range(count))


def test_evaluation_never_augments() -> None:
    images = images_in_memory(20, "resized-crop-flip")
    (found, *_), *rest = loader(images, batch_size=20, shuffle=False, seed=0, epoch=0)
    assert rest == []
    assert torch.equal(found, (images.images.float() - images.mean) / images.std)


def test_an_epoch_of_training_is_a_permutation_less_the_last_incomplete_batch() -> None:
    made = loader(images_in_memory(50), batch_size=16, shuffle=True, seed=0, epoch=0)
    batches = list(made)
    assert [len(batch.images) for batch in batches] == [16, 16, 16]
    assert len(made) == 3
    assert len(set(labels(batches))) == 48
    assert labels(batches) != sorted(labels(batches))


def test_the_same_loader_gives_the_same_epoch_again() -> None:
    made = loader(images_in_memory(40, "crop-flip"), batch_size=8, shuffle=True, seed=0, epoch=0)
    assert same(list(made), list(made))


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size", "shuffle", "message"),
    [
        (40, 64, 1, True, "batch_size is 64, but there are only 40 training images; give at most 40"),
        (3, 16, 4, False, "4 workers cannot share 3 images in batches of 16"),
        (40, 2, 4, False, "4 workers cannot share 40 images in batches of 2"),
    ],
)
def test_shares_that_cannot_be_made_are_errors_with_the_numbers(
    count: int, batch_size: int, world_size: int, shuffle: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        loader(images_in_memory(count), batch_size=batch_size, shuffle=shuffle, seed=0, epoch=0, world_size=world_size)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_told_in_one_line_also_from_another_process(
    tmp_path: Path, write_image_folder: Callable[..., None], workers: int
) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "val" / "dog" / "1.png").write_bytes(b"no image")
    validation = load_data(DataConfig(name="imagefolder", image_size=8, root=str(tmp_path))).validation
    with pytest.raises(DataMissingError, match=r"dog/1\.png: cannot be read") as caught:
        list(loader(validation, batch_size=2, shuffle=False, seed=0, epoch=0, workers=workers))
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.8, 1.0])
def test_a_stratified_choice_has_the_share_of_each_class_and_at_least_one(fraction: float) -> None:
    sizes = [100, 7, 1, 33]
    every: Tensor = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    chosen = stratified(every, fraction, seed=0)
    assert torch.equal(chosen, chosen.unique())
    assert every[chosen].bincount(minlength=4).tolist() == [max(1, round(size * fraction)) for size in sizes]
    assert torch.equal(chosen, stratified(every, fraction, seed=0))
    if 0.1 <= fraction < 1:
        assert not torch.equal(chosen, stratified(every, fraction, seed=1))
