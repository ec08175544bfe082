"""compose.yaml: valid, safe by default, and of one mind with the images, Ray, MLflow and the dashboards."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from service.cli import main

from .files import DOCKER, FILLED, PINS, ROOT, VERSION, compose, interpolated

SERVICES = compose()["services"]
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET")


def words(service: dict[str, Any]) -> list[str]:
    command = service.get("command", [])
    return shlex.split(command) if isinstance(command, str) else [str(word) for word in command]


def option(service: str, name: str) -> str:
    return next(word.removeprefix(f"{name}=") for word in words(SERVICES[service]) if word.startswith(f"{name}="))


def check(content: dict[str, Any]) -> None:
    # Without anchors and merges, which the parser does not resolve.
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(content)).validate()


def test_it_is_what_the_compose_specification_asks_for() -> None:
    check(compose())
    check(yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text()))


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [
        ("head", "prots", ["1:1"]),
        ("head", "stop_grace_period", "soon"),
        ("worker", "depends_on", {"head": {"when": 1}}),
    ],
)
def test_a_mistake_in_it_would_be_found(service: str, key: str, value: object) -> None:
    content = compose()
    content["services"][service][key] = value
    with pytest.raises((ValueError, TypeError), match=re.escape(f"services.{service}")):
        check(content)


@pytest.mark.parametrize("missing", sorted(FILLED))
def test_nothing_starts_while_a_secret_is_missing(missing: str) -> None:
    assert SECRET.search(missing)
    for environment in ({**FILLED, missing: ""}, {name: value for name, value in FILLED.items() if name != missing}):
        with pytest.raises(KeyError, match=missing):
            compose(environment)


def test_no_secret_stands_in_a_file_or_in_a_command() -> None:
    """Values come from variables alone, and a process's title is no place for them."""
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            # What says how a secret is used, and what is told to a webhook, may be anything.
            if SECRET.search(key):
                assert value in FILLED.values(), (name, key)
        assert not any(value in " ".join(words(service)) for value in FILLED.values()), name


def test_ports_are_published_on_loopback_unless_told() -> None:
    published = {name: port for name, service in SERVICES.items() for port in service.get("ports", [])}
    assert set(published) == {"head", "mlflow", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in published.values())
    elsewhere = compose({**FILLED, "BITFRONT_BIND": "10.0.0.1"})["services"]
    assert all(elsewhere[name]["ports"] == [port.replace("127.0.0.1", "10.0.0.1")] for name, port in published.items())


def test_every_service_is_pinned_limited_restarted_and_stopped_in_order() -> None:
    for name, service in SERVICES.items():
        image, _, tag = service["image"].rpartition(":")
        assert image, name
        assert re.search(r"\d", tag), name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service
        assert service.get("restart"), name
        if name != "buckets":
            assert service["stop_grace_period"], name


def test_what_others_wait_for_can_tell_its_health() -> None:
    dockerfile = (DOCKER / "mlflow" / "Dockerfile").read_text()
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                known = "healthcheck" in SERVICES[other] or (other == "mlflow" and "\nHEALTHCHECK" in dockerfile)
                assert known, (name, other)
            else:
                assert SERVICES[other]["restart"] == "on-failure", (name, other)


