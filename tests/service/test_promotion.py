"""What a promotion takes from a sweep and what it refuses, on recorded sweeps: nothing is computed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from service.promoted import promoted_id, sources_of
from service.promotion import candidates, enrol, find_promotion, standing_of
from service.records import SweepStore
from service.rules import Gates, parse_rule
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
