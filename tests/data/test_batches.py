"""Where batches are made: loader processes that stay, and images that are kept on a device."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch import Tensor

from tests.data.test_splits import AUGMENTS, images_in_memory, same
from trainables.config import Augment
from trainables.data import images as images_module
from trainables.data import processes
from trainables.data.batches import LabelledImages, Normalisation
from trainables.data.splits import Batch, ChosenImages, loader
from trainables.errors import DataMissingError


class FromElsewhere:
    """Images that are not in memory: labels are places, and `images` tell which process made them."""

    normalisation = Normalisation((0.0,), (1.0,))

    def __init__(self, count: int, damaged: int = -1) -> None:
        self.labels, self._damaged = torch.arange(count), damaged

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, places: Tensor) -> Tensor:
        raise NotImplementedError

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        if self._damaged in places.tolist():
            raise DataMissingError(f"image {self._damaged}: cannot be read; get it again.")
        drawn = torch.zeros(len(places)) if draws is None else draws.sum(1)
        return torch.stack([drawn, torch.full((len(places),), float(os.getpid()))], dim=1), places


def makers(batches: list[Batch]) -> set[int]:
    return {int(pid) for batch in batches for pid in batch.images[:, 1].tolist()}


def without_makers(batches: list[Batch]) -> list[Batch]:
    return [batch._replace(images=batch.images[:, :1]) for batch in batches]


def epochs(images: FromElsewhere, epoch: int, workers: int, **others: int) -> list[Batch]:
    return list(loader(images, batch_size=8, shuffle=True, seed=3, epoch=epoch, workers=workers, **others))


def test_the_same_processes_make_every_epoch_and_change_nothing() -> None:
    images = FromElsewhere(40)
    first, second = epochs(images, 0, 2), epochs(images, 1, 2)
    assert len(makers(first)) == 2
    assert makers(first) == makers(second)
    assert os.getpid() not in makers(first)
    for epoch, found in enumerate((first, second)):
        assert same(without_makers(found), without_makers(epochs(images, epoch, 0)))
    shares = [epochs(images, 1, 2, rank=rank, world_size=3) for rank in range(3)]
    together = [Batch(*map(torch.cat, zip(*step, strict=True))) for step in zip(*shares, strict=True)]
    assert same(without_makers(together), without_makers(second))
    assert makers(together) == makers(first)


def test_epochs_that_are_left_early_gone_on_with_or_read_side_by_side_keep_their_batches() -> None:
    images = FromElsewhere(64)
    made = loader(images, batch_size=8, shuffle=True, seed=0, epoch=4, workers=2)
    expected = without_makers(list(loader(images, batch_size=8, shuffle=True, seed=0, epoch=4)))
    whole = list(made)
    left = iter(made)
    assert same(without_makers([next(left)]), expected[:1])
    del left
    rest = list(made.after(5))
    assert same(without_makers(rest), expected[5:])
    assert makers(rest) == makers(whole)
    one, other = iter(made), made.after(3)
    pairs = [(next(one), next(other)) for _ in range(5)]
    assert same(without_makers([a for a, _ in pairs]), expected[:5])
    assert same(without_makers([b for _, b in pairs]), expected[3:])


def test_an_image_that_cannot_be_read_is_told_each_time_and_batches_before_it_arrive() -> None:
    made = loader(FromElsewhere(24, damaged=5), batch_size=4, shuffle=False, seed=0, epoch=0, workers=1)
    for _ in range(2):
        with pytest.raises(DataMissingError, match="image 5: cannot be read; get it again"):
            list(made)
        assert len(list(made.after(2))) == 4
    assert next(iter(made)).labels.tolist() == [0, 1, 2, 3]


def test_a_fork_that_reads_other_sets_leaves_its_parents_processes_alone() -> None:
    images = FromElsewhere(8)
    first = makers(epochs(images, 0, 1))

    def read_others() -> None:
        for _ in range(processes.SETS + 1):
            epochs(FromElsewhere(8), 0, 1)

    child = multiprocessing.get_context("fork").Process(target=read_others)
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    assert makers(epochs(images, 1, 1)) == first


def test_no_process_stays_when_a_trial_has_ended() -> None:
    with processes.let_go():
        epochs(FromElsewhere(8), 0, 1)
        assert processes._kept
    assert not processes._kept


def test_processes_of_the_last_two_sets_are_kept() -> None:
    sets = [FromElsewhere(8) for _ in range(3)]
    first, second, third = (makers(epochs(images, 0, 1)) for images in sets)
    assert len(processes._kept) == 2
    assert makers(epochs(sets[2], 1, 1)) == third
    assert makers(epochs(sets[1], 1, 1)) == second
    assert makers(epochs(sets[0], 1, 1)) != first


def test_images_in_memory_are_made_into_batches_right_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "made", lambda *given, **named: pytest.fail("no process is needed"))
    images = images_in_memory(40, "crop-flip")
    chosen = ChosenImages(images, torch.arange(0, 40, 2))
    for some in (images, chosen):
        made = loader(some, batch_size=10, shuffle=True, seed=0, epoch=0, workers=2)
        batches = list(made)
        for batch in batches:
            expected = some.batch(batch.places, batch.draws)
            assert torch.equal(batch.images, expected[0])
            assert torch.equal(batch.labels, expected[1])
        assert same(list(made.after(1)), batches[1:])
        assert list(made.after(len(batches))) == []


def test_a_device_gets_one_copy_of_what_fits_and_of_grey_images_one_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without memory, which has shapes and types."""
    there = torch.device("meta")
    images = images_in_memory(10, "flip")
    copy = images.on(there)
    assert copy is not None
    assert copy is images.on(there)
    assert images.on(torch.device("cpu")) is images
    assert (copy.images.device, copy.images.shape, copy.augment) == (there, (10, 3, 8, 8), "flip")
    assert {tensor.device for tensor in (copy.labels, copy.mean, copy.std)} == {there}
    grey = images_in_memory(10)
    grey.images = grey.images[:, :1].clone().expand(-1, 3, -1, -1)
    monkeypatch.setattr(images_module, "DEVICE_BYTES", 10 * 64)
    moved = grey.on(there)
    assert moved is not None
    assert moved.images.stride(1) == 0
    assert images_in_memory(10).on(there) is None
    assert ChosenImages(images_in_memory(10), torch.arange(3)).on(there) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", AUGMENTS)
