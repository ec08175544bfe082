"""Sample images, where networks look on them, their files; and a finetune of a given policy."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.api import EpochReport, TrialResult, ensure_reference, finetune, random_policies, run_trial
from trainables.attribution import rank_difference
from trainables.config import DataConfig, EvaluationConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.data import load_data
from trainables.errors import ConfigError, StorageError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import GmpqConfig
from trainables.policy import LayerBits
from trainables.policy_file import PolicyRecord
from trainables.reference import load_bench
from trainables.sample_maps import sample_images
from trainables.samples import SampleImages, SampleMaps, spread

TINY = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=16, fraction=0.2),
    reference=ReferenceConfig(epochs=1),
    method=GmpqConfig(zeta=0.3, eta=0.0, epochs=1, batch_size=64),
    finetune=FinetuneConfig(epochs=2, batch_size=128),
    images=4,
)
TIMED = {"device_hours", "search_device_hours", "search_cost_hours", "finetune_device_hours", "images_per_s"}


def quiet(epoch: EpochReport) -> None:
    """No report is wanted."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TINY, quiet, store=folder)
    return folder


@pytest.fixture(scope="module")
def found(store: Path) -> TrialResult:
    return run_trial(TINY, quiet, store=store)


def untimed(metrics: object) -> dict[str, float]:
    return {name: value for name, value in dict(metrics).items() if name not in TIMED}  # type: ignore[call-overload]


def test_images_are_the_first_of_classes_at_even_distances() -> None:
    labels = np.array([3, 3, 0, 5, 1, 0, 2, 4])
    assert spread(labels, 6).tolist() == [2, 4, 6, 0, 7, 3]
    assert spread(labels, 3).tolist() == [2, 6, 7]  # classes 0, 2, 4
    # The second of each class where there are no more classes; no image twice; all there are at most.
    assert spread(labels, 8).tolist() == [2, 4, 6, 0, 7, 3, 5, 1]
    assert spread(labels, 99).tolist() == spread(labels, 8).tolist()


def test_the_maps_of_all_images_have_the_ard_that_the_trial_measures(store: Path, found: TrialResult) -> None:
    for evaluation in (EvaluationConfig(), EvaluationConfig(resolution="input", top_k=40)):
        whole = run_trial(replace(TINY, images=10_000, evaluation=evaluation), quiet, store=store)
        assert whole.samples is not None
        assert len(whole.samples.ard) == 359
        assert whole.samples.ard.mean() == pytest.approx(whole.metrics["ard"], rel=1e-6)
    # How many are shown changes nothing else.
    first = replace(TINY, images=0)
    nothing_shown = run_trial(first, quiet, store=store)
    assert nothing_shown.samples is None
    assert untimed(nothing_shown.metrics) == untimed(found.metrics)


def test_the_images_lie_beside_the_reference_once_with_its_own_maps(store: Path, found: TrialResult) -> None:
    assert found.samples is not None
    path = SampleImages.path(store, TINY.reference_key, found.samples.samples)
    before = path.stat().st_mtime_ns
    again = run_trial(replace(TINY, seed=1), quiet, store=store).samples
    assert again is not None
    assert again.samples == found.samples.samples
    assert path.stat().st_mtime_ns == before
    shown = SampleImages.load(path)
    assert shown.digest == path.stem == found.samples.samples
    assert (shown.network, shown.data, shown.reference) == ("resnet8", "digits", TINY.reference_key)
    validation = load_data(TINY.data).validation
    assert shown.labels.tolist() == [0, 2, 5, 7]
    assert shown.class_names == ("0", "2", "5", "7")
    assert torch.equal(validation.labels[torch.from_numpy(shown.places)], torch.from_numpy(shown.labels))
    # What people see is what the network read, before it was normalised.
    seen = torch.from_numpy(shown.thumbnails).permute(0, 3, 1, 2)
    assert torch.equal(seen, validation.pixels(torch.from_numpy(shown.places)))
    pair = (torch.from_numpy(maps) for maps in (found.samples.maps, shown.maps))
    assert rank_difference(*pair, top_k=500).tolist() == pytest.approx(found.samples.ard.tolist())
    assert shown.maps.sum(axis=(1, 2)) == pytest.approx(np.ones(4), rel=1e-5)


def test_large_images_are_shown_small(store: Path) -> None:
    large = load_data(replace(TINY.data, image_size=112))
    bench = replace(load_bench(TINY, store=store), data=large)
    shown = sample_images(bench, torch.tensor([4, 2]), torch.rand(2, 7, 7))
    assert shown.thumbnails.shape == (2, 96, 96, 3)
    assert shown.labels.tolist() == large.validation.labels[[4, 2]].tolist()


def test_files_are_read_as_they_were_written_and_damage_is_told(found: TrialResult, tmp_path: Path) -> None:
    assert found.samples is not None
    path = tmp_path / "t" / "attribution.npz"
    with pytest.raises(StorageError, match=r"attribution\.npz does not exist"):
        SampleMaps.load(path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(found.samples.save, [path] * 16))
    assert [file.name for file in path.parent.iterdir()] == ["attribution.npz"]
    kept = SampleMaps.load(path)
    assert (kept.reference, kept.samples) == (found.samples.reference, found.samples.samples)
    assert np.array_equal(kept.maps, found.samples.maps)
    assert np.array_equal(kept.ard, found.samples.ard)
    for damaged in (path.read_bytes()[:-40], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"attribution\.npz cannot be read"):
            SampleMaps.load(path)
    with pytest.raises(StorageError, match=r"attribution\.npz/below: it is gone"):
        found.samples.save(path / "below" / "a file")


def test_a_given_policy_is_finetuned_and_measured_as_the_trial_that_found_it(store: Path, found: TrialResult) -> None:
    again = finetune(TINY, found.record, quiet, store=store)
    assert untimed(again.metrics) == untimed(found.metrics)
    assert again.metrics["device_hours"] == again.metrics["finetune_device_hours"] > 0
    assert again.samples is not None
    assert found.samples is not None
    assert np.array_equal(again.samples.maps, found.samples.maps)


def test_a_policy_of_other_layers_is_refused(store: Path, found: TrialResult) -> None:
    policy = found.record.policy
    other = replace(policy, bits={**policy.bits, "layer9": LayerBits(2, 2)})
    with pytest.raises(ConfigError, match="layer9"):
        finetune(TINY, replace(found.record, policy=other), quiet, store=store)


def test_a_finetune_goes_on_from_its_checkpoint_and_not_from_another_policys(
    store: Path, found: TrialResult, tmp_path: Path
) -> None:
    work = found.record.work
    assert work is not None
    (drawn,) = random_policies(found.choices, work, bops_g=found.metrics["bops_g"], count=1, seed=0)
    assert drawn != found.record.policy
    other = replace(found.record, policy=drawn)
    undisturbed = finetune(TINY, other, quiet, store=store)
    file = tmp_path / "checkpoint.pt"

    def begin(policy: PolicyRecord) -> None:
        """Leaves the checkpoint of one epoch: it is written before the next one's report."""
        seen: list[int] = []

        def second(epoch: EpochReport) -> None:
            seen.append(epoch.epoch)
            if len(seen) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(TINY, policy, second, store=store, checkpoint=file)

    for started, left in ((other, [2]), (found.record, [1, 2])):
        file.unlink(missing_ok=True)
        begin(started)
        epochs: list[int] = []
        again = finetune(
            TINY, other, lambda epoch, epochs=epochs: epochs.append(epoch.epoch), store=store, checkpoint=file
        )
        assert epochs == left
        assert untimed(again.metrics) == untimed(undisturbed.metrics)
