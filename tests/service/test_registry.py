"""Policies in MLflow's registry: the embedded database, and a real server that keeps the artifacts itself."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient

from service import driver
from service.cli import main
from service.mirror import Tracker
from service.records import SweepRecord, SweepStore
from service.tracking import resolve_uri
from trainables import api
from trainables.bops import CostModel
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

SPEC = """\
name: {name}
network: {{name: resnet8}}
data: {{name: digits, image_size: 16}}
reference: {{epochs: 1}}
method: {{name: gmpq, epochs: 1, eta: 1.0}}
finetune: {{epochs: 1}}
space: {{method.zeta: {{uniform: [0.0, 1.0]}}}}
trials: 5
"""
FINGERPRINT = "ab" * 32


@pytest.fixture(scope="session")
def work() -> CostModel:
    return api.count("resnet8", image_size=16, num_classes=10)


def add_trial(store: SweepStore, work: CostModel, number: int, *, bits: int, top1: float, state: str = "done") -> None:
    trial_id = f"t{number:04d}"
    store.plan_trial(trial_id, number=number, settings={"method.zeta": 0.1 * number})
    begun = store.start_trial(trial_id, now_ms=2_000 + number)
    if state != "done":
        store.finish_trial(replace(begun, state=state, ended_ms=3_000 + number, error="why"))
        return
    policy = BitPolicy(network="resnet8", bits={name: LayerBits(bits, bits) for name in work.layers})
    record = PolicyRecord.measured(policy, work, method="gmpq", settings={}, image_size=16, num_classes=10)
    store.save_policy(trial_id, record)
    metrics = {**record.costs, "top1": top1, "ard": 2.0, "ard_normalised": 0.5, "device_hours": 0.1}
    finished = replace(begun, state="done", ended_ms=3_000 + number, metrics=metrics, policy_hash=policy.hash)
    store.finish_trial(finished)


def make_sweep(storage: Path, work: CostModel, name: str, *, created_ms: int) -> SweepStore:
    """Trials 0, 1, 2 with 2, 3 and 4 bits on the front; 3 below it with the bits of 1; 4 diverged; 5 below the front.

    The knee is trial 1, whose top-1 is nearly the best.
    """
    reference = {"key": "k", "top1": 99.0, "device_hours": 0.0, "data_fingerprint": FINGERPRINT}
    sweep = SweepRecord(
        name=name, spec_hash="h", facts={"network": "resnet8", "data": "digits"}, total_trials=6,
        created_ms=created_ms, references={"k": reference},
    )  # fmt: skip
    store = SweepStore.create(storage, sweep, spec_text=SPEC.format(name=name))
    for number, (bits, top1) in enumerate([(2, 70.0), (3, 89.0), (4, 90.0), (3, 88.0)]):
        add_trial(store, work, number, bits=bits, top1=top1)
    add_trial(store, work, 4, bits=2, top1=0.0, state="diverged")
    add_trial(store, work, 5, bits=5, top1=60.0)
    return store


@pytest.fixture
def storage(tmp_path: Path, work: CostModel, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage with the sweeps `s` and `other`, and MLflow's empty database; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITFRONT_STORAGE", "st")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "st").mkdir()
    shutil.copy(empty_database, tmp_path / "st" / "mlflow.db")
    make_sweep(tmp_path / "st", work, "s", created_ms=1_000)
    make_sweep(tmp_path / "st", work, "other", created_ms=1_500)
    return tmp_path / "st"


def invoke(*arguments: str, status: int = 0) -> str:
    result: Result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


def client_of(storage: Path) -> MlflowClient:
    return MlflowClient(resolve_uri("", storage))


def runs_of(client: MlflowClient, sweep_id: str = "s@1000") -> dict[str, str]:
    """Run id of each trial."""
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`bitfront.sweep` = '{sweep_id}'")
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {run.data.tags["bitfront.trial"]: run.info.run_id for run in found}


def check_first_version(client: MlflowClient) -> None:
    """The knee's version, its logged model, and both ways between them and the run."""
    runs = runs_of(client)
    (version,) = client.search_model_versions("name = 's'")
    assert (str(version.version), version.status, version.run_id) == ("1", "READY", runs["t0001"])
    tags = version.tags
    assert (tags["bitfront.sweep"], tags["bitfront.trial"], tags["bitfront.spec_hash"]) == ("s@1000", "t0001", "h")
    assert tags["bitfront.front"] == "true"
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    assert (logged.status, logged.source_run_id, logged.params["method.zeta"]) == ("READY", runs["t0001"], "0.1")
    assert json.loads(logged.tags["mlflow.modelVersions"])[0]["name"] == "s"
    on_data = {(m.key, m.value, m.dataset_name, m.dataset_digest, m.run_id) for m in logged.metrics or []}
    assert ("top1", 89.0, "digits-validation", FINGERPRINT[:12], runs["t0001"]) in on_data
    # Trial 3 found the same bits: one version, and both runs lead to it.
    assert ("top1", 88.0, "digits-validation", FINGERPRINT[:12], runs["t0003"]) in on_data
    for trial in ("t0001", "t0003"):
        outputs = client.get_run(runs[trial]).outputs.model_outputs
        assert [output.model_id for output in outputs] == [logged.model_id]
        assert f"[s@1000/{trial}](#/experiments/{logged.experiment_id}/runs/{runs[trial]})" in version.description
    assert "place 2 of 3 on the front by cost, its knee" in version.description
    assert "not on the front of 3" in version.description
    files = {file.path for file in client.list_logged_model_artifacts(logged.model_id)}
    assert files == {"MLmodel", "policy.json"}


