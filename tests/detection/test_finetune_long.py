"""Finetunes of detectors that take minutes: that they learn, go on to the last bit, and are shared by workers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.detection.digit_scenes import write_scenes
from tests.detection.test_data_sets import voc
from tests.detection.test_finetune_detector import config_of, few, quiet, record_of
from trainables.api import FinetuneResult, finetune
from trainables.detection.bench import detector_bench
from trainables.detection.evaluation import precision
from trainables.detection.finetune_detector import calibrated
from trainables.detector_config import DetectorConfig, DetectorNetworkConfig
from trainables.distributed import Workers
from trainables.finetuned_model import load_model, measure_model
from trainables.quantizers.layers import quant_layers
from trainables.report import EpochReport

pytestmark = pytest.mark.long
__all__ = ["few"]
TIMES = ("images_per_s", "device_hours", "finetune_device_hours")


class CutOffError(Exception):
    """Stands for whatever ends a process."""


def lasting(result: FinetuneResult) -> dict[str, float]:
    """What does not depend on the clock."""
    return {name: value for name, value in result.metrics.items() if name not in TIMES}


@pytest.mark.parametrize("cut_off", [1, 2], ids=["after an epoch", "within one"])
def test_a_finetune_that_was_cut_off_ends_as_an_undisturbed_one(few: Path, tmp_path: Path, cut_off: int) -> None:
    config, record = config_of(few, epochs=2, checkpoint_every=1, ema=0.5), record_of("resnet18")
    whole = finetune(config, record, quiet, store=tmp_path)

    def end(epoch: EpochReport) -> None:
        if epoch.epoch == cut_off:
            raise CutOffError("cut off")

    with pytest.raises(CutOffError, match="cut off"):
        finetune(config, record, end, store=tmp_path, checkpoint=tmp_path / "checkpoint.pt")
    again = finetune(config, record, quiet, store=tmp_path, checkpoint=tmp_path / "checkpoint.pt")
    assert lasting(again) == lasting(whole)


def shared(rank: int, folder: str, config: DetectorConfig) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    result = finetune(config, record_of("resnet18"), quiet, store=Path(folder), output=Path(folder) / "model")
    torch.save(dict(result.metrics), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_report_the_same_and_keep_the_network_that_they_measured(few: Path, tmp_path: Path) -> None:
    config = config_of(few)
    mp.spawn(shared, args=(str(tmp_path), config), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    precisions = {name for name in one if name.startswith(("ap", "map"))}
    assert {name: one[name] for name in precisions} == {name: other[name] for name in precisions}
    again = measure_model(tmp_path / "model", config)
    assert dict(again) == pytest.approx({name: one[name] for name in again}, abs=1e-6)


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_ssd_is_finetuned_kept_and_loaded(few: Path, tmp_path: Path, amp: str) -> None:
    config = replace(
        config_of(few, amp=amp, quantizer="lsq", accumulate=2, channels_last=amp != "none"),
        detector=DetectorNetworkConfig(name="ssd300_vgg16", head_bits=8),
        data=replace(voc(few), zoom_crop=True),
    )
    result = finetune(config, record_of("vgg16"), quiet, store=tmp_path, output=tmp_path / "model")
    assert len(quant_layers(load_model(tmp_path / "model").net)) == 35
    again = measure_model(tmp_path / "model", config)
    # Another layout in memory adds up in another order.
    allowed = 0.0 if amp == "none" else 1.0
    assert again == pytest.approx({name: result.metrics[name] for name in again}, rel=0, abs=allowed)


def test_a_detector_with_a_backbone_of_4_bits_learns_to_find_digits_that_it_has_not_seen(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=24, validation=10, digits=(0, 1))
    config = replace(
        config_of(tmp_path, epochs=6, schedule="cosine", warmup_epochs=1.0, grad_clip=10.0),
        detector=DetectorNetworkConfig(name="fasterrcnn_resnet18", min_size=96, max_size=192, head_bits=32),
    )
    bench = detector_bench(config, record_of("resnet18"), Workers(0, 1, torch.device("cpu")))
    untrained = precision(calibrated(bench), bench.validation_batches(), bench.data.validation, bench.workers)
    result = finetune(config, record_of("resnet18"), quiet, store=tmp_path)
    assert {"aps", "apm", "apl"} <= set(result.metrics)
    assert max(untrained.values()) < 1
    for name in ("map", "ap50"):
        assert result.metrics[name] > 10
