"""What a promotion takes from a sweep and what it refuses, on recorded sweeps: nothing is computed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.preflight import check
from service.promoted import promoted_id, sources_of
from service.promotion import candidates, enrol, find_promotion, standing_of
from service.records import SweepStore
from service.rules import Gates, parse_rule
from service.spec import load_spec
from service.sweeps import open_sweep
from service.template import Template, load_template
from trainables.errors import ConfigError, SpecError, StorageError

TEMPLATE = """\
name: target
data: {name: digits, image_size: 16}
reference: {epochs: 1}
finetune: {epochs: 2, quantizer: lsq}
"""
MakeSearch = Callable[..., SweepStore]
ALL_PASS = Gates()


def template(folder: Path, *overrides: str) -> Template:
    path = folder / "t.yaml"
    path.write_text(TEMPLATE)
    return load_template(path, overrides)


def promoted(folder: Path, sweep: SweepStore, rule: str, *overrides: str) -> SweepStore:
    chosen, _ = candidates(sweep, parse_rule(rule), ALL_PASS)
    return enrol(template(folder, *overrides), sweep.folder.parent, chosen, now_ms=5)


def test_every_policy_is_one_trial_that_knows_who_found_it(tmp_path: Path, recorded_search: MakeSearch) -> None:
    first = recorded_search(tmp_path, ((2, 70.0), (3, 85.0), (3, 85.0)), name="first")
    second = recorded_search(tmp_path, ((3, 80.0),), name="second", created_ms=2_000)
    store = promoted(tmp_path, first, "all")
    hashes = list(dict.fromkeys(trial.policy_hash for trial in first.trials()))
    assert [trial.trial_id for trial in store.trials()] == [promoted_id(one) for one in hashes]
    assert [trial.state for trial in store.trials()] == ["pending", "pending"]
    assert store.sweep().total_trials == 2
    shared = store.trial_folder(promoted_id(hashes[1]))
    assert [source.name for source in sources_of(shared)] == ["first/t0001", "first/t0002"]
    again = promoted(tmp_path, second, "all")
    assert len(again.trials()) == 2
    assert [source.name for source in sources_of(shared)] == ["first/t0001", "first/t0002", "second/t0000"]
    assert store.policy(promoted_id(hashes[1])).policy == first.policy("t0001").policy


def test_promoting_again_adds_what_is_new_and_leaves_the_rest(tmp_path: Path, recorded_search: MakeSearch) -> None:
    sweep = recorded_search(tmp_path)
    store = promoted(tmp_path, sweep, "top 1 by bops_g")
    (one,) = store.trials()
    begun = store.start_trial(one.trial_id, now_ms=7)
    grown = promoted(tmp_path, sweep, "all", "limits.retries=1", "description=x")
    assert len(grown.trials()) == len({trial.policy_hash for trial in sweep.trials()})
    assert grown.trial(one.trial_id) == begun
    assert "retries: 1" in (grown.folder / "spec.yaml").read_text()
    standings = {
        one.trial_id: standing_of(one, grown, accuracy="top1").standing
        for one in candidates(sweep, parse_rule("all"), ALL_PASS)[0]
    }
    # Nobody runs it: what had begun waits to go on.
    assert set(standings.values()) == {"waiting"}


def test_a_gate_says_what_it_holds_back(tmp_path: Path, recorded_search: MakeSearch) -> None:
    sweep = recorded_search(tmp_path, ((2, 70.0), (3, 85.0)))
    chosen, held = candidates(sweep, parse_rule("all"), Gates(min_top1=80.0))
    assert [one.sources[0].trial for one in chosen] == ["t0001"]
    assert held == ["t0000: top-1 70.00 % is below 80 %"]
    named, held = candidates(sweep, parse_rule("knee"), Gates(min_top1=80.0), trials=("0", "t0001"))
    assert [one.sources[0].trial for one in named] == ["t0001"]
    assert held == ["t0000: top-1 70.00 % is below 80 %"]


def test_a_trial_by_name_need_not_be_on_the_front_but_must_be_there(
    tmp_path: Path, recorded_search: MakeSearch
) -> None:
    sweep = recorded_search(tmp_path, ((2, 90.0), (4, 80.0), (4, 79.0)))
    on_front = candidates(sweep, parse_rule("all"), ALL_PASS)[0]
    assert [one.sources[0].trial for one in on_front] == ["t0000", "t0001"]
    (off,) = candidates(sweep, parse_rule("all"), ALL_PASS, trials=("2",))[0]
    assert [source.trial for source in off.sources] == ["t0002", "t0001"]
    with pytest.raises(ConfigError, match="--trial 7: s has no finished trial of that name"):
        candidates(sweep, parse_rule("all"), ALL_PASS, trials=("7",))


def test_a_name_belongs_to_one_recipe_and_a_recipe_to_one_name(tmp_path: Path, recorded_search: MakeSearch) -> None:
    sweep = recorded_search(tmp_path)
    store = promoted(tmp_path, sweep, "knee")
    assert find_promotion(template(tmp_path), tmp_path) is not None
    with pytest.raises(StorageError, match=r"another recipe.*\n  finetune.epochs: 2 -> 3\n"):
        find_promotion(template(tmp_path, "finetune.epochs=3"), tmp_path)
    with pytest.raises(SpecError, match="the promotion 'target' has the very same recipe; use that name"):
        find_promotion(template(tmp_path, "name=other"), tmp_path)
    with pytest.raises(SpecError, match=r"name is 's', as a sweep in .* is; choose another"):
        find_promotion(template(tmp_path, "name=s"), tmp_path)
    assert find_promotion(template(tmp_path, "name=other", "seed=1"), tmp_path) is None
    with pytest.raises(ConfigError, match="target is a promotion itself"):
        candidates(store, parse_rule("all"), ALL_PASS)


def test_what_diverged_is_told_apart_from_what_failed(tmp_path: Path, recorded_search: MakeSearch) -> None:
    sweep = recorded_search(tmp_path, ((2, 70.0), (3, 85.0)))
    store = promoted(tmp_path, sweep, "all")
    for trial, state in zip(store.trials(), ("diverged", "failed"), strict=True):
        begun = store.start_trial(trial.trial_id, now_ms=7)
        store.finish_trial(replace(begun, state=state, ended_ms=8, error="x"))
    chosen = candidates(sweep, parse_rule("all"), ALL_PASS)[0]
    assert [standing_of(one, store, accuracy="top1").standing for one in chosen] == ["diverged", "failed"]


def test_a_trial_that_is_named_twice_is_one_source(tmp_path: Path, recorded_search: MakeSearch) -> None:
    sweep = recorded_search(tmp_path, ((2, 70.0),))
    (one,) = candidates(sweep, parse_rule("all"), ALL_PASS, trials=("0", "t0000"))[0]
    assert [source.name for source in one.sources] == ["s/t0000"]


def test_a_tracking_address_with_a_secret_is_nowhere_in_a_promotion(
    tmp_path: Path, recorded_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = recorded_search(tmp_path, ((2, 70.0),))
    monkeypatch.setenv("HIDDEN", "very-secret")
    for path in (sweep.folder / "spec.yaml", tmp_path / "t.yaml"):
        before = path.read_text() if path.exists() else TEMPLATE
        path.write_text(before + 'tracking: {uri: "http://u:${HIDDEN}@h:5000"}\n')
    chosen, _ = candidates(sweep, parse_rule("all"), ALL_PASS)
    store = enrol(load_template(tmp_path / "t.yaml"), tmp_path, chosen, now_ms=5)
    texts = [path.read_text() for path in store.folder.rglob("*") if path.is_file()]
    assert any("${HIDDEN}" in text for text in texts)
    assert not any("very-secret" in text for text in texts)


SWEEP = """\
name: searching
network: {name: resnet8}
data: {name: digits, image_size: 16}
reference: {epochs: 1}
method: {name: gmpq, epochs: 1, eta: 1.0}
finetune: {epochs: 1}
space: {method.zeta: {uniform: [0.0, 1.0]}}
trials: 2
storage: {path: st}
promote: {to: t.yaml}
smoke: {trials: 1}
"""


def written(folder: Path, sweep: str, template: str) -> Path:
    (folder / "t.yaml").write_text(template)
    (folder / "s.yaml").write_text(sweep)
    return folder / "s.yaml"


def test_a_smoke_run_promotes_into_the_templates_smoke_run(tmp_path: Path) -> None:
    path = written(tmp_path, SWEEP, TEMPLATE + "smoke: {finetune: {epochs: 1}}\n")
    smoke, whole = load_spec(path, smoke=True).promotion, load_spec(path).promotion
    assert smoke is not None
    assert whole is not None
    assert (smoke.name, smoke.finetune.epochs) == ("target-smoke", 1)
    assert (whole.name, whole.finetune.epochs) == ("target", 2)
    with pytest.raises(SpecError, match=r"with --smoke: promote.to: .*t.yaml:1:1: --smoke: the file has no profile"):
        load_spec(written(tmp_path, SWEEP, TEMPLATE))


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (TEMPLATE.replace("target", "searching"), "name is 'searching', as that of the sweep"),
        (TEMPLATE + "register: {alias: latest}\n", "register: alias 'latest': give letters"),
        (TEMPLATE + "register: {objective: topl}\n", "register.objective: unknown metric 'topl'; did you mean"),
        (TEMPLATE.replace("name: digits", "name: imagefolder, root: /nowhere"), "/nowhere/train is not a folder"),
        (TEMPLATE + "resources: {workers: 999}\n", "asks for 999 CPUs"),
    ],
)
def test_what_would_be_refused_after_the_last_trial_is_refused_before_the_first(
    tmp_path: Path, template: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = SWEEP.replace("smoke: {trials: 1}\n", "")
    with pytest.raises(SpecError, match=told):
        check(load_spec(written(tmp_path, sweep, template)))


def test_a_sweep_does_not_take_the_name_of_a_promotion(tmp_path: Path, recorded_search: MakeSearch) -> None:
    promoted(tmp_path, recorded_search(tmp_path, ((2, 70.0),)), "all")
    sweep = SWEEP.replace("smoke: {trials: 1}\n", "").replace("promote: {to: t.yaml}\n", "")
    path = written(tmp_path, sweep.replace("searching", "target").replace("path: st", f"path: {tmp_path}"), TEMPLATE)
    with pytest.raises(StorageError, match="holds a promotion of this name; give the sweep another one"):
        open_sweep(load_spec(path), now_ms=1)
