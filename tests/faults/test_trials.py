"""Trials that hang, and trials that ask for too much memory: they end with their class, and the others go on."""

import shutil
import subprocess
from pathlib import Path

import pytest

from service.records import SweepStore
from tests.orchestrate.conftest import Bitfront, descendants, named, wait_for

pytestmark = pytest.mark.long
SPEC = """\
name: s
data: {name: digits, image_size: 8, fraction: 0.2}
reference: {epochs: 1, batch_size: 64}
method: {name: gmpq, epochs: 2, batch_size: 64, eta: 1.0, zeta: 0.3}
finetune: {epochs: 1, batch_size: 64}
NETS
sampler: {name: grid, seed: 3}
gallery: {random: false}
trials: COUNT
limits: LIMITS
storage: {path: st}
"""


def write(folder: Path, *nets: str, limits: str) -> SweepStore:
    shutil.copy(Path(__file__).with_name("nets.py"), folder / "nets.py")
    names = ", ".join(f'"nets:{name}"' for name in nets)
    varied = f"space: {{network.name: {{choice: [{names}]}}}}"
    one = f"network: {{name: {names}}}\nspace: {{method.top_k: {{fixed: 2}}}}"
    text = SPEC.replace("NETS", varied if len(nets) > 1 else one)
    text = text.replace("COUNT", str(len(nets))).replace("LIMITS", limits)
    (folder / "s.yaml").write_text(text)
    return SweepStore(folder / "st" / "s")


def workers(process: subprocess.Popen[str]) -> list[int]:
    return named(descendants(process.pid), "ray::ImplicitFunc")


def test_trials_that_hang_are_ended_with_their_processes_and_the_others_go_on(bitfront: Bitfront) -> None:
    store = write(bitfront.folder, "sleepy", "stuck", "plain", limits="{stall: 45s, retries: 1}")
    process = bitfront.start("run", "s.yaml")
    hung: list[int] = []

    def has_hung() -> bool:
        hung.extend(pid for pid in workers(process) if pid not in hung)
        return process.poll() is not None

    wait_for(has_hung, seconds=540)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    sleepy, stuck, plain = store.trials()
    assert (sleepy.state, sleepy.failure) == ("failed", "timed out")
    assert sleepy.error == "told of no epoch for longer than limits.stall (45s)"
    assert (stuck.state, stuck.failure) == ("failed", "timed out")
    assert "nothing but the system could end it" in stuck.error
    assert plain.state == "done"
    for trial, function in ((sleepy, "in sleep"), (stuck, "in hold_the_interpreter")):
        assert function in (store.trial_folder(trial.trial_id) / "error.txt").read_text()
    assert len(hung) >= 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in hung)
    assert not list(store.folder.rglob("hung.txt"))


def test_a_trial_that_asks_for_too_much_memory_fails_with_advice_and_the_others_go_on(bitfront: Bitfront) -> None:
    store = write(bitfront.folder, "greedy", "plain", limits="{}")
    output = bitfront("run", "s.yaml", timeout=400)
    greedy, plain = store.trials()
    assert (greedy.state, greedy.failure, greedy.attempts) == ("failed", "out of memory", 1)
    assert "give it smaller batches" in greedy.error
    assert "bitfront rerun-failed" in output
    assert plain.state == "done"


def test_a_worker_that_the_memory_monitor_kills_goes_on_after_its_last_epoch_or_says_so(bitfront: Bitfront) -> None:
    """Ray takes the machine for full, whatever its memory is: it kills the trial each time it has begun."""
    store = write(bitfront.folder, "sleepy", limits="{retries: 1, stall: 300s}")
    bitfront.environment |= {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "500"}
    process = bitfront.start("run", "s.yaml")
    output, _ = process.communicate(timeout=400)
    assert "running low on memory" in output or "out of memory" in output, output
    assert process.returncode != 0
    if (store.folder / "trials" / "t0000").exists():
        (trial,) = store.trials()
        assert trial.failure == "out of memory"
        assert "give it smaller batches" in trial.error


def test_two_that_take_a_sweep_at_once_are_one_that_goes_on_and_one_that_is_refused(bitfront: Bitfront) -> None:
    store = write(bitfront.folder, "plain", limits="{}")
    both = [bitfront.start("run", "s.yaml") for _ in range(2)]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    statuses = [process.returncode for process in both]
    assert sorted(statuses) in ([0, 1], [0, 2]), outputs
    winner = both[statuses.index(0)].pid
    assert f"s is run by process {winner} on " in outputs[statuses.index(max(statuses))]
    assert [(trial.state, trial.attempts) for trial in store.trials()] == [("done", 1)]
