"""The images' recipes: linted, small in context, without root and without secrets; and what is said of variables."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .files import DOCKER, DOCKERFILES, ROOT, manifests, pods

DOCUMENTED = ROOT / "docs" / "clusters.md"


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    beside_python = Path(sys.executable).with_name("hadolint")  # its environment need not be the shell's
    return subprocess.run([beside_python, "--no-color", str(path)], capture_output=True, text=True)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(DOCKER)))
def test_the_linter_has_nothing_to_say(path: Path) -> None:
    done = hadolint(path)
    assert done.returncode == 0, done.stdout


def test_the_linter_would_find_a_missing_tag(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /x && pip install mlflow\n")
    done = hadolint(tmp_path / "Dockerfile")
    assert done.returncode != 0
    assert "DL3007" in done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(DOCKER)))
def test_an_image_is_pinned_by_tag_built_in_stages_and_runs_as_nobody_in_particular(path: Path) -> None:
    text = path.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    stages = re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)
    assert len(bases) >= 2
    assert {base for base in bases if base not in stages} == {"python:${PYTHON_TAG}"}
    assert "ARG PYTHON_TAG=3.11-slim-bookworm\n" in text
    assert "@sha256" not in text
    assert "latest" not in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "10001:10001"
    assert not re.search(r"^(ENV|ARG) .*(TOKEN|PASSWORD|SECRET)", text, re.MULTILINE)
    for installed in re.findall(r"pip install (.*)", text):
        assert "-c" in installed.split() or "--no-deps" in installed, installed
    for label in ("title", "licenses", "version"):
        assert f"org.opencontainers.image.{label}=" in text


def test_the_context_is_what_the_recipes_copy_and_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in allowed)
    for path in DOCKERFILES:
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", path.read_text(), re.MULTILINE):
            for source in sources.split():
                assert source == "." or source in allowed or str(Path(source).parent) in allowed, source


def test_what_the_package_is_made_of_is_in_the_context() -> None:
    allowed = (ROOT / ".dockerignore").read_text()
    for needed in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "service", "trainables", "dashboards"):
        assert f"\n!{needed}\n" in allowed


def named_variables() -> set[str]:
    text = (DOCKER / "compose.yaml").read_text()
    names = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^ +([A-Z][A-Z0-9_]+):", text, re.MULTILINE))
    for path in DOCKERFILES:
        continued = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"^(?:ENV|ARG) (.*)$", continued, re.MULTILINE):
            names.update(re.findall(r"(\w+)=", line))
    for pod in pods(manifests()):
        names.update(variable["name"] for one in pod["spec"]["containers"] for variable in one.get("env", []))
    for found in manifests():
        if found["kind"] == "ConfigMap":
            names.update(found["data"])
    return names


def test_every_variable_that_the_files_name_is_explained() -> None:
    text = DOCUMENTED.read_text()
    names = named_variables()
    assert len(names) > 20
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing


def test_every_variable_of_the_example_is_used() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    names = set(re.findall(r"^(?:# )?(BITFRONT_\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    assert names == set(re.findall(r"\$\{(\w+)", text))
