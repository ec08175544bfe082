"""GMPQ: the search keeps the ranking of the reference's attribution (capacity-aware imitation, eqs 8-10)."""

from __future__ import annotations

from torch import Tensor, nn

from trainables.attribution import Attribution, upsample
from trainables.config import GmpqConfig
from trainables.data.splits import Batch
from trainables.methods.loop import Generalisation, new_supernet, run
from trainables.policy import BitPolicy
from trainables.reference import Bench
from trainables.report import Report
from trainables.risks import concentration, imitation_risk
from trainables.supernet import Supernet


class ImitationTerms:
    """R_G of eq. 9 for a batch, with p of eq. 10 at the supernet's present bits."""

    def __init__(self, reference: nn.Module, supernet: Supernet, config: GmpqConfig, *, probe: Tensor) -> None:
        """`reference` is frozen; `probe` [N, 3, S, S] a few real images."""
        self.reference, self.supernet, self.config = reference, supernet, config
        self.reference_maps = Attribution(reference, probe)
        self.supernet_maps = Attribution(supernet.net, probe)

    def __call__(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """`logits` are the supernet's for the batch, from its last forward pass."""
        images, labels = batch.images, batch.labels
        ours = self.supernet_maps.maps(logits, labels)
        theirs = self.reference_maps.observe(self.reference, images, labels).maps
        if self.config.resolution == "input":
            ours, theirs = upsample(ours, images.shape[2]), upsample(theirs, images.shape[2])
        p = concentration(*self.supernet.expected_bits(), capacity=self.config.capacity)
        risk = imitation_risk(ours, theirs, p=p, top_k=self.config.top_k)
        return {"generalisation_risk": risk, "p": p}

    def detach(self) -> None:
        """Takes the taps off both networks."""
        self.reference_maps.detach()
        self.supernet_maps.detach()


def search(bench: Bench, config: GmpqConfig, report: Report) -> BitPolicy:
    """The policy that the supernet settles on. With η = 0 no attribution is computed."""
    supernet = new_supernet(bench, config)
    if config.eta == 0:
        return run(bench, supernet, config, report, generalisation=None)
    terms = ImitationTerms(bench.reference, supernet, config, probe=bench.probe)
    try:
        return run(bench, supernet, config, report, generalisation=Generalisation(config.eta, terms))
    finally:
        terms.detach()
