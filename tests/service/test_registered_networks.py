"""Networks of promotions in MLflow's registry, each the outcome of a real finetune, loaded back and measured."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

from service.cli import main
from service.mirror import Tracker
from service.promoted import model_folder, sources_of
from service.promotion import stored_template
from service.records import SweepStore
from service.registry import Registered, best_by, register_best
from service.served_model import ServedModel, _load_pyfunc
from service.tracking import resolve_uri
from trainables import api
from trainables.bops import CostModel
from trainables.config import DataConfig
from trainables.data import load_data
from trainables.detection.detectors import build_detector
from trainables.detector_config import DetectorNetworkConfig
from trainables.errors import ConfigError, StorageError
from trainables.finetuned_model import LoadedModel, load_model
from trainables.model_files import ModelCard
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

Make = Callable[..., SweepStore]


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `storage` keeps what the finetunes have left, made once."""
    return tmp_path_factory.mktemp("finetuned")


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "st"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITFRONT_STORAGE", "st")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def search(storage: Path, recorded_search: Make) -> SweepStore:
    return recorded_search(storage, [(2, 70.0), (4, 90.0)])


def finetune(store: SweepStore, cache: Path, *, better_by: float = 0.0) -> None:
    """Finetunes what is planned, here, a policy once in all tests; `better_by` is added to what it reaches."""
    template = stored_template(store)
    torch.set_num_threads(1)
    for trial in store.trials():
        if trial.final:
            continue
        record, kept = store.policy(trial.trial_id), cache / trial.trial_id
        begun = store.start_trial(trial.trial_id, now_ms=30_000 + trial.number)
        if not kept.exists():
            config, references = template.config(record), cache / "references"
            api.ensure_reference(config, lambda epoch: None, store=references)
            result = api.finetune(config, record, lambda epoch: None, store=references, output=kept)
            (cache / f"{kept.name}.json").write_text(json.dumps(dict(result.metrics)))
        shutil.copytree(kept, model_folder(store.trial_folder(trial.trial_id)))
        metrics = json.loads((cache / f"{kept.name}.json").read_text())
        metrics["top1"] += better_by
        done = replace(begun, state="done", ended_ms=30_500, metrics=metrics, policy_hash=record.policy.hash)
        store.finish_trial(done)
    store.save_sweep(replace(store.sweep(), ended_ms=31_000, end="finished"))


@pytest.fixture
def promotion(search: SweepStore, recorded_promotion: Make, finetuned: Path) -> SweepStore:
    store = recorded_promotion(search, {})
    finetune(store, finetuned)
    return store


