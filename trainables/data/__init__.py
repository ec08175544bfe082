"""Data sets by name: `load_data` reads one, `check_data` says beforehand whether it is there, `loader` makes batches.

Names are known without torch, so that a sweep's YAML can be checked in no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.config import DataConfig
from trainables.data.places import check_data
from trainables.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from trainables.data.splits import DataSplits

__all__ = ["DATA_SET_NAMES", "check_data", "check_data_name", "load_data"]

DATA_SET_NAMES = ("cifar10", "cifar100", "digits", "fashion-mnist", "imagefolder")


def check_data_name(name: str) -> None:
    """Raises ConfigError unless `name` is a known data set."""
    if name not in DATA_SET_NAMES:
        raise ConfigError(f"unknown data set {name!r}{did_you_mean(name, DATA_SET_NAMES)}.")


def load_data(config: DataConfig) -> DataSplits:
    """Training and validation images. Raises DataMissingError with where it looked and how to get them."""
    check_data_name(config.name)
    from trainables.data.sources import DATA_SETS

    check_data(config)
    return DATA_SETS[config.name](config)
