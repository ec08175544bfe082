"""The Grafana dashboard: a model that Grafana imports, on all metrics that a sweep exports and no others."""

import fnmatch
import json
import re
import tomllib
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from service.orchestrate.gauges import EXPORTED

ROOT = Path(__file__).parents[2]
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("dashboards") / "grafana" / "bitfront.json").read_text())
    return found


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_it_is_a_dashboard_model(dashboard: dict[str, Any]) -> None:
    assert dashboard["title"] == "Bitfront sweeps"
    assert re.fullmatch("[a-zA-Z0-9_-]{1,40}", dashboard["uid"])
    assert dashboard["schemaVersion"] >= 39
    # Grafana gives the number itself when it imports a file.
    assert "id" not in dashboard
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat", "gauge")
        assert panel["title"]
        assert panel["datasource"] == PROMETHEUS
        assert {"defaults", "overrides"} == set(panel["fieldConfig"])
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            assert target["datasource"] == PROMETHEUS
            assert target["instant"] != target["range"]


def test_panels_lie_side_by_side_in_the_24_columns(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_its_variables_choose_the_data_source_and_the_sweeps(dashboard: dict[str, Any]) -> None:
    source, owner, sweep = dashboard["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (sweep["name"], sweep["type"], sweep["datasource"]) == ("sweep", "query", PROMETHEUS)
    assert sweep["query"]["query"] == 'label_values(ray_bitfront_sweep_trials_planned{owner=~"$owner"}, sweep)'
    assert (owner["name"], owner["query"]["query"]) == (
        "owner",
        "label_values(ray_bitfront_sweep_trials_planned, owner)",
    )
    # A sweep whose author gave no owner has no such label.
    assert owner["allValue"] == ".*"
    selectors = [match for expr in expressions(dashboard) for match in re.findall(r"\{([^}]*)\}", expr)]
    assert len(selectors) >= len(dashboard["panels"])
    assert all('sweep=~"$sweep", owner=~"$owner"' in selector for selector in selectors)


def test_it_shows_every_exported_metric_and_no_other(dashboard: dict[str, Any]) -> None:
    used = set(re.findall(r"\bray_\w+", " ".join(expressions(dashboard))))
    assert used == {f"ray_{metric.name}" for metric in EXPORTED}


def test_it_groups_by_labels_that_the_metrics_have(dashboard: dict[str, Any]) -> None:
    """Also so that a driver's own labels, and those of one before it, never split a sweep in two."""
    labels = {f"ray_{metric.name}": {"sweep", "owner", metric.label} for metric in EXPORTED}
    for expr in expressions(dashboard):
        metric, *others = set(re.findall(r"\bray_\w+", expr)) & set(labels)
        asked = {one.strip() for group in re.findall(r"by \(([^)]*)\)", expr) for one in group.split(",")}
        allowed = labels[metric].union(*(labels[other] for other in others))
        assert asked <= allowed, expr
        assert expr.count("max") >= 1
        # Two people's sweeps of one name are two sweeps.
        inner = re.findall(r"max by \(([^)]*)\)", expr)
        assert all(group.startswith("sweep, owner") for group in inner), expr


def test_counters_are_shown_as_they_are_or_as_rates_and_gauges_never_as_rates(dashboard: dict[str, Any]) -> None:
    counters = {f"ray_{metric.name}" for metric in EXPORTED if metric.kind == "counter"}
    rated = {name for expr in expressions(dashboard) for name in re.findall(r"rate\((\w+)\{", expr)}
    assert rated == counters


def test_it_is_shipped() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["dashboards"]
    assert any(fnmatch.fnmatch("grafana/bitfront.json", pattern) for pattern in patterns)
