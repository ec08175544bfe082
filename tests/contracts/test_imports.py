"""What the house is held together by: layers, and what a module may load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "ray", "mlflow", "optuna", "scipy", "sklearn", "matplotlib", "plotly", "pandas"}


def loaded_by(module: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after importing `module`."""
    code = f"import {module}, json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(found.stdout))


@pytest.mark.parametrize(
    "module",
    ["service.cli", "service.cli_records", "service.cli_policy", "service.cli_fronts",
     "service.selection", "service.comparison", "service.growth", "service.importance", "service.spend",
     "dashboards.comparison", "dashboards.page",
     "service.cli_registry", "service.registry", "service.cli_models", "service.exporting", "service.export_report",
     "trainables.export.api", "trainables.recorded_config",
     "service.registrable", "service.registered_policy", "service.sweeps", "service.standing", "service.plan",
     "service.schema", "service.halving", "trainables.survey_report", "service.spec", "service.preflight",
     "service.records", "service.pareto", "service.progress", "service.mirror", "service.tracking", "dashboards.front",
     "dashboards.bits", "dashboards.policies", "service.policies", "trainables.bops", "trainables.policy_file",
     "dashboards.gallery", "service.baseline",
     "trainables.api", "trainables.config", "trainables.policy", "trainables.models", "trainables.data"],
)  # fmt: skip
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(module) & HEAVY == set()


def test_the_layers_hold() -> None:
    # In a process of its own: it switches off the loggers of all others.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
