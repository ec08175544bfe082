"""What the reference says: kept maps against asked ones, and the store's promises."""

import json
import multiprocessing
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainables.attribution import Attribution, upsample
from trainables.config import Augment, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.data.splits import Batch, loader
from trainables.errors import StorageError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import GmpqConfig, RgmpqConfig
from trainables.partition import partition, smooth
from trainables.reference import Bench, ensure_reference, load_bench
from trainables.reference_maps import AskedMaps, KeptMaps, MapSetting, keeps, kept_maps, training_maps
from trainables.report import EpochReport

TINY = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=16, fraction=0.2, augment="flip"),
    reference=ReferenceConfig(epochs=2),
    method=RgmpqConfig(zeta=0.3, eta=1.0, epochs=1, batch_size=64),
    finetune=FinetuneConfig(epochs=1, batch_size=64),
)
SMOOTHED = MapSetting(levels=3, ratio=2, gamma=0.5, size=16)


def quiet(epoch: EpochReport) -> None:
    """No report is wanted."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TINY, quiet, store=folder)
    return folder


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "references"))


@pytest.fixture
def bench(store: Path) -> Bench:
    return load_bench(TINY, store=store)


def training_batches(bench: Bench, augment: Augment = "none") -> Iterator[Batch]:
    bench.data.train.augment = augment
    return iter(loader(bench.data.train, batch_size=64, shuffle=True, seed=0, epoch=0))


def folders(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("*/maps/*") if path.is_dir())


def test_smoothed_maps_are_those_of_equations_2_to_13(bench: Bench) -> None:
    batch = next(training_batches(bench))
    observed = Attribution(bench.reference, bench.probe).observe(bench.reference, batch.images, batch.labels)
    groups = partition(observed.features, size=16, levels=3, ratio=2, gamma=0.5)
    asked = AskedMaps(bench.reference, SMOOTHED, probe=bench.probe)(batch)
    torch.testing.assert_close(asked.maps, smooth(upsample(observed.maps, 16), groups))
    torch.testing.assert_close(asked.risks, F.cross_entropy(observed.logits, batch.labels, reduction="none"))
    assert 1 < int(groups.max()) + 1 < 256


@pytest.mark.parametrize("setting", [MapSetting(), SMOOTHED, MapSetting(target_class="argmax")])
def test_kept_maps_are_what_the_reference_says_when_asked(bench: Bench, setting: MapSetting) -> None:
    kept = kept_maps(bench, setting, "train")
    asked = AskedMaps(bench.reference, setting, probe=bench.probe)
    for batch in training_batches(bench):
        unchanged = batch._replace(draws=None)
        for found, expected in zip(kept(unchanged), asked(batch), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_flipped_image_has_its_map_flipped_and_a_shifted_one_shifted() -> None:
    maps = torch.arange(2 * 64, dtype=torch.float32).view(2, 8, 8)
    places, images = torch.tensor([1, 0]), torch.zeros(2, 3, 8, 8)
    # flip, row, column, area, aspect: the first is flipped; both are moved by at most one pixel.
    draws = torch.tensor([[0.1, 0.0, 0.99, 0, 0], [0.9, 0.5, 0.5, 0, 0]])
    batch = Batch(images, torch.zeros(2), places, draws)
    flipped = KeptMaps(maps, torch.tensor([5.0, 7.0]), "flip")(batch)
    assert torch.equal(flipped.maps, torch.stack([maps[1].flip(1), maps[0]]))
    assert flipped.risks.tolist() == [7.0, 5.0]
    shifted = KeptMaps(maps, torch.zeros(2), "crop-flip")(batch).maps
    expected = torch.zeros(8, 8)
    expected[1:, :7] = maps[1, :7, 1:]
    assert torch.equal(shifted, torch.stack([expected.flip(1), maps[0]]))


def test_maps_of_the_flipped_image_are_nearly_the_flipped_maps(bench: Bench) -> None:
    """Nearly: the network's filters are not symmetric."""
    batch = next(training_batches(bench))
    asked = AskedMaps(bench.reference, MapSetting(), probe=bench.probe)
    straight, turned = asked(batch).maps, asked(batch._replace(images=batch.images.flip(3))).maps.flip(2)
    same = F.cosine_similarity(straight.flatten(1), turned.flatten(1)).mean()
    other = F.cosine_similarity(straight.flatten(1), turned.roll(1, 0).flatten(1)).mean()
    assert same > other


@pytest.mark.parametrize(
    ("augment", "setting", "expected"),
    [
        ("none", MapSetting(), True),
        ("flip", MapSetting(), True),
        ("crop-flip", MapSetting(), False),
        ("crop-flip", SMOOTHED, True),
        ("resized-crop-flip", SMOOTHED, False),
    ],
)
def test_maps_are_kept_where_they_can_follow_the_images(augment: Augment, setting: MapSetting, expected: bool) -> None:
    assert keeps(augment, setting) is expected


