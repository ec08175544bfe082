"""GMPQ and R-GMPQ: the search keeps the ranking of the reference's attribution.

GMPQ imitates the reference's maps, concentrated by the network's capacity (eqs 8-10). R-GMPQ smooths them over groups
of similar activations (eqs 11-13) and concentrates each by how much harder its image is once quantised (eq. 14).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainables.attribution import Attribution, at_size
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.data.splits import Batch
from trainables.method_config import GmpqConfig, RgmpqConfig
from trainables.methods.loop import Generalisation, new_supernet, run
from trainables.reference import Bench
from trainables.reference_maps import MapSetting, ReferenceMaps, training_maps
from trainables.report import Report
from trainables.risks import concentration, hardness, imitation_risk
from trainables.supernet import Supernet


class ImitationTerms:
    """R_G of eq. 9 or 14 for a batch, at the supernet's present bits."""

    def __init__(self, supernet: Supernet, theirs: ReferenceMaps, config: GmpqConfig, *, probe: Tensor) -> None:
        """`theirs` tells the reference's maps; `probe` [N, 3, S, S] a few real images."""
        self.supernet, self.theirs, self.config = supernet, theirs, config
        self.ours = Attribution(supernet.net, probe)

    def __call__(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """`logits` are the supernet's for the batch, from its last forward pass. `p` is the mean over the images."""
        config = self.config
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        classes = batch.labels if config.target_class == "label" else logits.detach().argmax(1)
        size = batch.images.shape[2] if config.resolution == "input" else 0
        ours = at_size(self.ours.maps(logits, classes), size)
        maps, risks = self.theirs(batch)
        p = self._concentration(logits, batch.labels, risks)
        risk = imitation_risk(ours, at_size(maps, size), p=p, top_k=config.top_k, form=config.form)
        return {"generalisation_risk": risk, "p": p.mean()}

    def _concentration(self, logits: Tensor, labels: Tensor, reference_risks: Tensor) -> Tensor:
        """p of all images, or ρ of each [N]."""
        config = self.config
        if config.p:
            # Filled on the device: to copy a number there would make the step wait.
            return torch.full((), config.p, device=logits.device)
        if isinstance(config, RgmpqConfig) and config.imitation == "dynamic":
            return hardness(cross_entropy(logits.detach(), labels, reduction="none"), reference_risks)
        bits = self.supernet.expected_bits()
        return concentration(*bits, capacity=config.capacity, concavity=config.concavity)

    def detach(self) -> None:
        """Takes the tap off the supernet."""
        self.ours.detach()


def search(bench: Bench, config: GmpqConfig, budget: BudgetConfig, report: Report) -> Choices:
    """What the supernet settles on. With η = 0 no attribution is computed."""
    supernet = new_supernet(bench, config)
    if config.eta == 0:
        return run(bench, supernet, config, report, budget=budget, generalisation=None)
    with training_maps(bench, MapSetting.of(config, bench.probe.shape[2])) as theirs:
        terms = ImitationTerms(supernet, theirs, config, probe=bench.probe)
        try:
            generalisation = Generalisation(config.eta, terms)
            return run(bench, supernet, config, report, budget=budget, generalisation=generalisation)
        finally:
            terms.detach()
