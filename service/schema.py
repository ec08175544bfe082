"""The JSON Schema of a sweep's YAML, for editors: made from the settings' classes and the text below their fields.

An editor checks names, types and words as one writes. What needs more, limits above all, is checked by `load_spec`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any

from service import template
from service.pareto import SEARCHED
from service.settings import PlainConfig
from service.space import KINDS
from service.spec import SECTIONS
from service.template import TASK_SECTIONS as TASKS
from service.template import PlainTemplate
from service.validate import adapter
from service.varied import METHOD, SEED, SUBJECTS, VARIABLE, is_list, settings_of
from trainables.data.places import DATA_SET_NAMES
from trainables.method_config import METHOD_CONFIGS
from trainables.models import NETWORK_NAMES

PLAIN_WORDS = {
    "batch_size": "Images per step, over all workers.",
    "currency": "Currency of the price, such as USD or EUR.",
    "description": "What the sweep is for.",
    "epochs": "Passes over the training images.",
    "experiment": "MLflow's experiment, under which the sweep is listed.",
    "format": "How the data set lies on the disk.",
    "gpus_per_worker": "GPUs of each worker.",
    "lr": "Learning rate.",
    "momentum": "Momentum of the optimiser.",
    "name": "Which one.",
    "seed": "Seed of what is drawn at random.",
    "tags": "Names and values for MLflow, for people to search by.",
    "trials": "Policies to search; of a grid, all its points where it is left out.",
    "weight_decay": "Weight decay of the optimiser.",
    "weight_lr": "Learning rate of the float weights.",
}
"""What stands in every training recipe needs no text below it there."""
IMPORT_PATH = {"pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"}
WORDS = {
    ("data", "name"): {"anyOf": [{"enum": sorted(DATA_SET_NAMES)}, IMPORT_PATH]},
    ("network", "name"): {"anyOf": [{"enum": sorted(NETWORK_NAMES)}, IMPORT_PATH]},
}
ENDLESS = ("loguniform", "uniform")
"""Ranges of endlessly many values, of which a space has none for networks and data sets."""
SCALAR = {"type": ["boolean", "number", "string"]}
BASE = "A file that this one is based on, relative to it: what is not written here is as it is there."
VARIED = "Its content is what every trial has; a setting that the space varies stands there instead."


def schema() -> dict[str, Any]:
    """The schema (draft 2020-12) as JSON has it."""
    properties = _object(PlainConfig, ())["properties"]
    properties["name"]["description"] = "Name of the sweep and of its folder: a-z, 0-9, '.', '_' and '-'."
    properties["objectives"]["items"] = {"enum": list(SEARCHED)}
    properties |= {name: _object(kind, (name,)) for name, kind in SECTIONS.items()}
    for limit in properties["budget"]["properties"].values():
        limit["minimum"] = 0
    for name in VARIABLE:
        if name in SECTIONS:
            properties[name]["description"] += f" {VARIED}"
    methods = {f"method-{name}": _method(name, kind) for name, kind in METHOD_CONFIGS.items()}
    properties["method"] = {
        "description": f"The search for a policy. {VARIED}",
        "type": "object",
        "discriminator": {"propertyName": "name"},
        "anyOf": [*({"$ref": f"#/$defs/{name}"} for name in methods), {"$ref": "#/$defs/method-several"}],
    }
    methods["method-several"] = _several(methods)
    properties["space"] = _space()
    properties["base"] = {
        "type": "string",
        "description": BASE,
    }
    properties["smoke"] = _smoke(properties)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Bitfront sweep",
        "description": "A sweep of searches for mixed-precision policies.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "if": {"not": {"required": ["base"]}},
        "then": _needed(),
        "$defs": {**methods, "range": _range(), "value": SCALAR},
    }


def template_schema() -> dict[str, Any]:
    """The schema of a finetune template."""
    properties = _object(PlainTemplate, ())["properties"]
    properties["name"]["description"] = "Name of the promotion and of its folder: a-z, 0-9, '.', '_' and '-'."
    properties |= {name: _object(kind, (name,)) for name, kind in template.SECTIONS.items()}
    properties["base"] = {"type": "string", "description": BASE}
    tasks = {task: {name: _object(kind, (name,)) for name, kind in kinds.items()} for task, kinds in TASKS.items()}
    changed = [name for name in properties if name not in ("name", "base")]
    sections: dict[str, Any] = {name: {} for kinds in tasks.values() for name in kinds}
    properties["smoke"] = {
        "description": "What `--smoke` changes, for a short run on a machine at hand.",
        "type": "object",
        "properties": {name: {"$ref": f"#/properties/{name}"} for name in changed} | sections,
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Bitfront finetune template",
        "description": "How policies that a sweep has found are finetuned.",
        "type": "object",
        "properties": properties,
        "required": ["name"],
        "if": {"properties": {"task": {"const": "detection"}}, "required": ["task"]},
        "then": {"properties": tasks["detection"]},
        # What a template is based on may say that it is for detection.
        "else": {
            "if": {"not": {"required": ["base"]}},
            "then": {"properties": tasks["classification"]},
            "else": {"properties": sections},
        },
        "unevaluatedProperties": False,
    }


def _smoke(properties: dict[str, Any]) -> dict[str, Any]:
    """What a short run changes: any of the other keys, none of them needed."""
    changed = [name for name in properties if name not in ("name", "base")]
    return {
        "description": "What `--smoke` changes, for a short run on a machine at hand; a space here replaces the other.",
        "type": "object",
        "properties": {
            name: {"description": properties[name]["description"], "$ref": f"#/properties/{name}"} for name in changed
        },
        "additionalProperties": False,
    }


def _needed() -> dict[str, Any]:
    """What a sweep must say that is based on nothing; of what may vary, here or in its space."""
    needed = {name: [f.name for f in dataclasses.fields(kind) if _is_required(f)] for name, kind in SECTIONS.items()}
    plain = {name: keys for name, keys in needed.items() if keys and name not in VARIABLE}
    varied = [(name, key) for name, keys in needed.items() if name in VARIABLE for key in keys]
    return {
        "required": ["name", *plain, "space"],
        "properties": {name: {"required": keys} for name, keys in plain.items()},
        "allOf": [_here_or_varied(name, key) for name, key in (*varied, ("method", "name"))],
        "if": {"not": {"properties": {"sampler": {"properties": {"name": {"const": "grid"}}, "required": ["name"]}},
                       "required": ["sampler"]}},
        "then": {"required": ["trials"]},
    }  # fmt: skip


def _here_or_varied(section: str, key: str) -> dict[str, Any]:
    return {
        "anyOf": [
            {"properties": {section: {"required": [key]}}, "required": [section]},
            {"properties": {"space": {"required": [f"{section}.{key}"]}}, "required": ["space"]},
        ]
    }


def _is_required(setting: dataclasses.Field[Any]) -> bool:
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING


def _method(name: str, kind: type) -> dict[str, Any]:
    found = _object(kind, ("method",))
    found["properties"] = {"name": {"const": name, "description": "The method."}, **found["properties"]}
    return found


def _several(methods: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The section where the space gives the methods: any setting of any of them, and no name."""
    properties: dict[str, list[dict[str, Any]]] = {}
    for found in methods.values():
        for key, value in found["properties"].items():
            if key != "name" and value not in properties.setdefault(key, []):
                properties[key].append(value)
    return {
        "description": "Settings that go to every method of the space that has them.",
        "type": "object",
        "properties": {
            key: found[0] if len(found) == 1 else {"description": found[0]["description"], "anyOf": found}
            for key, found in properties.items()
        },
        "additionalProperties": False,
    }


