"""The scheduler on a real store, with Tune's trials as plain objects; and a whole sweep in which trials are pruned."""

import dataclasses
import json
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import cloudpickle
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.tune.schedulers import FIFOScheduler

from service.halving import Halving, rung_values
from service.orchestrate.scheduler import SweepScheduler, longest_trial
from service.pareto import front
from service.records import Failure, SweepStore
from service.spec import SweepSpec, load_spec
from service.sweeps import open_sweep
from trainables.report import EpochReport

from .conftest import Bitfront

SPEC = """\
name: s
network: {{name: resnet8}}
data: {{name: digits, image_size: 8, fraction: 0.3}}
reference: {{epochs: 2, batch_size: 64}}
method: {{name: gmpq, epochs: 4, batch_size: 64, eta: 1.0}}
finetune: {{epochs: 4, batch_size: 64}}
space: {space}
sampler: {{name: {sampler}, seed: 3}}
trials: {trials}
early_stopping: {early_stopping}
storage: {{path: {path}}}
"""
HALVING = "{name: successive-halving, reduction: 2, min_epochs: 2}"
HYPERVOLUME = "{name: hypervolume, share: 0.5}"
EPOCHS = [("search", epoch) for epoch in (1, 2, 3, 4)] + [("finetune", epoch) for epoch in (1, 2, 3, 4)]


def spec_of(folder: Path, **changes: object) -> SweepSpec:
    filled = {
        "space": "{method.zeta: {loguniform: [0.05, 2.0]}}",
        "sampler": "random",
        "trials": 12,
        "early_stopping": HALVING,
        "path": folder / "storage",
        **changes,
    }
    (folder / "s.yaml").write_text(SPEC.format(**filled))
    return load_spec(folder / "s.yaml")


@dataclass
class TuneTrial:
    """What the scheduler looks at of a trial of Ray Tune's."""

    config: dict[str, Any]
    pickled_error_file: str | None = None
    retries_left: bool = True

    def should_recover(self) -> bool:
        return self.retries_left


@dataclass
class Sweep:
    """A sweep whose trials report what is written down for them; one report after the other."""

    spec: SweepSpec
    store: SweepStore
    scheduler: SweepScheduler
    clock_ms: int = 100
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def begin(cls, spec: SweepSpec) -> "Sweep":
        store = open_sweep(spec, now_ms=1)
        return cls(spec, store, SweepScheduler(spec, store))

    def start(self, number: int) -> str:
        trial_id = f"t{number:04d}"
        self.store.plan_trial(trial_id, number=number, settings={"method.zeta": 0.1})
        self.store.start_trial(trial_id, now_ms=self.clock_ms)
        return trial_id

    def write(self, trial_id: str, stage: str, epoch: int, metrics: dict[str, float]) -> dict[str, Any]:
        """What the worker does with an epoch; the result that Tune brings to the driver."""
        self.clock_ms += 1
        report = EpochReport(stage=stage, epoch=epoch, epochs=4, metrics=metrics)  # type: ignore[arg-type]
        self.store.append_epoch(trial_id, report, seconds=1.0, now_ms=self.clock_ms)
        return {"stage": stage, "epoch": epoch, "epochs": 4, "seconds": 1.0, **metrics}

    def decide(self, trial_id: str, result: dict[str, Any]) -> str:
        return self.scheduler.on_trial_result(None, TuneTrial({"trial_id": trial_id}), result)  # type: ignore[arg-type]


def metrics_at(trial: int, stage: str, epoch: int, draw: random.Random) -> dict[str, float]:
    quality = (trial * 7) % 12
    if stage == "search":
        return {"task_risk": 3 - epoch / 4 + quality / 10 + draw.random() / 10, "policy_bops_g": 1 + quality / 4}
    return {"top1": 50 + epoch - quality + draw.random()}


