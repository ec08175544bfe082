"""What a function of a user's own returns for `data.name: module:function`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Images: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[str | Path]"
"""uint8 [N, C, S, S], C 1 (grey) or 3 (RGB); or image files, relative ones below `data.root`."""
Labels: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[int]"
"""[N], whole numbers from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserData:
    """A data set: pixels, which are normalised with their own statistics, or files, with ImageNet's.

    The function is called as `function(root, image_size=S)`, `root` being `data.root` as a string, by every worker of
    every trial, and has to return the same each time. Images of another size are resized.
    """

    train: tuple[Images, Labels]
    validation: tuple[Images, Labels]
    num_classes: int