def test_the_knee_is_registered_with_its_run_its_costs_and_all_who_found_its_bits(storage: Path) -> None:
    output = invoke("register", "s")
    assert "models:/s/1: s/t0001's policy" in output
    assert "t0003 found these bits, too" in output
    client = client_of(storage)
    check_first_version(client)
    (logged,) = client.search_logged_models([client.get_experiment_by_name("bitfront").experiment_id])
    place = Path(logged.artifact_location.removeprefix("file://"))
    flavour = yaml.safe_load((place / "MLmodel").read_text())["flavors"]["bitfront"]
    assert flavour == {"policy": "policy.json", "policy_hash": logged.tags["bitfront.policy_hash"]}
    assert (place / flavour["policy"]).read_text() == (storage / "s/trials/t0001/policy.json").read_text()


def everything(client: MlflowClient) -> object:
    versions = sorted(client.search_model_versions(), key=lambda v: (v.name, int(v.version)))
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    return (
        [(v.name, v.version, v.source, v.run_id, v.tags, v.description, v.last_updated_timestamp) for v in versions],
        [(m.model_id, m.tags, m.last_updated_timestamp) for m in client.search_logged_models([experiment])],
        {
            trial: [
                (p.step, p.timestamp, p.value) for p in client.get_metric_history(run_id, "top1")
            ]
            for trial, run_id in runs_of(client).items()
        },
    )  # fmt: skip


def test_registering_again_adds_nothing_and_says_so(storage: Path) -> None:
    invoke("register", "s", "--front")
    before = everything(client_of(storage))
    output = invoke("register", "s", "--front")
    assert output.count("nothing was added") == 3
    assert everything(client_of(storage)) == before
    # The mirror has nothing to correct either: the model's metrics are no second points of the run's.
    store = SweepStore(storage / "s")
    Tracker(store, uri=resolve_uri("", storage), experiment="bitfront").sync(alive=False)
    assert everything(client_of(storage)) == before
    assert [len(points) for points in before[2].values() if points] == [1] * 5  # type: ignore[index]