def test_trials_are_pruned_exactly_where_halving_says_so_and_it_is_written_down(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    sweep, draw = Sweep.begin(spec), random.Random(0)
    oracle = Halving(min_epochs=2, reduction=2, epochs=8)
    assert oracle.rungs == [2, 4]
    pruned: dict[str, tuple[str, int]] = {}
    # Three trials at once, their epochs mixed.
    waiting = [(sweep.start(number), number) for number in range(12)]
    active = [(*waiting.pop(0), iter(list(enumerate(EPOCHS, start=1)))) for _ in range(3)]
    while active:
        place = draw.randrange(len(active))
        trial_id, number, epochs = active[place]
        step = next(epochs, None)
        if step is not None:
            count, (stage, epoch) = step
            metrics = metrics_at(number, stage, epoch, draw)
            decision = sweep.decide(trial_id, sweep.write(trial_id, stage, epoch, metrics))
            goes_on = oracle.report(trial_id, count, rung_values(stage, metrics, spec.objectives), stage=stage)
            assert decision == ("CONTINUE" if goes_on else "STOP")
            if goes_on:
                assert not sweep.store.trial(trial_id).final
                continue
            pruned[trial_id] = stage, epoch
        active.pop(place)
        if waiting:
            active.append((*waiting.pop(0), iter(list(enumerate(EPOCHS, start=1)))))
    assert 3 <= len(pruned) <= 9
    assert {epoch for _, epoch in pruned.values()} == {2, 4}
    for record in SweepStore(sweep.store.folder).trials():
        if record.trial_id in pruned:
            stage, epoch = pruned[record.trial_id]
            assert (record.state, record.metrics, record.failure) == ("pruned", {}, "")
            assert record.error == f"stopped early after epoch {epoch} of the {stage}"
            assert record.ended_ms >= record.started_ms > 0
        else:
            assert record.state == "running"


def test_by_hypervolume_trials_are_judged_after_the_first_epoch_of_each_stage_and_told_why(tmp_path: Path) -> None:
    sweep, draw = Sweep.begin(spec_of(tmp_path, early_stopping=HYPERVOLUME)), random.Random(0)
    decisions = run_until(sweep, draw, end=1000)
    assert {count for _, count, decision in decisions if decision == "STOP"} == {1, 5}
    assert 0.4 <= len(decisions) / (12 * 8) <= 0.6
    pruned = [trial.error for trial in sweep.store.trials() if trial.state == "pruned"]
    shown = r"stopped early after epoch 1 of the (search|finetune): \d+ of the last \d+ trials (add at|had a task)"
    assert all(re.match(shown, error) for error in pruned)
    assert {noted.epoch for noted in sweep.store.rungs()} == {1, 5}


def test_without_early_stopping_every_trial_goes_on(tmp_path: Path) -> None:
    sweep, draw = Sweep.begin(spec_of(tmp_path, early_stopping="{}")), random.Random(0)
    for number in range(6):
        trial_id = sweep.start(number)
        for stage, epoch in EPOCHS:
            worse = {name: number * value for name, value in metrics_at(number, stage, epoch, draw).items()}
            assert sweep.decide(trial_id, sweep.write(trial_id, stage, epoch, worse)) == "CONTINUE"


def test_the_last_result_of_a_trial_has_no_epoch_and_stops_nothing(tmp_path: Path) -> None:
    sweep = Sweep.begin(spec_of(tmp_path))
    for number, risk in enumerate((1.0, 2.0)):
        trial_id = sweep.start(number)
        sweep.decide(trial_id, sweep.write(trial_id, "search", 1, {"task_risk": risk}))
        assert sweep.decide(trial_id, {"state": "done", "top1": 50.0}) == "CONTINUE"


def test_an_epoch_is_judged_at_its_rung_also_when_its_worker_is_ahead(tmp_path: Path) -> None:
    """Workers under Ray Train do not wait for the driver: their next epoch may be in the history before it asks."""
    sweep = Sweep.begin(spec_of(tmp_path))
    decisions = []
    for number, risk in enumerate((1.0, 2.0, 3.0)):
        trial_id = sweep.start(number)
        results = [sweep.write(trial_id, "search", epoch, {"task_risk": risk}) for epoch in (1, 2, 3)]
        decisions.append([sweep.decide(trial_id, result) for result in results[:2]])
    assert decisions == [["CONTINUE", "CONTINUE"], ["CONTINUE", "STOP"], ["CONTINUE", "STOP"]]


def run_until(sweep: Sweep, draw: random.Random, *, end: int) -> list[tuple[str, int, str]]:
    """Trials one after the other, `end` reports in all; what was decided."""
    decisions: list[tuple[str, int, str]] = []
    for number in range(12):
        trial_id = f"t{number:04d}"
        if not (sweep.store.folder / "trials" / trial_id).exists():
            sweep.start(number)
        if sweep.store.trial(trial_id).final:
            continue
        for count, (stage, epoch) in enumerate(EPOCHS, start=1):
            metrics = metrics_at(number, stage, epoch, draw)
            if count <= len(sweep.store.history(trial_id)):
                continue
            if len(decisions) == end:
                return decisions
            decision = sweep.decide(trial_id, sweep.write(trial_id, stage, epoch, metrics))
            decisions.append((trial_id, count, decision))
            if decision == "STOP":
                break
    return decisions


class SameNumbers(random.Random):
    """Noise that does not depend on how often it was asked."""

    def random(self) -> float:
        return 0.5


@pytest.mark.parametrize("rule", [HALVING, HYPERVOLUME], ids=["halving", "hypervolume"])
@pytest.mark.parametrize("cut", [1, 3, 9, 14, 25, 30])
def test_a_new_driver_decides_as_the_one_that_was_killed_would_have(tmp_path: Path, cut: int, rule: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run_until(Sweep.begin(spec_of(tmp_path / "a", early_stopping=rule)), SameNumbers(), end=1000)
    assert {decision for *_, decision in whole} == {"CONTINUE", "STOP"}
    spec = spec_of(tmp_path / "b", early_stopping=rule)
    before = Sweep.begin(spec)
    first = run_until(before, SameNumbers(), end=cut)
    after = Sweep.begin(spec)
    after.clock_ms = before.clock_ms
    assert first + run_until(after, SameNumbers(), end=1000) == whole
    states = [(t.trial_id, t.state, t.error) for t in after.store.trials()]
    assert states == [(t.trial_id, t.state, t.error) for t in SweepStore(tmp_path / "a" / "storage" / "s").trials()]


def test_a_trial_whose_driver_was_killed_between_its_report_and_its_end_is_ended_by_the_next(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    sweep = Sweep.begin(spec)
    for number, risk in enumerate((1.0, 2.0)):
        trial_id = sweep.start(number)
        for epoch in (1, 2):
            result = sweep.write(trial_id, "search", epoch, {"task_risk": risk})
            if (number, epoch) != (1, 2):
                assert sweep.decide(trial_id, result) == "CONTINUE"
    assert not sweep.store.trial("t0001").final
    Sweep.begin(spec)
    first, second = SweepStore(sweep.store.folder).trials()
    assert not first.final
    assert (second.state, second.error) == ("pruned", "stopped early after epoch 2 of the search")


@pytest.mark.parametrize("rule", [HALVING, HYPERVOLUME], ids=["halving", "hypervolume"])
def test_a_new_driver_keeps_to_what_was_decided_whatever_it_would_decide_itself(tmp_path: Path, rule: str) -> None:
    """As where another version, or a machine that rounds otherwise, goes on with the sweep."""
    spec = spec_of(tmp_path, early_stopping=rule)
    sweep = Sweep.begin(spec)
    run_until(sweep, SameNumbers(), end=20)
    path = sweep.store.folder / "rungs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = next(
        line for line in lines if line["goes_on"] and not SweepStore(sweep.store.folder).trial(line["trial_id"]).final
    )
    changed |= {"goes_on": False, "reason": "as it was noted"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    Sweep.begin(spec)
    record = SweepStore(sweep.store.folder).trial(changed["trial_id"])
    assert record.state == "pruned"
    assert path.read_text().count("\n") == len(lines), "nothing was decided again"


@pytest.mark.parametrize("rule", [HALVING, HYPERVOLUME], ids=["halving", "hypervolume"])
@pytest.mark.parametrize("is_older", [False, True], ids=["", "older notes"])
def test_a_sweep_goes_on_where_a_trials_folder_is_gone(tmp_path: Path, rule: str, is_older: bool) -> None:
    spec = spec_of(tmp_path, early_stopping=rule)
    sweep = Sweep.begin(spec)
    first = run_until(sweep, SameNumbers(), end=20)
    path = sweep.store.folder / "rungs.jsonl"
    if is_older:
        keys = ("trial_id", "epoch", "stage", "values")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({key: line[key] for key in keys}) + "\n" for line in lines))
    shutil.rmtree(sweep.store.folder / "trials" / "t0000")
    again = Sweep.begin(spec)
    (tmp_path / "whole").mkdir()
    whole = run_until(Sweep.begin(spec_of(tmp_path / "whole", early_stopping=rule)), SameNumbers(), end=1000)
    if not is_older:
        again.start(0)
        end = dataclasses.replace(again.store.trial("t0000"), state="done", ended_ms=9)
        again.store.finish_trial(end)
        again.clock_ms = sweep.clock_ms
        assert first + run_until(again, SameNumbers(), end=1000) == whole


def test_a_trial_that_diverges_is_noted_as_ended_and_a_new_driver_knows_it(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, early_stopping=HYPERVOLUME)
    sweep = Sweep.begin(spec)
    metrics = {"task_risk": 1.0, "policy_bops_g": 1.0}
    trial_id = sweep.start(0)
    for epoch in (1, 2):
        assert sweep.decide(trial_id, sweep.write(trial_id, "search", epoch, metrics)) == "CONTINUE"
    record = dataclasses.replace(sweep.store.trial(trial_id), state="diverged", ended_ms=9, failure="nan")
    sweep.store.finish_trial(record)
    for number in (1, 2):
        sweep.decide(sweep.start(number), sweep.write(f"t{number:04d}", "search", 1, metrics))
    ends = [(noted.trial_id, noted.epoch) for noted in sweep.store.rungs() if noted.ended]
    assert ends == [("t0000", 2)]
    places = [(noted.trial_id, noted.ended) for noted in sweep.store.rungs()]
    assert places == [("t0000", False), ("t0000", True), ("t0001", False), ("t0002", False)]
    again = Sweep.begin(spec)
    rules = [one.scheduler._contribution for one in (sweep, again)]
    assert rules[0] is not None
    assert rules[1] is not None
    assert rules[0]._search == rules[1]._search
    assert "t0000" not in rules[1]._search.going
    assert [(noted.trial_id, noted.ended) for noted in again.store.rungs()] == places


def test_constraints_of_the_sweep_are_noted_at_the_finetune(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, early_stopping=HYPERVOLUME + "\nconstraints: [bops_g <= 2]")
    sweep = Sweep.begin(spec)
    trial_id = sweep.start(0)
    sweep.decide(trial_id, sweep.write(trial_id, "search", 1, {"task_risk": 1.0, "policy_bops_g": 1.0}))
    sweep.decide(trial_id, sweep.write(trial_id, "finetune", 1, {"top1": 50.0, "bops_g": 3.0}))
    assert [list(noted.excess) for noted in sweep.store.rungs()] == [[], [0.5]]


def test_tune_keeps_nothing_of_the_scheduler(tmp_path: Path) -> None:
    kept = cloudpickle.loads(cloudpickle.dumps(Sweep.begin(spec_of(tmp_path)).scheduler))
    assert type(kept) is FIFOScheduler


def test_the_longest_trial_may_be_one_where_a_condition_holds_or_where_it_fails(tmp_path: Path) -> None:
    for epochs, longest in (("[30, 50]", 50 + 4), ("[2, 3]", 7 + 4)):
        varied = f"method.epochs: {{choice: {epochs}, when: {{method.start: scratch}}}}"
        space = f"{{method.start: {{choice: [reference, scratch]}}, {varied}, method.zeta: {{fixed: 0.1}}}}"
        filled = {"space": space, "sampler": "random", "trials": 2, "early_stopping": HALVING, "path": tmp_path}
        text = SPEC.format(**filled).replace("epochs: 4, batch_size: 64, eta", "epochs: 7, eta")
        (tmp_path / "s.yaml").write_text(text)
        assert longest_trial(load_spec(tmp_path / "s.yaml")) == longest


def test_the_longest_trial_of_a_space_that_varies_its_epochs(tmp_path: Path) -> None:
    space = "{finetune.epochs: {int: [2, 6]}, method.zeta: {fixed: 0.1}}"
    text = SPEC.replace("finetune: {{epochs: 4,", "finetune: {{")
    filled = {"space": space, "sampler": "random", "trials": 2, "early_stopping": HALVING, "path": tmp_path}
    (tmp_path / "s.yaml").write_text(text.format(**filled))
    assert longest_trial(load_spec(tmp_path / "s.yaml")) == 4 + 6


def preempted() -> ActorDiedError:
    """As Ray tells that a machine was taken away."""
    info = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
    return ActorDiedError(cause=ActorDiedErrorContext(actor_id=bytes(16), node_death_info=info))


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RayActorError(error_msg="the actor died"), "lost worker"),
        (WorkerCrashedError(), "lost worker"),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "out of memory"),
        (preempted(), "pre-empted"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (RuntimeError("it went wrong"), "error"),
        (None, "lost worker"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_trial_that_tune_gives_up_gets_a_result_with_its_class(
    tmp_path: Path, error: Exception | None, failure: Failure
) -> None:
    sweep = Sweep.begin(spec_of(tmp_path))
    trial_id = sweep.start(0)
    trial = TuneTrial({"trial_id": trial_id}, retries_left=True)
    if error is not None:
        trial.pickled_error_file = str(tmp_path / "error.pkl")
        Path(trial.pickled_error_file).write_bytes(cloudpickle.dumps(error))
    sweep.scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
    # More memory than there is: another attempt would need as much.
    assert sweep.store.trial(trial_id).final == (failure == "out of memory")
    trial.retries_left = False
    sweep.scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
    record = SweepStore(sweep.store.folder).trial(trial_id)
    assert (record.state, record.failure, record.attempts) == ("failed", failure, 1)
    assert record.error.startswith("its process was lost: ")
    assert "\n" not in record.error
    if error is not None and str(error).strip():
        assert str(error).strip().splitlines()[0] in record.error


def test_a_result_that_is_there_is_not_overwritten_by_the_loss_of_its_process(tmp_path: Path) -> None:
    sweep = Sweep.begin(spec_of(tmp_path))
    trial_id = sweep.start(0)
    done = dataclasses.replace(sweep.store.trial(trial_id), state="done", ended_ms=900, metrics={"top1": 50.0})
    sweep.store.finish_trial(done)
    sweep.scheduler.on_trial_error(None, TuneTrial({"trial_id": trial_id}, retries_left=False))  # type: ignore[arg-type]
    assert SweepStore(sweep.store.folder).trial(trial_id) == done


def test_a_sweep_that_stops_trials_early(bitfront: Bitfront) -> None:
    """The weight of complexity risk decides: a trial that pays less for it and learns worse is pruned."""
    space = "{method.weight_lr: {grid: [0.05, 0.0001, 0.00001]}, method.zeta: {fixed: 0.3}}"
    spec_of(bitfront.folder, space=space, sampler="grid", trials=3, path="st")
    output = bitfront("run", "s.yaml")
    store = SweepStore(bitfront.folder / "st" / "s")
    trials = store.trials()
    states = [trial.state for trial in trials]
    assert set(states) == {"done", "pruned"}, output
    count = states.count("pruned")
    assert f"{count} pruned" in output
    study = optuna.load_study(
        study_name="s", storage=JournalStorage(JournalFileBackend(str(store.folder / "study.journal")))
    )
    assert [t.state.name for t in study.trials] == ["COMPLETE" if state == "done" else "PRUNED" for state in states]
    client = MlflowClient(f"sqlite:///{store.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id])
    children = {run.data.tags["bitfront.trial"]: run for run in runs if "bitfront.trial" in run.data.tags}
    oracle = Halving(min_epochs=2, reduction=2, epochs=8)
    spec = load_spec(bitfront.folder / "s.yaml")
    for trial in trials:
        history, run = store.history(trial.trial_id), children[trial.trial_id]
        assert (run.info.status, run.data.tags["bitfront.state"]) == ("FINISHED", trial.state)
        points = client.get_metric_history(run.info.run_id, "search/loss")
        assert len(points) == min(4, len(history))
        goes_on = [
            oracle.report(
                trial.trial_id, epoch, rung_values(line["stage"], line["metrics"], spec.objectives), stage=line["stage"]
            )
            for epoch, line in enumerate(history, start=1)
        ]
        assert len(history) == (8 if trial.state == "done" else goes_on.index(False) + 1)
        assert not store.checkpoint(trial.trial_id).exists()
    done = [trial for trial in trials if trial.state == "done"]
    members = {done[i].trial_id for i in front([trial.metrics for trial in done])}
    found = json.loads((store.folder / "front.json").read_text())
    assert {point["trial"] for point in found["front"]} == members
    (parent,) = [run for run in runs if "bitfront.trial" not in run.data.tags]
    assert parent.data.metrics["trials_pruned"] == count
    # Again: nothing is left to do, and what was pruned stays so.
    assert bitfront("run", "s.yaml").count("pruned") == 0
    assert [trial.state for trial in SweepStore(store.folder).trials()] == states