def test_maps_are_computed_once_for_a_setting_whatever_else_a_trial_varies(bench: Bench, store: Path) -> None:
    kept_maps(bench, SMOOTHED, "train")
    written = {path: path.stat().st_mtime_ns for path in store.rglob("maps.npy")}
    other = replace(TINY, seed=5, method=RgmpqConfig(zeta=9.0, eta=3.0, top_k=20, epochs=7, gamma=0.5))
    again = load_bench(other, store=store)
    with training_maps(again, MapSetting.of(other.method, 16)) as theirs:
        assert isinstance(theirs, KeptMaps)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("maps.npy")} == written
    kept_maps(again, replace(SMOOTHED, gamma=0.1), "train")
    kept_maps(again, SMOOTHED, "validation")
    assert len(folders(store)) == 3


def test_a_search_without_partition_has_maps_as_the_network_makes_them() -> None:
    method = RgmpqConfig(zeta=0.3, eta=1.0, levels=0, target_class="argmax")
    assert MapSetting.of(method, 16) == MapSetting(target_class="argmax")
    assert MapSetting.of(GmpqConfig(zeta=0.3, eta=1.0, resolution="input"), 16) == MapSetting()
    assert MapSetting.of(RgmpqConfig(zeta=0.3, eta=1.0, resolution="native"), 16).size == 0


def test_other_weights_make_other_maps_and_the_old_ones_are_deleted(bench: Bench, store: Path) -> None:
    before = kept_maps(bench, MapSetting(), "train").maps.clone()
    (old,) = folders(store)
    # Dates are as before; contents decide.
    with torch.no_grad():
        next(bench.reference.parameters()).mul_(-1.0)
    after = kept_maps(bench, MapSetting(), "train").maps
    (new,) = folders(store)
    assert new != old
    assert not torch.allclose(before, after)


def test_other_images_make_other_maps(bench: Bench, store: Path) -> None:
    kept_maps(bench, MapSetting(), "train")
    (old,) = folders(store)
    changed = replace(bench, data=replace(bench.data, digest=lambda: "other images"))
    kept_maps(changed, MapSetting(), "train")
    assert folders(store) != [old]


def test_maps_without_a_store_are_the_kept_ones(bench: Bench, store: Path) -> None:
    alone = kept_maps(replace(bench, store=None), SMOOTHED, "train")
    assert folders(store) == []
    for found, expected in zip((alone.maps, alone.risks), kept_from(bench), strict=True):
        assert torch.equal(found, expected)


def kept_from(bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
    kept = kept_maps(bench, SMOOTHED, "train")
    return kept.maps, kept.risks


def fill(store: str, start: str, out: str) -> None:
    """In a process of its own: waits for the start, then asks for the maps."""
    torch.set_num_threads(1)
    bench = load_bench(TINY, store=Path(store))
    while not Path(start).exists():
        pass
    maps = kept_maps(bench, SMOOTHED, "train").maps
    Path(out).write_text(json.dumps([float(maps.double().sum()), os.getpid()]))


def test_of_two_processes_that_fill_the_store_at_once_one_does_and_both_read_the_same(
    store: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    outs = [tmp_path / "a", tmp_path / "b"]
    processes = [context.Process(target=fill, args=(str(store), str(tmp_path / "go"), str(out))) for out in outs]
    for process in processes:
        process.start()
    (tmp_path / "go").touch()
    for process in processes:
        process.join()
    (one, first), (other, second) = (json.loads(out.read_text()) for out in outs)
    assert one == other
    assert first != second
    assert len(folders(store)) == 1
    assert [path.name for path in store.glob("*/maps/.*")] == []


def test_a_process_that_died_while_filling_leaves_nothing_in_the_way(bench: Bench, store: Path) -> None:
    expected = kept_maps(bench, MapSetting(), "train").maps.clone()
    (folder,) = folders(store)
    folder.rename(folder.with_name(f".{folder.name}.deadbeef"))
    (folder.with_name(f".{folder.name}.deadbeef") / "maps.npy").write_bytes(b"torn")
    assert torch.equal(kept_maps(bench, MapSetting(), "train").maps, expected)
    assert folders(store) == [folder]


def test_a_store_that_cannot_be_written_says_so_and_leaves_nothing(bench: Bench, store: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A disk that is full in the middle of a file, as far as this process can tell.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"maps cannot be written \(File too large\); make room"):
            kept_maps(bench, SMOOTHED, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folders(store) == []
    assert [path.name for path in store.glob("*/maps/.*")] == []


def test_maps_that_another_process_is_filling_are_not_taken_for_stale(bench: Bench, store: Path) -> None:
    unfinished = store / bench.record.key / "maps" / ".0123456789abcdef.deadbeef"
    unfinished.mkdir(parents=True)
    (unfinished / "record.json").touch()
    kept_maps(bench, MapSetting(), "train")
    assert unfinished.exists()