def test_batches_made_on_a_gpu_are_those_of_the_cpu_to_rounding(augment: Augment) -> None:
    images, gpu = images_in_memory(70, augment), torch.device("cuda")
    chosen = ChosenImages(images, torch.arange(69, -1, -1))
    for some in (images, chosen):
        here = list(loader(some, batch_size=16, shuffle=True, seed=1, epoch=2))
        there = list(loader(some, batch_size=16, shuffle=True, seed=1, epoch=2, device=gpu))
        for one, other in zip(here, there, strict=True):
            assert (other.images.device.type, other.places.device.type) == ("cuda", "cpu")
            assert torch.equal(other.labels.cpu(), one.labels)
            assert torch.equal(other.places, one.places)
            assert one.draws is not None
            assert other.draws is not None
            assert torch.equal(other.draws, one.draws)
            # A blend that rounds to the other neighbour differs by one of 255 levels.
            level = float(1 / images.std.min()) if augment == "resized-crop-flip" else 0.0
            torch.testing.assert_close(other.images.cpu(), one.images, rtol=1e-6, atol=level + 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_of_files_arrive_in_pinned_memory() -> None:
    made = loader(
        FromElsewhere(16), batch_size=8, shuffle=True, seed=0, epoch=0, workers=1, device=torch.device("cuda")
    )
    assert all(batch.images.is_pinned() and batch.labels.is_pinned() for batch in made)
