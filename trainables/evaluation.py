"""What a network scores on the validation images: top-1, and how its attribution compares with the reference's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.attribution import Attribution, at_size, entropy, random_rank_difference, rank_difference
from trainables.config import EvaluationConfig
from trainables.data.splits import Batch
from trainables.distributed import Workers
from trainables.stepping import Batches

TOP_K = 5


@torch.no_grad()
def accuracy(net: nn.Module, batches: Batches[Batch], workers: Workers) -> dict[str, float]:
    """top1 and top5: shares of images whose label's logit is the largest, or among the five largest, percent.

    Over all workers' batches. Of five classes or fewer top5 says nothing, and is left out.
    """
    net.eval()
    counts = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        logits = net(batch.images.to(workers.device)).cpu()
        right, seen = float((logits.argmax(1) == batch.labels).sum()), float(len(batch.labels))
        among = 0.0
        if logits.shape[1] > TOP_K:
            among = float((logits.topk(TOP_K, dim=1).indices == batch.labels[:, None]).sum())
        counts += torch.tensor([right, seen, among, seen if logits.shape[1] > TOP_K else 0.0])
    # A worker may have no batch, so the number of classes is asked of all.
    first, seen, five, of_five = workers.total(counts.to(workers.device)).tolist()
    found = {"top1": 100.0 * first / seen}
    return found | {"top5": 100.0 * five / of_five} if of_five else found


def top1(net: nn.Module, batches: Batches[Batch], workers: Workers) -> float:
    """Share of images whose largest logit is their label's, percent, over all workers' batches."""
    return accuracy(net, batches, workers)["top1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributionScore:
    """Attribution of a quantised network against its reference, means over the validation images."""

    ard: float
    """Attribution rank difference, ranks."""
    ard_normalised: float
    """ARD over that of a random permutation of as many pixels."""
    entropy: float
    """Attribution entropy of the quantised network, nats."""
    pixels: int
    """Pixels that were ranked."""


def as_compared(maps: Tensor, *, image_size: int, config: EvaluationConfig) -> Tensor:
    """Maps [N, h, w] at the resolution at which they are compared."""
    return at_size(maps, image_size if config.resolution == "input" else 0)


def compare_attribution(
    quantized: nn.Module,
    theirs_of: Callable[[Batch], Tensor],
    batches: Batches[Batch],
    workers: Workers,
    config: EvaluationConfig,
) -> AttributionScore:
    """ARD and entropy of `quantized` (frozen here, in place) for the label's class.

    `theirs_of` tells the reference's maps [N, h, w] of a batch, as its network makes them.
    """
    quantized.eval().requires_grad_(False)
    tap: Attribution | None = None
    sums, pixels = torch.zeros(3, dtype=torch.float64), 0
    for loaded in batches:
        batch = loaded.to(workers.device)
        images, labels = batch.images, batch.labels
        # Here and not before: to begin another pass for a few images would start all processes that load them.
        tap = tap or Attribution(quantized, images[:8])
        ours, theirs = tap.observe(quantized, images, labels).maps, theirs_of(batch)
        ours, theirs = (as_compared(maps, image_size=images.shape[2], config=config) for maps in (ours, theirs))
        difference = rank_difference(ours, theirs, top_k=config.top_k)
        sums += torch.tensor([float(difference.sum()), float(entropy(ours).double().sum()), float(len(labels))])
        pixels = min(config.top_k, ours.shape[1] * ours.shape[2])
    if tap:
        tap.detach()
    difference_sum, entropy_sum, seen = workers.total(sums.to(workers.device)).tolist()
    ard = difference_sum / seen
    return AttributionScore(
        ard=ard, ard_normalised=ard / random_rank_difference(pixels), entropy=entropy_sum / seen, pixels=pixels
    )