def invoke(*arguments: str, status: int = 0) -> str:
    found = CliRunner().invoke(main, list(arguments))
    assert found.exit_code == status, found.output
    assert "Traceback" not in found.output
    return found.output


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The validation images as uint8 [N, 3, 16, 16], and their labels."""
    held_out = load_data(DataConfig(name="digits", image_size=16)).validation
    return held_out.pixels(torch.arange(len(held_out))).numpy(), held_out.labels.numpy()


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(100 * (scores.argmax(axis=1) == labels).mean())


def best_of(store: SweepStore) -> str:
    return best_by(store.trials(), "top1", name="p").trial_id


def register(store: SweepStore, uri: str = "", **given: str) -> Registered:
    place = resolve_uri(uri, store.folder.parent)
    wanted = {"model": "net", "alias": "champion", "objective": "top1", **given}
    return register_best(store, place, "bitfront", **wanted)


def test_a_network_loaded_back_by_mlflow_alone_has_the_recorded_accuracy(
    promotion: SweepStore, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = register(promotion)
    best = promotion.trial(best_of(promotion))
    assert found.trial == best.trial_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", resolve_uri("", storage))
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    model = mlflow.pyfunc.load_model("models:/net@champion")
    images, labels = digits()
    scores = model.predict(images)
    assert scores.shape == (len(labels), 10)
    assert top1(scores, labels) == pytest.approx(best.metrics["top1"])
    # Floating point pixels are the same images.
    np.testing.assert_allclose(model.predict(images.astype(np.float32) / 255), scores, atol=1e-4)
    folder = mlflow.artifacts.download_artifacts("models:/net@champion")
    assert load_model(Path(folder)).record.policy.hash == best.policy_hash
    assert {"MLmodel", "model.json", "model.pt", "policy.json"} <= {path.name for path in Path(folder).iterdir()}
    assert not list(Path(folder).rglob("*.pkl"))


@pytest.mark.long
def test_a_fresh_process_and_a_real_server_give_the_recorded_accuracy(
    promotion: SweepStore, storage: Path, serve: Callable[[Path], str], tmp_path: Path
) -> None:
    uri = serve(storage)
    register(promotion, uri)
    images, labels = digits()
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    script = (
        "import mlflow, numpy as np; d = np.load('digits.npz'); mlflow.set_tracking_uri(%r);"
        "s = mlflow.pyfunc.load_model('models:/net@champion').predict(d['images']);"
        "print('top1', 100 * (s.argmax(1) == d['labels']).mean())"
    )
    command = [sys.executable, "-c", script % uri]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    recorded = promotion.trial(best_of(promotion)).metrics["top1"]
    assert float(told.stdout.split("top1 ")[1]) == pytest.approx(recorded)


def test_the_version_has_metrics_data_origin_and_settings(promotion: SweepStore, storage: Path) -> None:
    uri = resolve_uri("", storage)
    Tracker(promotion, uri=uri, experiment="bitfront").sync(alive=False)
    register(promotion)
    client, best = MlflowClient(uri), promotion.trial(best_of(promotion))
    version = client.get_model_version_by_alias("net", "champion")
    card = ModelCard.load(model_folder(promotion.trial_folder(best.trial_id)))
    (source,) = sources_of(promotion.trial_folder(best.trial_id))
    # The search is not recorded here; its trial is named without a link, and with one after a sync.
    assert f"| s@1000/{source.trial} | {source.metrics['top1']:.2f} |" in version.description
    assert f"top-1 {best.metrics['top1']:.2f} % at {best.metrics['bops_g']:.4g} G BOPs: resnet8 on digits" in (
        version.description
    )
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    digest = card.data_fingerprint[:12]
    measured = {(m.key, m.dataset_name, m.dataset_digest): m.value for m in logged.metrics}
    assert measured["top1", "digits-validation", digest] == best.metrics["top1"]
    assert measured["bops_g", "digits-validation", digest] == best.metrics["bops_g"]
    assert (logged.params["quantizer"], logged.params["finetune.epochs"]) == ("pact", "2")
    assert version.tags["bitfront.finetune"] == f"p@20000/{best.trial_id}"
    assert version.tags["bitfront.policy_hash"] == best.policy_hash
    run = client.get_run(version.run_id)
    assert run.data.tags["bitfront.trial"] == best.trial_id
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    search = SweepStore.open(storage / "s")
    Tracker(search, uri=uri, experiment="bitfront").sync(alive=False)
    assert register(promotion).added == "lineage"
    assert f"[s@1000/{source.trial}](#/experiments/" in client.get_model_version("net", version.version).description


def test_registering_again_changes_nothing_and_a_better_network_takes_the_alias(
    promotion: SweepStore, search: SweepStore, storage: Path, recorded_promotion: Make, finetuned: Path
) -> None:
    first = register(promotion)
    assert (first.version, first.added, first.aliases) == ("1", "version", {"champion": ""})
    again = register(promotion)
    assert (again.version, again.added, again.aliases) == ("1", "", {"champion": "1"})
    # Another recipe's networks are others, of the same policies.
    better, worse = (
        recorded_promotion(search, {}, name=name, seed=seed, now_ms=40_000 + seed)
        for seed, name in ((1, "q"), (2, "r"))
    )
    finetune(better, finetuned, better_by=0.5)
    finetune(worse, finetuned, better_by=0.25)
    assert register(better).aliases == {"champion": "1"}
    third = register(worse)
    assert (third.version, third.aliases, third.kept) == ("3", {}, {"champion": "2"})
    assert register(promotion).kept == {"champion": "2"}
    assert register(better).aliases == {"champion": "2"}
    client = MlflowClient(resolve_uri("", storage))
    assert str(client.get_model_version_by_alias("net", "champion").version) == "2"
    # By another objective another one may be the best: here all cost the same, and the alias moves as it is asked for.
    assert register(worse, objective="bops_g", alias="cheap").aliases == {"cheap": ""}
    assert register(promotion, objective="bops_g", alias="cheap").kept == {}


def test_the_command_registers_networks_and_the_policy_commands_read_them(promotion: SweepStore) -> None:
    output = invoke("register", "p", "--front", "--name", "nets")
    assert "models:/nets/1: p/p" in output
    assert "'s network" in output
    assert "its policy was found by s/t000" in output
    assert "nothing was added" in invoke("register", "p", "--front", "--name", "nets")
    assert "resnet8" in invoke("policy", "show", "models:/nets/1")
    told = json.loads(invoke("register", "p", "--json", "--name", "nets", "--alias", "best"))
    assert (told[0]["what"], told[0]["aliases"]) == ("network", {"best": ""})


@pytest.mark.long
def test_policies_and_networks_of_one_model_name_are_versions_of_their_own(promotion: SweepStore) -> None:
    assert "models:/all/1" in invoke("register", "p", "--front", "--name", "all")
    output = invoke("register", "s", "--front", "--name", "all")
    assert "'s policy" in output
    assert "models:/all/3" in output
    assert "nothing was added" in invoke("register", "s", "--front", "--name", "all")


def test_a_network_that_was_removed_cannot_be_registered(promotion: SweepStore) -> None:
    trial = best_of(promotion)
    shutil.rmtree(model_folder(promotion.trial_folder(trial)))
    assert f"p/{trial} has no model/model.json: its network was removed" in invoke(
        "register", "p", "--trial", trial, status=2
    )


def test_the_best_is_told_by_the_objective_and_its_direction(promotion: SweepStore) -> None:
    trials = promotion.trials()
    cheapest = min(trials, key=lambda trial: trial.metrics["bops_g"])
    assert best_by(trials, "bops_g", name="p") == cheapest
    equal = [replace(trial, metrics={**trial.metrics, "top1": 50.0}) for trial in trials]
    assert best_by(equal, "top1", name="p").trial_id == cheapest.trial_id
    with pytest.raises(ConfigError, match=r"register.objective is 'map', which p does not measure"):
        best_by(trials, "map", name="p")
    with pytest.raises(StorageError, match="p has no finished finetune"):
        best_by([], "top1", name="p")


def test_images_that_are_none_are_refused_with_what_would_be_right(promotion: SweepStore) -> None:
    served: ServedModel = _load_pyfunc(str(model_folder(promotion.trial_folder(best_of(promotion)))))
    images, _ = digits()
    assert served.predict(images[:0]).shape == (0, 10)
    with pytest.raises(ConfigError, match=r"images are \[3, 16, 16\]; give \[N, C, S, S\]"):
        served.predict(images[0])
    with pytest.raises(ConfigError, match=r"images are \[2, 3, 8, 16\]; give \[N, 3, 16, 16\]"):
        served.predict(images[:2, :, :8])
    with pytest.raises(ConfigError, match="values from 0 to 255; give pixels from 0 to 1"):
        served.predict(images[:2].astype(np.float32))
    with pytest.raises(ConfigError, match="images are of int64"):
        served.predict(images[:2].astype(np.int64))


def test_a_detector_gives_boxes_labels_and_scores_of_each_image(work: CostModel) -> None:
    config = DetectorNetworkConfig(name="fasterrcnn_resnet18", min_size=64, max_size=96)
    torch.manual_seed(0)
    net = build_detector(config, num_classes=3).net.eval()
    card = ModelCard(
        task="detection", network=config.name, num_classes=3, image_size=0, quantizer="pact", mean=(), std=()
    )
    policy = BitPolicy(network="resnet8", bits={layer: LayerBits(4, 4) for layer in work.layers})
    record = PolicyRecord(policy=policy, method="uniform", settings={}, costs={})
    images = [np.random.default_rng(seed).integers(0, 256, (3, 64, 64 + seed), dtype=np.uint8) for seed in (0, 1)]
    found = ServedModel(LoadedModel(net, card, record)).predict(images)
    with torch.inference_mode():
        expected = [net([torch.from_numpy(image).float() / 255])[0] for image in images]
    assert sum(len(one["scores"]) for one in found) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == {"boxes", "labels", "scores"}
        for name, values in ours.items():
            np.testing.assert_allclose(values, theirs[name].numpy(), rtol=1e-5)
