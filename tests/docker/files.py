"""The files under docker/ as tests read them."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "mlflow" / "Dockerfile"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
FILLED = {
    name: f"filled-{number}"
    for number, name in enumerate(re.findall(r"^(\w+)=$", (DOCKER / ".env.example").read_text(), re.MULTILINE))
}
"""An .env in which everything that is asked for has a value."""


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """A compose file with its variables filled in, as the specification says; KeyError where one is required."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match[1], match[2] or "", match[3] or ""
        found = environment.get(name, "")
        if kind == ":?" and not found:
            raise KeyError(name)
        if kind == ":+":
            return interpolated(rest, environment) if found else ""
        return found or (rest if kind == ":-" else "")

    return re.sub(r"\$\{(\w+)(?:(:[-?+])((?:[^{}]|\$\{\w+\})*))?\}", value, text)


def compose(environment: Mapping[str, str] = FILLED) -> dict[str, Any]:
    """The compose file's content."""
    found: dict[str, Any] = yaml.safe_load(interpolated((DOCKER / "compose.yaml").read_text(), environment))
    return found


def manifests() -> list[dict[str, Any]]:
    """All objects for Kubernetes."""
    files = sorted((DOCKER / "kubernetes").glob("*.yaml"))
    return [found for file in files for found in yaml.safe_load_all(file.read_text())]


def clusters(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specs of Ray clusters among them, also those of jobs."""
    rays = [found["spec"] for found in objects if found["apiVersion"].startswith("ray.io/")]
    return [spec.get("rayClusterSpec", spec) for spec in rays]


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All pod templates among them."""
    found = [
        group["template"] for spec in clusters(objects) for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    jobs = [one for one in objects if one["kind"] == "CronJob"]
    return found + [job["spec"]["jobTemplate"]["spec"]["template"] for job in jobs]
