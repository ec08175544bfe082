"""Detectors finetuned, measured, kept and loaded, through the seam; on scenes of real digits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.detection.digit_scenes import write_scenes
from tests.detection.test_data_sets import coco
from tests.detection.test_detectors import SMALL, policy_of
from trainables.api import finetune, survey_finetune
from trainables.bops import CostModel, LayerWork
from trainables.detection.batches import DetectionImages, batches
from trainables.detection.bench import detector_bench
from trainables.detection.detectors import fresh_classifier, layers_of
from trainables.detection.evaluation import detected
from trainables.detector_config import DetectionEvaluationConfig, DetectorConfig
from trainables.distributed import Workers
from trainables.errors import ConfigError, DataMissingError
from trainables.finetune_config import FinetuneConfig
from trainables.finetuned_model import load_model, measure_model
from trainables.policy_file import PolicyRecord
from trainables.quantizers.layers import quant_layers
from trainables.report import EpochReport

ALONE = Workers(0, 1, torch.device("cpu"))
PRECISIONS = {"map", "ap", "ap50", "ap75", "aps", "apm", "apl"}


def quiet(epoch: EpochReport) -> None:
    """No report is wanted."""


def record_of(backbone: str, *, bits: int = 4) -> PolicyRecord:
    policy = policy_of(backbone, bits=bits)
    work = {
        name: LayerWork(kind="conv", macs=1, weights=1, inputs=1, reads_negative=False, reads=name, stream=name)
        for name in policy.bits
    }
    return PolicyRecord.measured(policy, CostModel(work, 0), method="rgmpq", settings={}, image_size=32, num_classes=10)


def config_of(scenes: Path, *, epochs: int = 1, **finetune_settings: object) -> DetectorConfig:
    settings = {"epochs": epochs, "batch_size": 2, "lr": 5e-4, "quantizer": "pact", **finetune_settings}
    return DetectorConfig(
        detector=replace(SMALL, min_size=48, max_size=64, head_bits=32),
        data=coco(scenes),
        finetune=FinetuneConfig(**settings),  # type: ignore[arg-type]
        evaluation=DetectionEvaluationConfig(batch_size=2),
    )


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few")
    write_scenes(root, train=4, validation=2, digits=(0, 1))
    return root


def test_a_detector_is_finetuned_kept_and_loaded_with_the_very_precision_that_was_measured(
    few: Path, tmp_path: Path
) -> None:
    config, record, output = config_of(few), record_of("resnet18"), tmp_path / "model"
    seen: list[EpochReport] = []
    result = finetune(config, record, seen.append, store=tmp_path, output=output)
    (epoch,) = seen
    losses = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert losses | PRECISIONS - {"aps"} <= set(epoch.metrics)
    assert epoch.metrics["loss"] == pytest.approx(sum(epoch.metrics[name] for name in losses), rel=1e-5)
    assert {"bops_g", "backbone_bops_g", "backbone_bops_paper_g", "images_per_s", "device_hours"} <= set(result.metrics)
    loaded = load_model(output)
    assert loaded.card.task == "detection"
    assert loaded.card.class_names == ("zero", "one")
    assert loaded.record.parent == record.policy.hash
    assert loaded.record.costs["bops_g"] == result.metrics["bops_g"]
    assert len(quant_layers(loaded.net)) == 20
    again = measure_model(output, config)
    assert again == {name: result.metrics[name] for name in again}
    assert set(again) >= PRECISIONS - {"aps"}


def test_a_finetune_is_surveyed_with_the_costs_that_it_reports(few: Path) -> None:
    config = config_of(few, epochs=3)
    found = survey_finetune(config, record_of("resnet18"), threads=1, workers=2)
    assert found.steps == 3 * 2
    assert found.step_s > 0
    assert found.device_hours > 3 * 2 * found.step_s * 2 / 3600
    assert found.costs["full_bops_g"] > found.costs["bops_g"] > 0
    with pytest.raises(ConfigError, match="batch_size is 5, but there are only 4 training images"):
        survey_finetune(config_of(few, batch_size=5), record_of("resnet18"), threads=1, workers=1)


def test_policies_of_other_networks_and_missing_data_are_refused_beforehand(few: Path, tmp_path: Path) -> None:
    config = config_of(few)
    with pytest.raises(ConfigError, match="one of 'vgg16', but the backbone of fasterrcnn_resnet18 is 'resnet18'"):
        survey_finetune(config, record_of("vgg16"), threads=1, workers=1)
    away = replace(config, data=coco(tmp_path))
    with pytest.raises(DataMissingError, match=r"instances_train\.json cannot be read"):
        survey_finetune(away, record_of("resnet18"), threads=1, workers=1)
    with pytest.raises(ConfigError, match=r"label_smoothing is 0\.1, but detectors' losses have none"):
        config_of(few, label_smoothing=0.1)


def test_a_backbone_begins_with_a_classifiers_weights_whatever_its_classes(few: Path, tmp_path: Path) -> None:
    config = config_of(few)
    torch.manual_seed(3)
    from trainables.models import build_network

    classifier = build_network("resnet18", num_classes=7, image_size=32)
    torch.save(classifier.state_dict(), tmp_path / "weights.pt")
    given = replace(config, detector=replace(config.detector, weights=str(tmp_path / "weights.pt")))
    net = detector_bench(given, record_of("resnet18"), ALONE).net
    for name, layer in layers_of(classifier).items():
        if name != "fc":
            assert torch.equal(net.get_submodule(f"backbone.body.{name}").weight, layer.weight)  # type: ignore[arg-type]
    torch.save(fresh_classifier("vgg16").features.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=r"detector\.weights: .*weights\.pt does not fit resnet18"):
        detector_bench(given, record_of("resnet18"), ALONE)


def test_images_shared_among_workers_are_each_detected_once(few: Path) -> None:
    bench = detector_bench(config_of(few), record_of("resnet18"), ALONE)
    net, images = bench.net, DetectionImages(bench.data.train)
    alone = detected(net, batches(images, ALONE, batch_size=4, training=False), ALONE)
    shares = [
        detected(net, batches(images, Workers(rank, 3, ALONE.device), batch_size=4, training=False), ALONE)
        for rank in range(3)
    ]
    together = torch.cat(shares)
    assert sorted(set(together[:, 0].tolist())) == [0, 1, 2, 3]
    assert torch.allclose(together, alone, atol=1e-3)
