"""Settings that went through a card's JSON."""

import dataclasses
import json

import pytest

from trainables.config import BenchConfig, DataConfig, EvaluationConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.errors import StorageError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import GmpqConfig
from trainables.model_files import ModelCard
from trainables.recorded_config import config_of

BENCH = BenchConfig(
    network=NetworkConfig(name="resnet8", pinned={"*.downsample.*": 4}),
    data=DataConfig(name="digits", image_size=16),
    reference=ReferenceConfig(epochs=1),
    finetune=FinetuneConfig(epochs=3, lr_steps=(0.3, 0.6), quantizer="lsq"),
    evaluation=EvaluationConfig(batch_size=32),
    seed=4,
)


def card(config: object) -> ModelCard:
    return ModelCard(
        task="classification",
        network="resnet8",
        num_classes=10,
        image_size=16,
        quantizer="lsq",
        mean=(0.0,),
        std=(1.0,),
        config=json.loads(json.dumps(config)),
    )


def test_the_settings_of_a_finetune_come_back() -> None:
    assert config_of(card(dataclasses.asdict(BENCH))) == BENCH


def test_those_of_a_trial_come_back_without_its_search() -> None:
    parts = {field.name: getattr(BENCH, field.name) for field in dataclasses.fields(BENCH)}
    trial = TrialConfig(**parts, method=GmpqConfig(zeta=0.1, eta=0.0))
    assert config_of(card(dataclasses.asdict(trial))) == BENCH


def test_settings_of_another_version_are_told() -> None:
    with pytest.raises(StorageError, match=r"another version of Bitfront \(.*momentun.*finetune the policy again"):
        config_of(card(dataclasses.asdict(BENCH) | {"momentun": 1}))
    with pytest.raises(StorageError, match=r"does not say what it was finetuned with"):
        config_of(card({}))