def test_the_front_is_registered_cheapest_first_and_an_alias_moves(storage: Path) -> None:
    found = json.loads(invoke("register", "s", "--front", "--json"))
    assert [(one["uri"], one["trial"], one["added"]) for one in found] == [
        ("models:/s/1", "t0000", "version"), ("models:/s/2", "t0001", "version"), ("models:/s/3", "t0002", "version"),
    ]  # fmt: skip
    output = invoke("register", "s", "--trial", "0", "--alias", "champion", "--alias", "small")
    assert "models:/s@champion: version 1 (is new)" in output
    assert "models:/s@champion: version 3 (moves from version 1)" in invoke(
        "register", "s", "--trial", "t0002", "--alias", "champion"
    )
    assert client_of(storage).get_registered_model("s").aliases == {"champion": 3, "small": 1}
    again = invoke("register", "s", "--trial", "2", "--alias", "champion")
    assert "models:/s@champion: version 3 (stays)" in again


def test_variables_that_name_a_registry_elsewhere_redirect_nothing(
    storage: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "theirs.db")
    theirs = f"sqlite:///{tmp_path / 'theirs.db'}"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", theirs)
    invoke("register", "s")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    assert [model.name for model in client_of(storage).search_registered_models()] == ["s"]
    assert MlflowClient(theirs).search_registered_models() == []


def test_a_trial_that_is_named_twice_is_registered_once(storage: Path) -> None:
    found = json.loads(invoke("register", "s", "--trial", "1", "--trial", "t0001", "--json"))
    assert [one["trial"] for one in found] == ["t0001"]


def test_a_policy_that_hundreds_found_is_registered_with_the_best_of_them(storage: Path, work: CostModel) -> None:
    store = SweepStore(storage / "s")
    for number in range(6, 66):
        add_trial(store, work, number, bits=3, top1=10.0 + number)
    invoke("register", "s")
    (version,) = client_of(storage).search_model_versions("name = 's'")
    found = json.loads(version.tags["bitfront.found_by"])
    named = [key for key in found if key != "more"]
    assert len(named) + found["more"]["s@1000"] == 62
    assert len(named) >= 10
    assert {"s@1000/t0001", "s@1000/t0003"} <= set(named)  # the best of all
    assert f"and {found['more']['s@1000']} more" in version.description
    assert max(len(version.description), len(version.tags["bitfront.found_by"])) <= 5000
    assert "nothing was added" in invoke("register", "s")