def _object(kind: type, path: tuple[str, ...]) -> dict[str, Any]:
    """A section without `required`: a base, or the space, may give what is missing."""
    made = adapter(kind).json_schema()
    texts = descriptions(kind)
    properties = {
        key: {name: v for name, v in value.items() if name != "title"}
        | WORDS.get((*path, key), {})
        | {"description": texts[key]}
        for key, value in made["properties"].items()
    }
    return {
        "description": " ".join((inspect.getdoc(kind) or "").split()),
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


@cache
def descriptions(kind: type) -> dict[str, str]:
    """What each setting of a class means: the text below the field in the source, nearest class first."""
    texts: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        texts[statement.target.id] = " ".join(text.split())
    return {f.name: texts.get(f.name) or PLAIN_WORDS[f.name] for f in dataclasses.fields(kind)}


def _space() -> dict[str, Any]:
    kinds = {name: (SECTIONS[name],) for name in VARIABLE if name in SECTIONS}
    found = settings_of({**kinds, "method": tuple(METHOD_CONFIGS.values())})
    any_range = {"$ref": "#/$defs/range"}
    names = {name for name, setting in found.items() if not is_list(setting)}
    return {
        "description": "What the trials vary: a range for each setting of the method, network, data, budget, finetune.",
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"enum": sorted(names)},
        "properties": {
            METHOD: _range_of("Methods of the trials.", {"enum": list(METHOD_CONFIGS)}),
            SEED: _range_of("Seeds of the trials.", {"type": "integer", "minimum": 0}),
        },
        "patternProperties": {
            rf"^({'|'.join(SUBJECTS)})\.": {**any_range, "not": {"anyOf": [{"required": [kind]} for kind in ENDLESS]}}
        },
        "additionalProperties": any_range,
    }


def _range_of(text: str, value: dict[str, Any]) -> dict[str, Any]:
    """Ranges with finitely many values, all of this kind."""
    values = {"description": "Some of these.", "type": "array", "items": value}
    of_kinds = {**dict.fromkeys(("choice", "grid", "int"), values), "fixed": {"description": "This one.", **value}}
    unwanted = {"anyOf": [{"required": [kind]} for kind in ENDLESS]}
    return {"description": text, "$ref": "#/$defs/range", "properties": of_kinds, "not": unwanted}


def _range() -> dict[str, Any]:
    value = {"$ref": "#/$defs/value"}

    def ends(kind: str) -> dict[str, Any]:
        return {"type": "array", "items": {"type": kind}, "minItems": 2, "maxItems": 2}

    kinds = {
        "choice": {"type": "array", "items": value, "minItems": 1, "description": "One of these values."},
        "fixed": {**SCALAR, "description": "This value."},
        "grid": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 1,
            "description": "One of these numbers.",
        },
        "int": {**ends("integer"), "description": "A whole number, both ends included."},
        "loguniform": {**ends("number"), "description": "A number, even on a log scale."},
        "uniform": {**ends("number"), "description": "A number, even on a linear scale."},
    }
    condition = {
        "description": "Entries above this one, with a value or several: only where all hold has this entry a value.",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]},
    }
    return {
        "description": "What a setting may be.",
        "type": "object",
        "properties": {**{kind: kinds[kind] for kind in KINDS}, "when": condition},
        "additionalProperties": False,
        "oneOf": [{"required": [kind]} for kind in KINDS],
    }
