"""Data sets by name: `load_data` reads one, `check_data` says beforehand whether it is there.

Names and places are known without torch, so that a sweep's YAML can be checked in no time. Batches are made by
`splits.loader`; the readers are in `sources.DATA_SETS`. A user's own data are what a `module:function` returns as
`UserData`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.config import DataConfig
from trainables.data.places import DATA_SET_NAMES, check_data, check_data_name
from trainables.data.user_data import UserData
from trainables.user_code import is_import_path

if TYPE_CHECKING:
    from trainables.data.splits import DataSplits

__all__ = ["DATA_SET_NAMES", "UserData", "check_data", "check_data_name", "load_data"]


def load_data(config: DataConfig) -> DataSplits:
    """Training and validation images: the same for every seed of a trial.

    Raises DataMissingError with where it looked and how to get them.
    """
    check_data(config)
    if is_import_path(config.name):
        from trainables.data.user_sets import read_user_data

        return read_user_data(config)
    from trainables.data.sources import DATA_SETS

    return DATA_SETS[config.name](config)