def test_two_that_register_at_once_make_one_model(storage: Path) -> None:
    invoke("sync", "s")
    command = [sys.executable, "-m", "service.cli", "register", "s", "--storage", str(storage)]
    client = client_of(storage)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    told = [one.communicate()[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert "Traceback" not in "".join(told)
    assert [model.name for model in client.search_registered_models()] == ["s"]


def test_two_sweeps_that_found_one_policy_share_its_version(storage: Path) -> None:
    invoke("register", "s", "--name", "resnet8 on digits")
    output = invoke("register", "other", "--name", "resnet8 on digits")
    assert "what it says of who found it is new" in output
    (version,) = client_of(storage).search_model_versions("name = 'resnet8 on digits'")
    assert list(json.loads(version.tags["bitfront.found_by"])) == [
        "s@1000/t0001", "s@1000/t0003", "other@1500/t0001", "other@1500/t0003"
    ]  # fmt: skip
    assert "[other@1500/t0001](#/experiments/" in version.description


def test_a_policy_off_the_front_is_registered_only_when_it_is_named(storage: Path) -> None:
    found = json.loads(invoke("register", "s", "--front", "--json"))
    assert "t0005" not in {one["trial"] for one in found}
    output = invoke("register", "s", "--trial", "5")
    assert "t0005 is not on the front of 3; it is registered because it was named" in output
    versions = {v.tags["bitfront.trial"]: v.tags["bitfront.front"] for v in client_of(storage).search_model_versions()}
    assert versions["t0005"] == "false"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("s", "--trial", "9"), "s has no trial '9'; known: t0000, t0001"),
        (("s", "--trial", "4"), "s/t0004 is diverged and has no policy to register: only a trial that is done has."),
        (("s", "--front", "--alias", "champion"), "--alias champion is for one policy, and 3 are chosen; name its tr"),
        (("s", "--trial", "0", "--front"), "--trial names policies, and --front takes all of the front"),
        (("s", "--alias", "latest"), "--alias 'latest': give letters"),
        (("s", "--alias", "v2"), "--alias 'v2': give letters"),
        (("s", "--name", "a/b"), "--name 'a/b': give letters"),
        (("nobody",), "holds no sweep 'nobody'; known: other, s"),
        (("s", "--uri", "http://127.0.0.1:9"), "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_what_cannot_be_registered_is_an_error_that_says_the_fix(
    storage: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in invoke("register", *arguments, status=2)
    assert client_of(storage).search_registered_models() == []


def test_a_sweep_without_a_front_says_so(storage: Path, work: CostModel) -> None:
    sweep = SweepRecord(name="none", spec_hash="h", facts={}, total_trials=1, created_ms=1)
    add_trial(
        SweepStore.create(storage, sweep, spec_text=SPEC.format(name="none")), work, 0, bits=2, top1=0.0, state="failed"
    )
    assert "none has no front: no trial is done within the constraints" in invoke("register", "none", status=2)


def test_a_policy_beyond_the_constraints_is_told_as_such(storage: Path) -> None:
    store = SweepStore(storage / "s")
    store.save_sweep(replace(store.sweep(), constraints=("top1 >= 65",)))
    assert "t0005 is beyond the constraints; it is registered because" in invoke("register", "s", "--trial", "5")


def test_while_its_driver_lives_the_driver_alone_keeps_the_record(storage: Path) -> None:
    with driver.hold(storage / "s"):
        message = invoke("register", "s", status=2)
        assert "s is running, and its driver has not recorded t0001 at" in message
        assert client_of(storage).get_experiment_by_name("bitfront") is None
        Tracker(SweepStore(storage / "s"), uri=resolve_uri("", storage), experiment="bitfront").sync(alive=True)
        assert "models:/s/1" in invoke("register", "s")


def test_after_the_runs_were_rebuilt_registering_again_leads_to_the_new_ones(storage: Path) -> None:
    invoke("register", "s", "--alias", "champion")
    client = client_of(storage)
    old = runs_of(client)
    for run_id in [*old.values(), client.get_run(old["t0001"]).data.tags["mlflow.parentRunId"]]:
        client.delete_run(run_id)
    assert "what it says of who found it is new" in invoke("register", "s")
    new = runs_of(client)
    assert new["t0001"] != old["t0001"]
    (version,) = client.search_model_versions("name = 's'")
    assert client.get_registered_model("s").aliases == {"champion": 1}
    assert new["t0001"] in version.description
    assert old["t0001"] not in version.description
    assert client.get_run(new["t0001"]).outputs.model_outputs[0].model_id == version.source.removeprefix("models:/")
    assert "nothing was added" in invoke("register", "s")


def test_a_lost_database_gets_its_registry_back(storage: Path, empty_database: Path) -> None:
    invoke("register", "s", "--alias", "champion")
    before = invoke("policy", "show", "models:/s@champion")
    shutil.copy(empty_database, storage / "mlflow.db")
    shutil.rmtree(storage / "artifacts")
    assert "has no registered model 's'; none is registered there" in invoke("policy", "show", "models:/s/1", status=2)
    invoke("register", "s", "--alias", "champion")
    assert invoke("policy", "show", "models:/s@champion") == before


def test_what_was_cut_off_is_gone_on_with(storage: Path) -> None:
    """A logged model without its files and without a version; then a version whose files are lost."""
    invoke("register", "s")
    client = client_of(storage)
    (version,) = client.search_model_versions("name = 's'")
    client.delete_registered_model("s")
    place = Path(client.get_logged_model(version.source.removeprefix("models:/")).artifact_location[7:])
    shutil.rmtree(place)
    invoke("register", "s")
    (again,) = client.search_model_versions("name = 's'")
    assert again.source == version.source
    assert sorted(path.name for path in place.iterdir()) == ["MLmodel", "policy.json"]
    (place / "policy.json").unlink()
    assert "nothing was added" in invoke("register", "s")
    assert (place / "policy.json").exists()
    client.delete_logged_model(version.source.removeprefix("models:/"))
    assert "models:/s/2: s/t0001's policy" in invoke("register", "s")


def test_every_command_on_policies_takes_a_registered_one(storage: Path) -> None:
    invoke("register", "s", "--front", "--name", "net")
    invoke("register", "s", "--name", "net", "--alias", "champion")
    shown = json.loads(invoke("policy", "show", "models:/net@champion", "--json"))
    assert shown["hash"] == SweepStore(storage / "s").trial("t0001").policy_hash
    assert json.loads(invoke("policy", "cost", "models:/net/1", "s/0", "--json"))[0]["costs"] == shown_costs(storage, 0)
    assert "models:/net/3" in invoke("policy", "diff", "models:/net/1", "models:/net/3")
    assert "fine, 10 layers of resnet8" in invoke("policy", "validate", "models:/net/2")
    assert "bops_g is" in invoke("policy", "validate", "models:/net/3", "--bops-g", "0.001", status=1)
    invoke("policy", "set", "models:/net/2", "layer2.*=4/-", "-o", "new.json")
    assert PolicyRecord.load(Path("new.json")).parent == shown["hash"]
    message = invoke("policy", "solve", "models:/net/1", "--bops-g", "1", status=2)
    assert "models:/net/1 is a registered policy, which does not say what its search ended with" in message


def shown_costs(storage: Path, number: int) -> dict[str, float]:
    return dict(SweepStore(storage / "s").policy(f"t{number:04d}").costs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/s", "give models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/z/1", "has no registered model 'z'; known: s"),
        ("models:/s/7", "s has no version 7; known: 1"),
        ("models:/s@champoin", "s has no alias 'champoin'; did you mean 'champion'?"),
        ("models:/foreign/1", "models:/foreign/1 has no policy.json"),
    ],
)
def test_a_registered_policy_that_is_not_there_is_an_error_with_what_is(storage: Path, name: str, message: str) -> None:
    invoke("register", "s", "--alias", "champion")
    client = client_of(storage)
    if "foreign" in name:
        client.create_registered_model("foreign")
        client.create_model_version("foreign", (storage / "nothing").as_uri())
    for command in ("show", "validate"):
        assert message in invoke("policy", command, name, status=2)


def test_where_nothing_was_ever_recorded_no_database_is_made(storage: Path) -> None:
    (storage / "mlflow.db").unlink()
    assert "mlflow.db does not exist; register a policy" in invoke("policy", "show", "models:/s/1", status=2)
    assert not (storage / "mlflow.db").exists()


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[str]:
    """An MLflow server that keeps the artifacts itself: clients see mlflow-artifacts:/ and no folder of its."""
    shutil.copy(empty_database, tmp_path / "server.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "kept"), "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, cwd=tmp_path)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def test_a_server_that_keeps_the_artifacts_has_the_same(
    storage: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("register", "s", "--uri", server, "--alias", "champion")
    client = MlflowClient(server)
    check_first_version(client)
    (version,) = client.search_model_versions("name = 's'")
    assert client.get_logged_model(version.source.removeprefix("models:/")).artifact_location.startswith("mlflow-art")
    assert "nothing was added" in invoke("register", "s", "--uri", server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert "fine, 10 layers of resnet8" in invoke("policy", "validate", "models:/s@champion")
