"""The layers of a policy as rows, for spreadsheets; no torch unless a network's scales are wanted."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import NamedTuple

from trainables.bops import FULL
from trainables.errors import ConfigError
from trainables.policy_file import PolicyRecord

COLUMNS = (
    "layer",
    "kind",
    "weight_bits",
    "act_bits",
    "pinned",
    "macs",
    "weights",
    "bops",
    "share",
    "weight_scale",
    "act_scale",
)


class Scales(NamedTuple):
    """Steps of a layer's quantisers."""

    weight: float
    act: float


def layer_table(record: PolicyRecord, scales: Mapping[str, Scales]) -> str:
    """CSV with a row for each layer and each product of activations, in order of execution.

    `share` is that of the network's BOPs, 0 to 1; scales are empty where `scales` has none.
    """
    if record.work is None:
        raise ConfigError(
            f"policy {record.policy.hash[:10]} is in a file of version 1, which does not say what its layers do; "
            "search or finetune it again."
        )
    policy, work = record.policy, record.work
    total = work.counts(policy).bops
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for name, layer in work.work.items():
        bits = policy.bits.get(name, FULL)
        bops = layer.macs * bits.weight * bits.act
        steps = [repr(float(step)) for step in scales[name]] if name in scales else ["", ""]
        pinned = "yes" if name in policy.pinned else "no"
        rows.writerow([name, layer.kind, *bits, pinned, layer.macs, layer.weights, bops, bops / total, *steps])
    return text.getvalue()
