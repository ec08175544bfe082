"""Nights of a real sweep: the second reproduces the first, and a planted change of a quantiser is caught as drift."""

import json
import signal
import time
from pathlib import Path

import pytest

from service.nightly_report import SweepReport, read_report
from tests.orchestrate import test_jobs
from tests.orchestrate.conftest import Bitfront

head = test_jobs.head

SWEEP = """\
name: tiny
network: {name: resnet8}
data: {name: digits, image_size: 8, fraction: 0.3}
reference: {epochs: 2, batch_size: 64}
method: {epochs: 1, batch_size: 64, zeta: 0.1}
budget: {bops_g: 0.01}
finetune: {epochs: 1, batch_size: 64, quantizer: lsq}
space:
  seed: {grid: [0, 1]}
  method.name: {choice: [uniform, edmips]}
sampler: {name: grid}
resources: {concurrency: 2}
gallery: {images: 0, random: false}
"""
PLANT = '''\
"""Weights of LSQ start with half of their range, in every process that finds this file first."""

import importlib.abc
import importlib.util
import sys


class Plant(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "trainables.quantizers.lsq":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            import torch

            @torch.no_grad()
            def calibrate(self, weight):
                mean, spread = weight.mean(), weight.std(correction=0)
                self._start([(mean.abs() + 1.5 * spread) / -grid.lo for grid in self.grids])

            module.LsqWeights.calibrate = calibrate

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Plant())
'''


def night_of(bitfront: Bitfront, night: str) -> SweepReport:
    (found,) = read_report(bitfront.folder / "bitfront-sweeps" / "nightly" / night / "report.json").sweeps
    return found


@pytest.fixture
def sweep(bitfront: Bitfront) -> Path:
    folder = bitfront.folder / "sweeps"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(SWEEP)
    (folder / "tiny.expect.yaml").write_text("match: identical\n")
    return folder


@pytest.mark.long
def test_a_night_is_reproduced_and_a_planted_change_of_a_quantiser_is_caught(bitfront: Bitfront, sweep: Path) -> None:
    bitfront("nightly", "sweeps", "--night", "n1", "--accept-new", timeout=900)
    first = night_of(bitfront, "n1")
    assert first.verdict == "new"
    assert 1 < first.metrics["step_ratio"] < 20
    assert first.environment["device"]
    assert json.loads((sweep / "tiny.baseline.json").read_text())["outcome"]["night"] == "n1"

    output = bitfront("nightly", "sweeps", "--night", "n2", timeout=900)
    second = night_of(bitfront, "n2")
    assert (second.verdict, second.identical, second.policies.same) == ("reproduced", True, 4)
    assert "to the last bit" in output
    assert (bitfront.folder / "bitfront-sweeps" / "nightly" / "trend.html").exists()

    plant = bitfront.folder / "plant"
    plant.mkdir()
    (plant / "sitecustomize.py").write_text(PLANT)
    bitfront.environment["PYTHONPATH"] = f"{plant}:{bitfront.environment['PYTHONPATH']}"
    output = bitfront("nightly", "sweeps", "--night", "n3", status=5, timeout=900)
    third = night_of(bitfront, "n3")
    assert (third.verdict, third.identical) == ("drifted", False)
    assert {"top1", "ard"} <= {found.what for found in third.drifted}
    assert all(found.times_spread is not None for found in third.drifted if found.what == "top1")
    assert "drifted" in output


@pytest.mark.long
def test_a_night_that_is_interrupted_ends_in_order_and_goes_on(bitfront: Bitfront, sweep: Path) -> None:
    text = SWEEP.replace("epochs: 2", "epochs: 400")
    (sweep / "tiny.yaml").write_text(text)
    process = bitfront.start("nightly", "sweeps", "--night", "n1")
    reference = bitfront.folder / "bitfront-sweeps" / "tiny-n1" / "log.txt"
    for _ in range(1200):
        if reference.exists() and "training" in reference.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Not reached: tiny; go on with: bitfront nightly --night n1" in output
    assert "closed" in reference.read_text()
    report = read_report(bitfront.folder / "bitfront-sweeps" / "nightly" / "n1" / "report.json")
    assert (report.left, report.ended_ms) == (("tiny",), 0)


@pytest.mark.long
def test_a_sweep_whose_process_is_killed_is_broken_with_how_it_ended(bitfront: Bitfront, sweep: Path) -> None:
    """As by the kernel where memory runs out: nobody can say anything any more."""
    plant = bitfront.folder / "plant"
    plant.mkdir()
    kill = "import os, signal, sys\nif 'run' in sys.orig_argv: os.kill(os.getpid(), signal.SIGKILL)\n"
    (plant / "sitecustomize.py").write_text(kill)
    bitfront.environment["PYTHONPATH"] = f"{plant}:{bitfront.environment['PYTHONPATH']}"
    output = bitfront("nightly", "sweeps", "--night", "n1", status=3)
    assert "it was ended by signal 9" in output
    assert night_of(bitfront, "n1").verdict == "broken"


@pytest.mark.long
def test_a_night_of_jobs_waits_for_their_end_and_is_judged_by_what_the_cluster_left(
    bitfront: Bitfront, sweep: Path, head: str
) -> None:
    storage = ("--storage", str(bitfront.folder / "shared"))
    bitfront("nightly", "sweeps", "--night", "n1", "--submit", head, "--accept-new", *storage, timeout=900)
    (found,) = read_report(bitfront.folder / "shared" / "nightly" / "n1" / "report.json").sweeps
    assert found.verdict == "new"
    # The job measures where its trials were.
    assert found.metrics["step_ratio"] > 1
    assert found.environment["ray"]
    log = bitfront.folder / "shared" / "nightly" / "n1" / "sweeps" / "tiny" / "log.txt"
    assert "Stored in" in log.read_text()
    bitfront("nightly", "sweeps", "--night", "n2", "--submit", head, *storage, timeout=900)
    (again,) = read_report(bitfront.folder / "shared" / "nightly" / "n2" / "report.json").sweeps
    assert (again.verdict, again.identical) == ("reproduced", True)
