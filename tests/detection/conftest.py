"""A few scenes of digits, in both layouts."""

from pathlib import Path

import pytest
import torch

from tests.detection.digit_scenes import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=6, validation=4, digits=(8, 1))
    return root


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
