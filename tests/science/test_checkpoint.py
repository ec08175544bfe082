"""A training that is cut off anywhere and goes on ends where an undisturbed one does, bit for bit."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.api import EpochReport, ensure_reference, run_trial
from trainables.checkpoint import Checkpoint, Position
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.distributed import Workers
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import GmpqConfig, RgmpqConfig
from trainables.policy import BitPolicy, LayerBits
from trainables.report import checkpoint_files

TINY = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.3, augment="crop-flip"),
    reference=ReferenceConfig(epochs=2),
    method=GmpqConfig(zeta=0.3, eta=1.0, epochs=2, batch_size=64),
    finetune=FinetuneConfig(epochs=2, batch_size=64),
)
TIMED = {"device_hours", "search_device_hours", "search_cost_hours", "finetune_device_hours", "images_per_s"}


class CutOffError(Exception):
    """The process was killed here."""


class Reports:
    """Keeps what is reported; ends the process's life after some of it."""

    def __init__(self, survive: int = 1000) -> None:
        self.survive = survive
        self.seen: dict[tuple[str, int], dict[str, float]] = {}

    def __call__(self, epoch: EpochReport) -> None:
        self.seen[epoch.stage, epoch.epoch] = untimed(epoch.metrics)
        if len(self.seen) > self.survive:
            raise CutOffError


def untimed(metrics: object) -> dict[str, float]:
    assert isinstance(metrics, dict)
    return {name: value for name, value in metrics.items() if name not in TIMED}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TINY, Reports(), store=folder)
    return folder


@pytest.mark.parametrize("survive", [0, 1, 2, 3])
def test_a_trial_goes_on_after_its_last_epoch_to_the_same_end(store: Path, tmp_path: Path, survive: int) -> None:
    whole = Reports()
    undisturbed = run_trial(TINY, whole, store=store)
    file = tmp_path / "checkpoint.pt"
    first = Reports(survive)
    with pytest.raises(CutOffError):
        run_trial(TINY, first, store=store, checkpoint=file)
    torch.rand(11)
    second = Reports()
    found = run_trial(TINY, second, store=store, checkpoint=file)
    # The epoch whose report was cut off is done again; those before it are not.
    assert len(second.seen) == 4 - survive
    assert {**first.seen, **second.seen} == whole.seen
    assert all(first.seen[key] == second.seen[key] for key in first.seen.keys() & second.seen.keys())
    assert found.record == undisturbed.record
    assert untimed(found.metrics) == untimed(undisturbed.metrics)
    assert found.metrics["device_hours"] > 0


def test_a_trial_with_kept_maps_ties_and_a_budget_goes_on_to_the_same_end(store: Path, tmp_path: Path) -> None:
    config = replace(
        TINY,
        network=replace(TINY.network, tie_residuals=True),
        method=RgmpqConfig(zeta=0.3, eta=1.0, epochs=2, batch_size=64, barrier=0.1, gamma=0.5),
        budget=BudgetConfig(compression=120.0),
    )
    undisturbed = run_trial(config, Reports(), store=store)
    for survive in (1, 3):
        file = tmp_path / f"{survive}.pt"
        with pytest.raises(CutOffError):
            run_trial(config, Reports(survive), store=store, checkpoint=file)
        found = run_trial(config, Reports(), store=store, checkpoint=file)
        assert (found.record, found.choices) == (undisturbed.record, undisturbed.choices)
        assert untimed(found.metrics) == untimed(undisturbed.metrics)


