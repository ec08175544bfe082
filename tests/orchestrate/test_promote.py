"""Promotions as people run them: a real sweep's front, finetuned on other data by processes that may be killed."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster

from dashboards.gallery import section
from service.baseline import Baseline
from service.promoted import model_folder, sources_of
from service.records import SweepStore
from service.view import read_view

from .conftest import Bitfront, wait_for

SWEEP = """\
name: found
network: {name: resnet8}
data: {name: digits, image_size: 8, fraction: 0.3}
reference: {epochs: 2, batch_size: 64}
method: {name: gmpq, epochs: 1, batch_size: 64, eta: 1.0, zeta: 0.1}
finetune: {epochs: 1, batch_size: 64}
space: {budget.compression: {grid: [0.0, 160.0]}}
sampler: {name: grid}
gallery: {random: false}
resources: {concurrency: 2}
storage: {path: st}
promote: {to: deep/t.yaml, rule: all}
"""
TEMPLATE = """\
name: target
data: {name: digits, image_size: 12, fraction: 0.5}
reference: {epochs: 1, batch_size: 64}
finetune: {epochs: 3, batch_size: 32, quantizer: lsq, ema: 0.9, checkpoint_every: 2}
"""
TIMED = ("device_hours", "finetune_device_hours", "images_per_s")


def written(folder: Path, template: str) -> Path:
    (folder / "deep").mkdir()
    (folder / "s.yaml").write_text(SWEEP)
    (folder / "deep" / "t.yaml").write_text(template)
    return folder / "st"


def results(store: SweepStore) -> dict[str, dict[str, float]]:
    """What was measured of each policy, without what a clock has told."""
    return {t.trial_id: {k: v for k, v in t.metrics.items() if k not in TIMED} for t in store.trials()}


def weights(store: SweepStore, trial_id: str) -> dict[str, torch.Tensor]:
    path = model_folder(store.trial_folder(trial_id)) / "model.pt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


def test_a_front_is_finetuned_once_and_what_is_cut_off_goes_on_to_the_same_weights(
    bitfront: Bitfront, tmp_path_factory: pytest.TempPathFactory
) -> None:
    storage = written(bitfront.folder, TEMPLATE)
    told = bitfront("run", "s.yaml")
    assert "target: 2 policies, 2 to finetune" in told
    assert "models:/target@champion" in told
    store, sweep = SweepStore(storage / "target"), SweepStore(storage / "found")
    # The sweep's gallery is without a random policy, and has its maps.
    assert "random policy" not in told
    assert Baseline.find(sweep.folder) is None
    assert all((sweep.trial_folder(trial.trial_id) / "attribution.npz").exists() for trial in sweep.trials())
    assert section(read_view(sweep))
    trials = store.trials()
    assert {trial.state for trial in trials} == {"done"}
    assert {trial.policy_hash for trial in trials} == {trial.policy_hash for trial in sweep.trials()}
    for trial in trials:
        (first, *_) = sources_of(store.trial_folder(trial.trial_id))
        assert sweep.trial(first.trial).policy_hash == trial.policy_hash
        assert trial.metrics["top5"] >= trial.metrics["top1"] > 10
        assert f"\n{trial.policy_hash}" in (store.folder / "final.csv").read_text()
    # The same policies by the same recipe, as the sweep has kept it: nothing is done.
    shutil.rmtree(bitfront.folder / "deep")
    kept = str(sweep.folder / "promote.yaml")
    assert "2 policies, 0 to finetune" in bitfront("promote", "found", "--to", kept, "--rule", "all", "--storage", "st")
    assert SweepStore(store.folder).trials() == trials
    killed = SweepStore(_killed_in_the_middle(tmp_path_factory.mktemp("killed"), storage) / "target")
    bitfront("resume", "target", "--storage", str(killed.folder.parent))
    assert results(SweepStore(killed.folder)) == results(store)
    for trial in trials:
        ours, theirs = weights(store, trial.trial_id), weights(killed, trial.trial_id)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _killed_in_the_middle(folder: Path, storage: Path) -> Path:
    """A storage like this one where the promotion's driver, and all below it, ended within the first finetune."""
    shutil.copytree(storage, folder / "st")
    shutil.rmtree(folder / "st" / "target")
    command = Bitfront(folder)
    kept = str(folder / "st" / "found" / "promote.yaml")
    process = command.start("promote", "found", "--to", kept, "--storage", "st", "--rule", "all")
    store = SweepStore(folder / "st" / "target")
    try:
        wait_for(lambda: list(store.folder.glob("trials/*/checkpoint.pt")))
    finally:
        command.close()
    assert process.wait(20) == -signal.SIGKILL
    assert any(trial.state == "running" for trial in store.trials())
    return folder / "st"


@pytest.mark.long
def test_a_finetune_that_fails_is_run_again(bitfront: Bitfront) -> None:
    limited = TEMPLATE.replace("fraction: 0.5", "fraction: 1.0") + "limits: {trial_time: 1s, retries: 0}\n"
    storage = written(bitfront.folder, limited)
    told = bitfront("run", "s.yaml", status=1)
    assert "ran longer than limits.trial_time (1s)" in told
    store = SweepStore(storage / "target")
    assert [trial.failure for trial in store.trials()] == ["timed out", "timed out"]
    # Other limits are no other recipe.
    kept = store.folder / "spec.yaml"
    kept.write_text(kept.read_text().replace("trial_time: 1s", "trial_time: 10m"))
    bitfront("rerun-failed", "target", "--storage", "st")
    assert {trial.state for trial in SweepStore(store.folder).trials()} == {"done"}


@pytest.mark.long
def test_workers_under_ray_train_finetune_as_one_does(bitfront: Bitfront) -> None:
    storage = written(bitfront.folder, TEMPLATE + "resources: {workers: 2}\n")
    bitfront("run", "s.yaml", timeout=480)
    trials = SweepStore(storage / "target").trials()
    assert {trial.state for trial in trials} == {"done"}
    assert all(trial.metrics["top1"] > 10 for trial in trials)


@pytest.mark.long
def test_a_finetune_that_loses_a_machine_goes_on_with_fewer_workers(bitfront: Bitfront) -> None:
    elastic = TEMPLATE.replace("epochs: 3", "epochs: 20") + "resources: {workers: 2, min_workers: 1}\n"
    storage = written(bitfront.folder, elastic)
    (bitfront.folder / "s.yaml").write_text(SWEEP.replace("promote: {to: deep/t.yaml, rule: all}\n", ""))
    bitfront("run", "s.yaml")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        kept, lost = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
        process = bitfront.start(
            "promote", "found", "--to", "deep/t.yaml", "--storage", "st", "--address", cluster.address
        )
        store = SweepStore(storage / "target")
        wait_for(lambda: list(store.folder.glob("trials/*/history.jsonl")), seconds=240)
        (history,) = store.folder.glob("trials/*/history.jsonl")
        before = history.read_text()
        cluster.remove_node(lost, allow_graceful=False)
        output, _ = process.communicate(timeout=480)
        assert kept in cluster.worker_nodes
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    (trial,) = store.trials()
    assert trial.state == "done"
    assert history.read_text().startswith(before)
    assert [line["epoch"] for line in store.history(trial.trial_id)] == list(range(1, 21))