def test_ray_asks_everybody_for_the_token_and_computes_on_workers_alone() -> None:
    for name in ("head", "worker", "scheduler"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"] == FILLED["BITFRONT_RAY_TOKEN"]
    assert option("head", "--num-cpus") == "0"
    assert option("worker", "--num-cpus") == SERVICES["worker"]["deploy"]["resources"]["limits"]["cpus"]


def test_names_and_ports_agree() -> None:
    head, mlflow = SERVICES["head"], SERVICES["mlflow"]
    assert option("worker", "--address") == f"head:{option('head', '--port')}"
    dashboard = option("head", "--dashboard-port")
    assert f"http://head:{dashboard}" in words(SERVICES["scheduler"])
    assert head["ports"] == [f"127.0.0.1:{dashboard}:{dashboard}"]
    assert head["environment"]["MLFLOW_TRACKING_URI"] == f"http://mlflow:{option('mlflow', '--port')}"
    assert f"mlflow:{option('mlflow', '--port')}" in option("mlflow", "--allowed-hosts").split(",")
    database = option("mlflow", "--backend-store-uri")
    assert f"database_uri = {database}" in (DOCKER / "mlflow" / "auth.ini").read_text()
    postgres = SERVICES["postgres"]["environment"]
    assert database == f"postgresql+psycopg2://{postgres['POSTGRES_USER']}@postgres:5432/{postgres['POSTGRES_DB']}"
    assert postgres["POSTGRES_PASSWORD"] == mlflow["environment"]["PGPASSWORD"]
    tracking = head["environment"]
    for ours, theirs in (("USERNAME", "USERNAME"), ("PASSWORD", "PASSWORD")):
        assert tracking[f"MLFLOW_TRACKING_{ours}"] == mlflow["environment"][f"MLFLOW_AUTH_ADMIN_{theirs}"]
    bucket = words(SERVICES["buckets"])[-1]
    assert option("mlflow", "--artifacts-destination").startswith(f"s3://{bucket}/")
    store = SERVICES["s3"]["environment"]
    for name in ("head", "worker", "scheduler", "mlflow", "buckets"):
        environment = SERVICES[name]["environment"]
        assert environment["AWS_ACCESS_KEY_ID"] == store["ROOT_ACCESS_KEY"]
        assert environment["AWS_SECRET_ACCESS_KEY"] == store["ROOT_SECRET_KEY"]
    port = words(SERVICES["s3"])[words(SERVICES["s3"]).index("--port") + 1]
    assert (
        head["environment"]["AWS_ENDPOINT_URL"] == mlflow["environment"]["MLFLOW_S3_ENDPOINT_URL"] == f"http://s3{port}"
    )


def test_volumes_are_declared_used_and_bound_to_files_that_are_there() -> None:
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            else:
                used.add(source)
    assert used == set(compose()["volumes"])


def test_versions_are_those_that_were_tested_together() -> None:
    assert SERVICES["mlflow"]["image"] == f"bitfront-mlflow:{PINS['mlflow']}"
    assert SERVICES["head"]["image"] == f"bitfront:{VERSION}-cpu"
    assert compose({**FILLED, "BITFRONT_TARGET": "cuda"})["services"]["head"]["image"] == f"bitfront:{VERSION}-cuda"
    assert f"ARG VERSION={PINS['mlflow']}\n" in (DOCKER / "mlflow" / "Dockerfile").read_text()
    assert f"ARG VERSION={VERSION}\n" in (DOCKER / "Dockerfile").read_text()


def test_the_scheduler_is_started_as_the_command_line_takes_it() -> None:
    program, name, *arguments = words(SERVICES["scheduler"])
    assert program == "bitfront"
    command = main.commands[name]
    known = {opt for parameter in command.params for opt in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= known
    targets = [volume.split(":")[1] for volume in SERVICES["scheduler"]["volumes"] if not volume.startswith(".")]
    assert arguments[arguments.index("--storage") + 1] in targets


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    port = SERVICES["prometheus"]["ports"][0].rpartition(":")[2]
    assert source["type"] == "prometheus"
    assert source["url"] == f"http://prometheus:{port}"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "bitfront.yaml").read_text())["providers"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in SERVICES["grafana"]["volumes"]}
    dashboard = f"{provider['options']['path']}/bitfront.json"
    assert (DOCKER / mounted[dashboard]).resolve() == ROOT / "dashboards" / "grafana" / "bitfront.json"
    assert mounted["/etc/grafana/provisioning"] == "./grafana/provisioning"


def test_prometheus_reads_the_list_of_machines_that_rays_head_writes() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (listed,) = jobs["ray"]["file_sd_configs"]
    (file,) = listed["files"]
    folder = next(v.split(":")[1] for v in SERVICES["prometheus"]["volumes"] if v.startswith("ray:"))
    written = next(v.split(":")[1] for v in SERVICES["head"]["volumes"] if v.startswith("ray:"))
    assert Path(file).parent == Path(folder)
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert Path(file).name == PROMETHEUS_SERVICE_DISCOVERY_FILE
    # Where Ray keeps its sessions unless it is told otherwise.
    assert written == "/tmp/ray"
    # The list is a link with a whole path.
    assert folder == written
    assert set(config) == {"global", "scrape_configs"}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool, of Debian's prometheus, is not installed")
def test_prometheus_takes_its_configuration() -> None:
    file = DOCKER / "prometheus" / "prometheus.yaml"
    done = subprocess.run(["promtool", "check", "config", "--syntax-only", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _has_compose() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
def test_docker_compose_takes_it(tmp_path: Path) -> None:
    filled = tmp_path / "env"
    filled.write_text("".join(f"{name}={value}\n" for name, value in FILLED.items()))
    command = ["docker", "compose", "--file", str(DOCKER / "compose.yaml"), "--env-file"]
    done = subprocess.run([*command, str(filled), "config", "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    empty = DOCKER / ".env.example"
    assert subprocess.run([*command, str(empty), "config", "--quiet"], capture_output=True).returncode != 0


def test_interpolation_follows_the_specification() -> None:
    text = "${A:-x} ${B:-y} ${C} ${D:?needed}"
    assert interpolated(text, {"A": "1", "B": "", "D": "2"}) == "1 y  2"
    with pytest.raises(KeyError, match="D"):
        interpolated(text, {"D": ""})
