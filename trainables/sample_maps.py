"""Where a finetuned policy looks on a few validation images, beside the reference: made at the end of a trial."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from trainables.attribution import Attribution, rank_difference
from trainables.evaluation import as_compared
from trainables.reference import Bench
from trainables.reference_maps import MapSetting, kept_maps
from trainables.samples import THUMBNAIL_SIDE, SampleImages, SampleMaps, spread


def sample_maps(net: nn.Module, bench: Bench) -> SampleMaps | None:
    """Maps of `net`, which stays as it is, on the trial's sample images; None where it asks for none.

    Images and reference's maps are written beside the reference where they are not there yet.
    """
    if not bench.config.images:
        return None
    places = torch.from_numpy(spread(bench.data.validation.labels.numpy(), bench.config.images))
    theirs = kept_maps(bench, MapSetting(), "validation").maps[places]
    shown = sample_images(bench, places, theirs)
    path = SampleImages.path(bench.store, shown.reference, shown.digest) if bench.store else None
    if path and bench.workers.rank == 0 and not path.exists():
        shown.save(path)
    images, labels = (t.to(bench.workers.device) for t in bench.data.validation.batch(places, None))
    frozen = copy.deepcopy(net).eval().requires_grad_(False)
    tap = Attribution(frozen, images)
    ours = tap.observe(frozen, images, labels).maps
    tap.detach()
    evaluation = bench.config.evaluation
    pair = (as_compared(maps.to(ours.device), image_size=images.shape[2], config=evaluation) for maps in (ours, theirs))
    ard = rank_difference(*pair, top_k=evaluation.top_k)
    return SampleMaps(
        reference=shown.reference,
        samples=shown.digest,
        maps=ours.float().cpu().numpy(),
        ard=ard.double().cpu().numpy(),
    )


def sample_images(bench: Bench, places: Tensor, maps: Tensor) -> SampleImages:
    """The images at `places` [K] of the validation split, with the reference's `maps` [K, h, w] of them."""
    data, config = bench.data, bench.config
    pixels, labels = data.validation.pixels(places), data.validation.labels[places]
    if pixels.shape[2] > THUMBNAIL_SIDE:
        pixels = tv.resize(pixels, [THUMBNAIL_SIDE, THUMBNAIL_SIDE], antialias=True)
    names = data.class_names
    return SampleImages(
        reference=bench.record.key,
        network=config.network.name,
        data=config.data.name,
        places=places.numpy(),
        labels=labels.numpy(),
        class_names=tuple(names[label] if names else str(label) for label in labels.tolist()),
        thumbnails=np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()),
        maps=maps.float().numpy(),
    )
