"""The manifests: valid by Kubernetes' own schemas and KubeRay's fields, without root, limited, and of one mind."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from service.cli import main

from .files import PINS, VERSION, clusters, manifests, pods

KUBERNETES = "1.34"
KUBERAY = json.loads((Path(__file__).parent / "kuberay-v1.schema.json").read_text())
OBJECTS = manifests()
PODS = pods(OBJECTS)


def one(kind: str) -> dict[str, Any]:
    (found,) = [item for item in OBJECTS if item["kind"] == kind]
    return found


def check(found: dict[str, Any]) -> None:
    if not found["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
        return
    jsonschema.validate(found, KUBERAY)
    for template in pods([found]):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)


@pytest.mark.parametrize("found", OBJECTS, ids=lambda found: found["kind"])
def test_an_object_is_valid(found: dict[str, Any]) -> None:
    check(found)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_mistakes_in_a_cluster_would_be_found(kind: str) -> None:
    for change in ("enableAutoscaling", "pod"):
        broken = copy.deepcopy(one(kind))
        (spec,) = clusters([broken])
        if change == "pod":
            spec["headGroupSpec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
        else:
            spec[change] = True
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match="unexpected"):
            check(broken)


def test_pods_run_without_root_within_limits_and_end_in_order() -> None:
    for pod in PODS:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["automountServiceAccountToken"] is False
        assert spec["terminationGracePeriodSeconds"] >= 60
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]["requests"]) == set(container["resources"]["limits"])
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            kind = "cuda" if "nvidia.com/gpu" in container["resources"]["limits"] else "cpu"
            assert container["image"] == f"bitfront:{VERSION}-{kind}"


def test_nodes_tell_whether_they_live_and_are_ready() -> None:
    for spec in clusters(OBJECTS):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert {"readinessProbe", "livenessProbe"} <= set(container)


def test_secrets_come_from_the_secret_whose_template_is_empty() -> None:
    template = one("Secret")
    assert set(template["stringData"].values()) == {""}
    name, keys = template["metadata"]["name"], set(template["stringData"])
    used = {"auth_token"}
    for pod in PODS:
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                if re.search("TOKEN|PASSWORD|SECRET|WEBHOOK", variable["name"]):
                    source = variable["valueFrom"]["secretKeyRef"]
                    assert source["name"] == name
                    used.add(source["key"])
    assert used == keys
    assert not any(re.search("TOKEN|PASSWORD|SECRET", key) for key in one("ConfigMap")["data"])
    for spec in clusters(OBJECTS):
        assert spec["authOptions"] == {"mode": "token", "secretName": name}


def test_names_and_versions_agree() -> None:
    cluster, claim, settings = one("RayCluster"), one("PersistentVolumeClaim"), one("ConfigMap")
    assert {spec["rayVersion"] for spec in clusters(OBJECTS)} == {PINS["ray"]}
    nightly = one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"][0]
    assert f"--submit http://{cluster['metadata']['name']}-head-svc:8265" in nightly
    for pod in PODS:
        claims = [
            v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v
        ]
        assert claims == [claim["metadata"]["name"]]
        for container in pod["spec"]["containers"]:
            assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_what_pods_run_is_what_the_command_line_takes() -> None:
    nightly = one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"][0]
    job = one("RayJob")["spec"]["entrypoint"].removeprefix("sh -c '").partition(";")[0]
    for line in (nightly.removeprefix("exec "), job):
        program, name, *arguments = line.split()
        assert program == "bitfront"
        command = main.commands[name]
        command = getattr(command, "commands", {}).get("run", command)
        known = {opt for parameter in command.params for opt in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= known


def test_only_what_was_lost_is_tried_again() -> None:
    job = one("CronJob")["spec"]["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 3
    verdicts, _ = job["podFailurePolicy"]["rules"]
    assert verdicts["action"] == "FailJob"
    assert verdicts["onExitCodes"]["values"] == [2, 3, 5]
    assert one("CronJob")["spec"]["concurrencyPolicy"] == "Forbid"
    assert one("RayJob")["spec"]["backoffLimit"] == 3