def test_time_of_attempts_that_were_cut_off_is_counted(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(CutOffError):
        run_trial(TINY, Reports(3), store=store, checkpoint=file)
    seconds = torch.load(file, weights_only=True)["seconds"]
    found = run_trial(TINY, Reports(), store=store, checkpoint=file)
    assert found.metrics["search_device_hours"] == pytest.approx(seconds["search"] / 3600, rel=1e-3)


def test_a_search_costs_its_maps_in_full_whoever_made_them(store: Path, tmp_path: Path) -> None:
    for folder in store.glob("*/maps"):
        shutil.rmtree(folder)
    config = replace(TINY, method=RgmpqConfig(zeta=0.3, eta=1.0, epochs=1, batch_size=64, gamma=0.5))
    costs = []
    for number in range(2):
        file = tmp_path / f"{number}.pt"
        with pytest.raises(CutOffError):
            run_trial(config, Reports(1), store=store, checkpoint=file)
        metrics = run_trial(config, Reports(), store=store, checkpoint=file).metrics
        (record,) = [
            found
            for path in store.glob("*/maps/*/record.json")
            if (found := json.loads(path.read_text()))["split"] == "train"
        ]
        alone = metrics["search_cost_hours"] - record["device_hours"]
        assert alone > 0
        costs.append(metrics["search_device_hours"] - alone)
    # The first made them, the second read them; both trials' search took them.
    assert costs[0] >= record["device_hours"]
    assert 0 < costs[1] < record["device_hours"] / 2


@pytest.mark.parametrize("survive", [2, 3])
def test_a_file_with_a_flipped_bit_leaves_the_one_before_it_to_go_on_from(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, survive: int
) -> None:
    undisturbed = run_trial(TINY, Reports(), store=store)
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(CutOffError):
        run_trial(TINY, Reports(survive), store=store, checkpoint=file)
    flip_a_weight(file)
    damaged = file.read_bytes()
    # Cut off once more, before anything is kept: what is whole must not give way to what is damaged.
    with pytest.raises(CutOffError):
        run_trial(TINY, Reports(0), store=store, checkpoint=file)
    assert file.read_bytes() == damaged
    again = Reports(1)
    with pytest.raises(CutOffError):
        run_trial(TINY, again, store=store, checkpoint=file)
    assert f"{file} is damaged: " in caplog.text
    stage, epoch = next(iter(again.seen))
    assert f"checkpoint-1.pt: gone on with instead, after search epoch {survive - 1}" in caplog.text
    found = run_trial(TINY, Reports(), store=store, checkpoint=file)
    assert (stage, epoch) == (("search", 2) if survive == 2 else ("finetune", 1))
    assert (found.record, untimed(found.metrics)) == (undisturbed.record, untimed(undisturbed.metrics))


def flip_a_weight(file: Path) -> None:
    """Changes one bit of the largest tensor; torch would read it as if nothing had happened."""
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(file.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 16
    file.write_bytes(content)
    assert torch.load(file, weights_only=True)["stage"]


def test_a_file_that_is_damaged_counts_as_none(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(b"PK\x03\x04 half of a file")
    reports = Reports()
    run_trial(TINY, reports, store=store, checkpoint=file)
    assert len(reports.seen) == 4


@pytest.mark.parametrize("survive", [1, 3])
def test_a_file_of_another_format_counts_as_none(store: Path, tmp_path: Path, survive: int) -> None:
    """Of an earlier version, whose layers had other parameters: loading it would mix them up, or fail."""
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(CutOffError):
        run_trial(TINY, Reports(survive), store=store, checkpoint=file)
    content = torch.load(file, weights_only=True)
    older = {"format": 2, "epoch": 1, "net": content["parts"]["net"], "optimizers": []}
    for path in checkpoint_files(file):
        torch.save({**older, **{name: content[name] for name in ("stage", "seconds", "policy", "choices")}}, path)
    reports = Reports()
    run_trial(TINY, reports, store=store, checkpoint=file)
    assert len(reports.seen) == 4


def test_a_reference_goes_on_too_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    config = replace(TINY, reference=replace(TINY.reference, epochs=3))
    undisturbed = ensure_reference(config, Reports(), store=tmp_path / "a")
    with pytest.raises(CutOffError):
        ensure_reference(config, Reports(1), store=tmp_path / "b")
    second = Reports()
    found = ensure_reference(config, second, store=tmp_path / "b")
    assert [epoch for _, epoch in second.seen] == [2, 3]
    assert found.top1 == undisturbed.top1
    weights = [torch.load(tmp_path / side / config.reference_key / "model.pt", weights_only=True) for side in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [path.name for path in (tmp_path / "b").iterdir()] == [config.reference_key]


def test_a_finetune_of_another_policy_leaves_nothing_of_the_one_before_to_fall_back_on(tmp_path: Path) -> None:
    net, files = nn.Linear(2, 1), checkpoint_files(tmp_path / "checkpoint.pt")
    policies = [BitPolicy(network="n", bits={"fc": LayerBits(bits, bits)}) for bits in (2, 4)]
    for epoch in (1, 2):
        before = Checkpoint(files[0], Workers.current()).begin("finetune", net, policy=policies[0])
        before.save({}, Position(epoch=epoch))
    assert files[1].exists()
    fresh = Checkpoint(files[0], Workers.current()).emptied().begin("finetune", net, policy=policies[1])
    fresh.save({}, Position(epoch=1))
    assert not files[1].exists()
    fresh.save({}, Position(epoch=2))
    assert all(Checkpoint(path, Workers.current()).policy == policies[1] for path in files)
