"""DeiT without distillation (Touvron et al. 2021), timm's: 12 blocks, a class token, heads of 64 channels.

Of its layers the patch embedding is the stem and the classifier the head; queries-keys-values, projections and MLPs
are searched. The products of attention have no weight and no bits.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from trainables.errors import ConfigError

TIMM_NAMES = {"tiny": "deit_tiny_patch16_224", "small": "deit_small_patch16_224"}


def deit(size: Literal["tiny", "small"], patch_size: int, num_classes: int, image_size: int) -> nn.Module:
    """Fresh weights; positions for image_size / patch_size patches a side. Patches are 16 pixels in the paper."""
    if image_size % patch_size:
        below = image_size // patch_size * patch_size
        sizes = (below, below + patch_size) if below else (patch_size,)
        raise ConfigError(
            f"data.image_size is {image_size}, which patches of {patch_size} pixels do not fill; "
            f"give a multiple of {patch_size}, such as {' or '.join(map(str, sizes))}."
        )
    # Takes a second, which no other network should wait for.
    import timm

    return timm.create_model(
        TIMM_NAMES[size], pretrained=False, num_classes=num_classes, img_size=image_size, patch_size=patch_size
    )
