"""A finetuned network as one ONNX file: quantised layers, names, and metadata that say what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import numpy as np

from trainables.errors import ConfigError
from trainables.export.exported_part import Part, exported_part
from trainables.export.float_graph import INPUT, float_graph
from trainables.export.integer_types import OPSETS
from trainables.export.layer_grids import LayerGrids, layer_grids
from trainables.export.qdq import Stored, insert_layers
from trainables.finetuned_model import LoadedModel
from trainables.model_files import ModelCard

if TYPE_CHECKING:
    from onnx import ModelProto

Pixels = Literal["normalised", "pixels"]
"""What the graph takes: images as the network sees them, or pixels of 0 to 1, which it normalises itself."""
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
"""Of the file, the oldest that belongs to each opset: readers refuse newer ones than they know."""


@dataclass(frozen=True, slots=True)
class OnnxNetwork:
    """A graph, and how its layers are stored."""

    model: ModelProto
    part: Part
    """What it is the graph of."""
    grids: dict[str, LayerGrids]
    stored: dict[str, Stored]


def build_onnx(loaded: LoadedModel, *, opset: int, takes: Pixels, backbone: bool = False) -> OnnxNetwork:
    """The quantised graph of a classifier, or of a detector's backbone.

    Raises ConfigError for what ONNX or PyTorch's exporter cannot hold.
    """
    from onnx import checker

    card = loaded.card
    check_opset(opset)
    part = exported_part(loaded, backbone=backbone)
    grids = layer_grids(part.net)
    weights = {f"{name}.weight" for name in grids}
    model = float_graph(part, opset=opset, weights=weights)
    stored = insert_layers(model, grids, opset=opset)
    if takes == "pixels":
        _normalise(model, card)
    _describe(model, loaded, part, stored, opset=opset, takes=takes)
    checker.check_model(model, full_check=True)
    return OnnxNetwork(model, part, grids, stored)


def check_opset(opset: int) -> None:
    """Raises ConfigError for an opset that is not written."""
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ConfigError(f"--opset is {opset}; give {OPSETS[0]} to {OPSETS[1]}.")


def _normalise(model: ModelProto, card: ModelCard) -> None:
    """Puts (pixels − mean) / std in front of all that reads the images."""
    from onnx import helper, numpy_helper

    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == INPUT:
                node.input[place] = "normalised"
    for name, values in (("mean", card.mean), ("std", card.std)):
        array = np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(array, f"normalisation.{name}"))
    model.graph.node.insert(0, helper.make_node("Sub", [INPUT, "normalisation.mean"], ["centred"], name="centred/Sub"))
    divided = helper.make_node("Div", ["centred", "normalisation.std"], ["normalised"], name="normalised/Div")
    model.graph.node.insert(1, divided)


def _describe(
    model: ModelProto, loaded: LoadedModel, part: Part, stored: dict[str, Stored], *, opset: int, takes: Pixels
) -> None:
    from onnx import helper

    card, policy = loaded.card, loaded.record.policy
    layers = {
        name: {**bits._asdict(), "weight_type": stored[name].weight_type.name, "act_type": stored[name].act_type.name}
        for name, bits in policy.bits.items()
        if name in stored
    }
    facts = {
        "policy_hash": policy.hash,
        "network": card.network,
        "quantizer": card.quantizer,
        "num_classes": card.num_classes,
        "image_size": list(part.example.shape[2:]),
        "input": takes,
        "mean": card.mean,
        "std": card.std,
        "class_names": card.class_names,
        "layers": layers,
        "metrics": dict(card.metrics),
        "data_fingerprint": card.data_fingerprint,
    }
    texts = {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}
    helper.set_model_props(model, {f"bitfront.{name}": text for name, text in texts.items()})
    model.producer_name, model.producer_version = "bitfront", version("bitfront")
    model.graph.name = card.network
    model.ir_version = IR_VERSIONS[opset]
