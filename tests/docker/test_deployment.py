"""What a sweep meets that is launched within docker/: where it is recorded, what its messages keep, how it ends."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from service.arguments import RECORD_BEHIND, RUN_ERROR, USAGE_ERROR
from service.redaction import without_credentials
from service.spec import load_spec

from .files import DOCKER, FILLED, ROOT, compose, interpolated, manifests

SERVICES = compose()["services"]
COMPUTES = ("head", "worker", "scheduler")
NIGHTLY = sorted((ROOT / "sweeps" / "nightly").glob("[!_.]*.yaml"))


def settings_of_pods() -> dict[str, str]:
    return next(found["data"] for found in manifests() if found["kind"] == "ConfigMap")


@pytest.mark.parametrize("environment", [SERVICES[name]["environment"] for name in COMPUTES] + [settings_of_pods()])
def test_every_nightly_sweep_is_recorded_in_the_mlflow_that_is_deployed(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value or "")
    files = [file for file in NIGHTLY if not file.name.endswith(".expect.yaml")]
    assert files
    for file in files:
        assert load_spec(file, to_launch=True).tracking.uri == environment["MLFLOW_TRACKING_URI"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_messages_stay_readable_with_the_services_own_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SERVICES[name].get("environment", {})
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value or "")
    told = (
        "bitfront: mlflow at http://mlflow:5000 refuses bitfront; try: bitfront sync NAME --storage /sweeps us-east-1"
    )
    assert without_credentials(told) == told
    for secret in FILLED.values():
        if secret in environment.values():
            assert secret not in without_credentials(f"a {secret} b")


def test_torch_of_another_index_is_installed_alone() -> None:
    """What it needs itself is not all on that index in the versions that are pinned."""
    installs = re.findall(r"pip install (.*)", (DOCKER / "Dockerfile").read_text())
    elsewhere = [line for line in installs if "--index-url" in line]
    assert elsewhere
    assert all("--no-deps" in line for line in elsewhere)


def test_an_optional_line_of_the_example_is_uncommented_as_it_stands(tmp_path: Path) -> None:
    lines = (DOCKER / ".env.example").read_text().splitlines()
    file = tmp_path / "env"
    file.write_text("\n".join(line.removeprefix("# ") for line in lines if re.match(r"(# )?BITFRONT_\w+=", line)))
    found = {name: value or "" for name, value in dotenv_values(file).items() if name not in FILLED}
    assert found["BITFRONT_TARGET"] == "cpu"
    # As if they had not been given: they are the defaults.
    assert compose({**FILLED, **found}) == compose()


def test_mlflow_answers_to_other_names_where_they_are_given() -> None:
    (given,) = [word for word in SERVICES["mlflow"]["command"] if word.startswith("--allowed-hosts=")]
    assert given == "--allowed-hosts=mlflow:5000,localhost:5000,127.0.0.1:5000"
    elsewhere = compose({**FILLED, "BITFRONT_MLFLOW_HOSTS": "10.0.0.1:5000,m.example"})["services"]["mlflow"]["command"]
    assert f"{given},10.0.0.1:5000,m.example" in elsewhere


def test_interpolation_of_what_is_added_follows_the_specification() -> None:
    assert interpolated("a${A:+,${A}}b${B:+,${B}}", {"A": "1"}) == "a,1b"


@pytest.mark.parametrize(("status", "told"), [(0, 0), (RECORD_BEHIND, 0), *((n, n) for n in (RUN_ERROR, USAGE_ERROR))])
def test_a_job_whose_record_alone_is_behind_is_not_tried_again(status: int, told: int, tmp_path: Path) -> None:
    """As KubeRay runs it: a shell takes the entrypoint apart, and Ray puts it together for another."""
    job = yaml.safe_load((DOCKER / "kubernetes" / "rayjob.yaml").read_text())
    program = tmp_path / "bitfront"
    program.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/given"\nexit {status}\n')
    program.chmod(0o755)
    join = "import shlex, sys; print(shlex.join(sys.argv[1:]))"
    entrypoint = subprocess.run(
        ["bash", "-c", f"python3 -c '{join}' {job['spec']['entrypoint']}"], capture_output=True, text=True, check=True
    ).stdout
    path = f"{tmp_path}:/usr/bin:/bin"
    assert subprocess.run(entrypoint, shell=True, env={"PATH": path}).returncode == told
    assert "run /etc/bitfront/sweep.yaml" in (tmp_path / "given").read_text()


def test_the_commands_of_back_up_keep_attributes_and_name_volumes_that_are_there() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("docker run") and " tar " in line]
    assert len(lines) == 4
    assert {name for line in lines for name in re.findall(r"-v bitfront_(\w+):", line)} <= set(compose()["volumes"])
    assert [("--xattrs-include='user.*'" in line) for line in lines] == [("_objects:" in line) for line in lines]


def test_baselines_are_accepted_on_kubernetes_into_the_folder_that_is_committed(tmp_path: Path) -> None:
    """The documented line, with the pod's shell here and a program that accepts every sweep."""
    text = (ROOT / "docs" / "clusters.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("tar -C sweeps/nightly -c")]
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in (
        ("kubectl", 'if [ "$1" = get ]; then echo pod/head; else shift 6; exec "$@"; fi'),
        ("bitfront", '[ "$*" = "nightly accept $3 --storage /sweeps" ] && echo moved && echo {} > $3/a.baseline.json'),
    ):
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "sweeps" / "nightly").mkdir(parents=True)
    (tmp_path / "sweeps" / "nightly" / "a.yaml").write_text("name: a\n")
    path = {"PATH": f"{commands}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, env=path, check=True, capture_output=True)
    assert (tmp_path / "sweeps" / "nightly" / "a.baseline.json").read_text() == "{}\n"
