"""A finetune that is cut off at any step ends where an undisturbed one does, bit for bit, with every setting."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from trainables.api import EpochReport, ensure_reference
from trainables.checkpoint import Checkpoint
from trainables.config import BenchConfig, DataConfig, NetworkConfig, ReferenceConfig
from trainables.data.images import MemoryImages
from trainables.data.splits import LabelledImages, Normalisation
from trainables.distributed import Workers, make_repeatable
from trainables.errors import ConfigError
from trainables.finetune.classify import Finetuned, finetune
from trainables.finetune_config import FinetuneConfig
from trainables.policy import BitPolicy, LayerBits
from trainables.reference import Bench, load_bench

ALONE = Workers(0, 1, torch.device("cpu"))
DEVICE = Workers.current()
STEPS, EPOCHS = 3, 2
PLAIN = FinetuneConfig(epochs=EPOCHS, batch_size=32, quantizer="pact")
TINY = BenchConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.08, augment="crop-flip"),
    reference=ReferenceConfig(epochs=1, batch_size=32),
    finetune=PLAIN,
)
SETTINGS = {
    "adam": PLAIN,
    "adam, own rate of the quantisers, clipped": replace(PLAIN, quantizer_lr=0.01, grad_clip=1.0, warmup_epochs=0.5),
    "sgd, averaged, accumulated": replace(PLAIN, optimizer="sgd", lr=0.01, ema=0.9, accumulate=2, schedule="cosine"),
    "sgd without momentum, lsq, smooth labels": replace(
        PLAIN, optimizer="sgd", lr=0.01, momentum=0.0, quantizer="lsq", quantizer_lr=1e-3, label_smoothing=0.1
    ),
    "bf16, channels last, averaged": replace(PLAIN, amp="bf16", channels_last=True, ema=0.5),
}


class CutOffError(Exception):
    """The process was killed here."""


@dataclass
class Breaking:
    """Images that can be read so many batches of; counts those that were."""

    images: MemoryImages
    survive: int
    end: Callable[[], None]
    read: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        return self.images.labels

    @property
    def normalisation(self) -> Normalisation:
        return self.images.normalisation

    def pixels(self, places: Tensor) -> Tensor:
        return self.images.pixels(places)

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        if self.read == self.survive:
            self.end()
        self.read += 1
        return self.images.batch(places, draws)


def cut_off() -> None:
    raise CutOffError


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bench_of(store: Path, config: BenchConfig = TINY) -> Bench:
    """With few validation images: they are looked at after every epoch."""
    bench = load_bench(config, store=store)
    few = bench.data.validation
    assert isinstance(few, MemoryImages)
    few = replace(few, images=few.images[:40], labels=few.labels[:40])
    return replace(bench, data=replace(bench.data, validation=few), store=None)


def policy_of(bench: Bench, weight: int = 3, act: int = 4) -> BitPolicy:
    return BitPolicy(network="resnet8", bits={name: LayerBits(weight, act) for name in bench.costs.layers})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TINY, lambda epoch: None, store=folder)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench(store: Path) -> Bench:
    return bench_of(store)


@dataclass
class Attempt:
    """What came of a finetune: reports without times, weights, batches that were read."""

    seen: dict[int, dict[str, float]]
    found: Finetuned | None
    read: int

    @property
    def weights(self) -> dict[str, Tensor]:
        assert self.found
        return self.found.net.state_dict()


def attempt(
    bench: Bench,
    settings: FinetuneConfig,
    file: Path | None,
    *,
    survive: int = 1000,
    end: Callable[[], None] = cut_off,
    on_report: Callable[[int], None] = lambda epoch: None,
) -> Attempt:
    """A finetune that ends at the batch after so many, the one of the calibration not counted."""
    images = bench.data.train
    assert isinstance(images, MemoryImages)
    breaking = Breaking(images, survive + 1, end)
    tried = Attempt({}, None, 0)

    def report(epoch: EpochReport) -> None:
        on_report(epoch.epoch)
        tried.seen[epoch.epoch] = {k: v for k, v in epoch.metrics.items() if k != "images_per_s"}

    make_repeatable(0)
    config = replace(bench.config, finetune=settings)
    data, checkpoint = replace(bench.data, train=breaking), Checkpoint(file, bench.workers)
    try:
        tried.found = finetune(
            replace(bench, config=config, data=data, checkpoint=checkpoint), policy_of(bench), report
        )
    except CutOffError:
        torch.rand(7)
    tried.read = breaking.read - 1
    return tried


def check_same(attempts: list[Attempt], whole: Attempt) -> None:
    last = attempts[-1]
    assert {epoch: numbers for each in attempts for epoch, numbers in each.seen.items()} == whole.seen
    assert last.found
    assert whole.found
    assert last.found.accuracy == whole.found.accuracy
    assert last.found.attribution == whole.found.attribution
    assert last.weights.keys() == whole.weights.keys()
    assert [name for name, tensor in whole.weights.items() if not torch.equal(tensor, last.weights[name])] == []


def check_every_step(bench: Bench, settings: FinetuneConfig, folder: Path) -> None:
    every = settings.checkpoint_every
    whole = attempt(bench, settings, None)
    assert whole.read == STEPS * EPOCHS
    for survive in range(STEPS * EPOCHS):
        file = folder / f"{survive}.pt"
        first = attempt(bench, settings, file, survive=survive)
        assert first.found is None
        again = attempt(bench, settings, file)
        check_same([first, again], whole)
        epoch, step = divmod(survive, STEPS)
        # No image of the steps that are kept is read again.
        assert again.read == STEPS * EPOCHS - epoch * STEPS - step // every * every


@pytest.mark.parametrize(
    ("settings", "every"),
    [("adam", 1), ("adam, own rate of the quantisers, clipped", 3), ("sgd, averaged, accumulated", 2)],
)
def test_a_finetune_that_is_cut_off_at_any_step_ends_as_an_undisturbed_one(
    bench: Bench, tmp_path: Path, settings: str, every: int
) -> None:
    check_every_step(bench, replace(SETTINGS[settings], checkpoint_every=every), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_finetune_with_any_settings_is_cut_off_at_any_step(
    bench: Bench, tmp_path: Path, settings: str, every: int
) -> None:
    check_every_step(bench, replace(SETTINGS[settings], checkpoint_every=every), tmp_path)


@pytest.mark.skipif(DEVICE.device.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("amp", ["fp16", "bf16", "none"])
def test_a_finetune_on_a_gpu_is_cut_off_at_any_step(store: Path, tmp_path: Path, amp: str) -> None:
    settings = replace(PLAIN, amp=amp, channels_last=True, grad_clip=1.0, ema=0.9, accumulate=2, checkpoint_every=2)  # type: ignore[arg-type]
    check_every_step(bench_of(store), settings, tmp_path)


def test_a_finetune_that_is_cut_off_after_every_single_step_still_ends_as_an_undisturbed_one(
    bench: Bench, tmp_path: Path
) -> None:
    settings = replace(SETTINGS["sgd, averaged, accumulated"], checkpoint_every=1)
    attempts = [attempt(bench, settings, tmp_path / "checkpoint.pt", survive=1) for _ in range(STEPS * EPOCHS)]
    assert [each.read for each in attempts] == [1] * (STEPS * EPOCHS)
    check_same(attempts, attempt(bench, settings, None))


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_report_that_is_cut_off_is_made_again_from_the_last_step(bench: Bench, tmp_path: Path, epoch: int) -> None:
    settings, file = replace(PLAIN, checkpoint_every=1), tmp_path / "checkpoint.pt"

    def refuse(reported: int) -> None:
        if reported == epoch:
            raise CutOffError

    first = attempt(bench, settings, file, on_report=refuse)
    again = attempt(bench, settings, file)
    assert again.read == STEPS * (EPOCHS - epoch)
    check_same([first, again], attempt(bench, settings, None))


def test_what_ended_is_measured_again_without_a_step(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    whole = attempt(bench, PLAIN, file)
    again = attempt(bench, PLAIN, file)
    assert (again.read, again.seen) == (0, {})
    assert again.found
    assert whole.found
    assert again.found.images_per_s == whole.found.images_per_s > 0
    check_same([whole, again], whole)


def finetune_and_die(rank: int, store: str, file: str) -> None:
    torch.set_num_threads(1)
    attempt(bench_of(Path(store)), replace(PLAIN, ema=0.9, checkpoint_every=2), Path(file), survive=5, end=killed)


def test_a_process_that_is_killed_within_an_epoch_loses_nothing_but_time(store: Path, tmp_path: Path) -> None:
    file, settings = tmp_path / "checkpoint.pt", replace(PLAIN, ema=0.9, checkpoint_every=2)
    with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):
        mp.spawn(finetune_and_die, args=(str(store), str(file)), nprocs=1)
    bench = bench_of(store)
    again = attempt(bench, settings, file)
    assert again.read == 1
    whole = attempt(bench, settings, None)
    assert again.seen == {2: whole.seen[2]}
    check_same([Attempt({1: whole.seen[1]}, None, 0), again], whole)


def test_time_spent_within_an_epoch_that_was_cut_off_is_counted(bench: Bench, tmp_path: Path) -> None:
    settings, file = replace(PLAIN, checkpoint_every=2), tmp_path / "checkpoint.pt"

    def timed(survive: int) -> Checkpoint:
        images = bench.data.train
        assert isinstance(images, MemoryImages)
        data, clock = replace(bench.data, train=Breaking(images, survive, cut_off)), Checkpoint(file, ALONE)
        clock.watch("finetune")
        config = replace(bench.config, finetune=settings)
        with contextlib.suppress(CutOffError):
            finetune(replace(bench, config=config, data=data, checkpoint=clock), policy_of(bench), lambda epoch: None)
        clock.stop()
        return clock

    timed(6)
    kept = torch.load(file, weights_only=True)
    assert (kept["position"]["epoch"], kept["position"]["step"]) == (1, 2)
    assert 0 < kept["position"]["seconds"] < kept["seconds"]["finetune"]
    assert Checkpoint(file, ALONE).hours("finetune") == kept["seconds"]["finetune"] / 3600
    assert timed(1000).hours("finetune") > kept["seconds"]["finetune"] / 3600


def test_the_checkpoint_of_other_settings_counts_as_none(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    attempt(bench, replace(PLAIN, checkpoint_every=1), file, survive=4)
    averaged = replace(PLAIN, ema=0.9)
    again = attempt(bench, averaged, file)
    assert again.read == STEPS * EPOCHS
    check_same([again], attempt(bench, averaged, None))


def test_averaged_weights_are_what_is_measured_and_kept(bench: Bench) -> None:
    plain, still = attempt(bench, PLAIN, None), attempt(bench, replace(PLAIN, ema=0.999999), None)
    raw = attempt(bench, replace(PLAIN, ema=1e-12), None)
    # With no memory the average is the network itself; with a long one it has hardly left the start.
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(raw.weights[name], tensor)
    start = bench.reference.state_dict()
    for name in ("conv1.weight", "fc.weight"):
        torch.testing.assert_close(still.weights[name], start[name], rtol=0, atol=1e-5)
    assert float((plain.weights["conv1.weight"] - start["conv1.weight"]).abs().max()) > 1e-4


def test_a_finetune_in_channels_last_or_bf16_is_nearly_the_plain_one(bench: Bench) -> None:
    plain = attempt(bench, PLAIN, None).seen[1]["loss"]
    assert attempt(bench, replace(PLAIN, channels_last=True), None).seen[1]["loss"] == pytest.approx(plain, rel=1e-3)
    halved = attempt(bench, replace(PLAIN, amp="bf16"), None).seen[1]["loss"]
    assert halved != plain
    assert halved == pytest.approx(plain, rel=0.1)


@pytest.mark.skipif(DEVICE.device.type == "cuda", reason="there it works")
def test_fp16_without_a_gpu_is_refused_with_the_fix(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.amp is fp16.*no.* here; give bf16 or none"):
        attempt(bench, replace(PLAIN, amp="fp16"), None)


def test_a_policy_that_no_search_found_needs_a_quantiser(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.quantizer is 'searched', but nothing was searched"):
        attempt(bench, replace(PLAIN, quantizer="searched"), None)


def test_calibration_sees_the_same_images_on_any_number_of_workers(bench: Bench) -> None:
    alone = bench.calibration_images(32)
    second_of_three = replace(bench, workers=Workers(1, 3, torch.device("cpu")))
    assert torch.equal(second_of_three.calibration_images(32), alone)
    assert len(alone) == 32
