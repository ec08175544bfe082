"""The reference of a sweep's YAML and of a finetune template's: a table for each class of settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from accepted import accepted
from markdown import code, page, table, text

from service import template
from service.pareto import FINETUNED_ALONE, METRICS
from service.schema import BASE, descriptions, schema, template_schema
from service.settings import PlainConfig
from service.space import KINDS
from service.spec import SECTIONS
from service.template import TASK_SECTIONS, PlainTemplate
from trainables.data.places import DATA_SET_NAMES
from trainables.detector_config import DETECTOR_BACKBONES
from trainables.method_config import METHOD_CONFIGS
from trainables.models import NETWORK_NAMES

HEAD = ("key", "type", "takes", "default", "meaning")
NAMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("data", "name"): tuple(sorted(DATA_SET_NAMES)),
    ("network", "name"): tuple(sorted(NETWORK_NAMES)),
    ("detector", "name"): tuple(DETECTOR_BACKBONES),
}
"""Settings whose words stand in a registry, not in their type."""
TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    bool | int | float | str: "value",
}
PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "value": "values"}
MADE = "Made by `make reference` from the classes that read the YAML; a test holds that it is up to date."
COLUMNS = """\
*Takes* is the range that the class accepts with all else at its default, found by trying: `0 < · ≤ 1` is a number
above 0, up to and with 1. What depends on other settings, on the network or on the data is told by `bitfront check`,
with the place in the file and the fix."""


def sweep_page() -> str:
    """docs/reference/sweep.md."""
    sections = [_section(name, kind, level=2) for name, kind in SECTIONS.items()]
    return page(
        "# Reference: the YAML of a sweep",
        f"Every key with its type, range and default. {MADE}\n"
        "What the keys are for, and which belong together, is told in [Writing a sweep](../sweeps.md);\n"
        "`bitfront schema` prints the same for editors.",
        COLUMNS,
        "## Top level",
        _table((), PlainConfig, extra=[("base", "text", "a path", "none", text(BASE))], top=schema()),
        *sections,
        "## `method`",
        "The search for a policy. Each method has the settings below; `name` stands here or in the space.",
        *[_method(name, kind) for name, kind in METHOD_CONFIGS.items()],
        _space(),
        "## `smoke`",
        "What `--smoke` changes, for a short run: any of the other keys but `name` and `base`. "
        "A `space` here replaces the other.",
        _metrics(),
    )


def template_page() -> str:
    """docs/reference/finetune.md."""
    parts = [_section(name, kind, level=2) for name, kind in template.SECTIONS.items()]
    for task, kinds in TASK_SECTIONS.items():
        parts += [f"## Of `task: {task}`", *(_section(name, kind, level=3) for name, kind in kinds.items())]
    return page(
        "# Reference: the YAML of a finetune template",
        f"What `bitfront promote --to` reads. {MADE}\n"
        "What it is for is told in [Finetune and promotion](../finetune.md), of detectors in\n"
        "[Detection](../detection.md); `bitfront schema --finetune` prints the same for editors.",
        COLUMNS,
        "## Top level",
        _table((), PlainTemplate, extra=[("base", "text", "a path", "none", text(BASE))], top=template_schema()),
        *parts,
        "## `smoke`",
        "What `--smoke` changes, for a short run: any of the other keys but `name` and `base`.",
    )


def _section(name: str, kind: type, *, level: int) -> str:
    return page(f"{'#' * level} `{name}`", _about(kind), _table((name,), kind)).rstrip()


def _method(name: str, kind: type) -> str:
    own = [("name", "text", code(name), "required", "The method.")]
    needs = getattr(kind, "needs", None)
    limits = {None: "", (): "It needs a `budget`."}.get(
        needs, f"It needs one of the budget's limits {', '.join(map(code, needs or ()))}."
    )
    return page(f"### `{name}`", f"{_about(kind)} {limits}".strip(), _table(("method",), kind, extra=own)).rstrip()


def _about(kind: type) -> str:
    """The class's docstring, its paragraphs as paragraphs."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(text(" ".join(paragraph.split())) for paragraph in paragraphs)


def _table(
    path: tuple[str, ...],
    kind: type,
    *,
    extra: list[tuple[str, ...]] | None = None,
    top: Mapping[str, Any] | None = None,
) -> str:
    """The settings of a class, behind `extra` rows; `top` is the whole YAML's schema, which describes plain keys."""
    hints = get_type_hints(kind)
    texts = {key: top["properties"][key]["description"] for key in hints if key in top["properties"]} if top else {}
    texts = {**descriptions(kind), **texts}
    rows = [(code(name), *rest) for name, *rest in extra or ()]
    for setting in dataclasses.fields(kind):
        words, takes = _type_and_range(kind, setting.name, hints[setting.name], NAMES.get((*path, setting.name)))
        rows.append((code(setting.name), words, takes, _default(setting), text(texts[setting.name])))
    return table(HEAD, rows)


def _type_and_range(kind: type, name: str, hint: Any, names: tuple[str, ...] | None) -> tuple[str, str]:
    if names:
        own = "" if name == "name" and kind.__name__.startswith("Detector") else ", or `module:function`"
        return "text", f"{', '.join(map(code, names))}{own}"
    if get_origin(hint) is Literal:
        return "text", ", ".join(map(code, get_args(hint)))
    return _type_words(hint), accepted(kind, name)


def _type_words(hint: Any) -> str:
    if hint in TYPE_WORDS:
        return TYPE_WORDS[hint]
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        item = _type_words(arguments[0])
        return f"list of {PLURALS.get(item, item)}"
    if issubclass(get_origin(hint), Mapping):
        return f"names with {PLURALS[_type_words(arguments[1])]}"
    raise AssertionError(f"{hint} has no words yet")


def _default(setting: dataclasses.Field[Any]) -> str:
    if setting.default_factory is not dataclasses.MISSING:
        return "none"
    return "required" if setting.default is dataclasses.MISSING else _told(setting.default)


def _told(value: Any) -> str:
    """A default as the YAML has it."""
    match value:
        case "":
            return "empty"
        case bool():
            return code(str(value).lower())
        case () | None:
            return "none"
        case tuple():
            return code(f"[{', '.join(map(str, value))}]")
        case float():
            return code(f"{value:g}")
    return code(str(value))


def _space() -> str:
    made = schema()
    ranges = made["$defs"]["range"]["properties"]
    examples = {
        "choice": "[hwgq, pact]", "fixed": "24.0", "grid": "[0.1, 0.3, 1.0]", "int": "[6, 16]",
        "loguniform": "[0.03, 1.5]", "uniform": "[0.0, 2.0]",
    }  # fmt: skip
    rows = [(code(f"{{{kind}: {examples[kind]}}}"), text(ranges[kind]["description"])) for kind in KINDS]
    rows.append((code("when: {KEY: VALUE, …}"), text(ranges["when"]["description"])))
    varied = ", ".join(map(code, made["properties"]["space"]["propertyNames"]["enum"]))
    return page(
        "## `space`", text(made["properties"]["space"]["description"]), table(("entry", "meaning"), rows),
        f"An entry is called {varied}.",
    ).rstrip()  # fmt: skip


def _metrics() -> str:
    rows = [
        (
            code(metric.name),
            text(metric.label),
            {"max": "more", "min": "less"}[metric.direction],
            "promotions" if metric.name in FINETUNED_ALONE else "every trial",
        )
        for metric in METRICS.values()
    ]
    return page("## Metrics", "For `objectives` and `constraints`.", table(("name", "what", "better", "of"), rows))
