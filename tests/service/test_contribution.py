import itertools
import json
import math
import random
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from service.contribution import MANY, Answer, ContributionRule, Rates, contribution, excesses, rates
from service.forecast import coordinates, foretell
from service.hypervolume import dominated_volume
from service.pareto import parse_constraint
from service.space import Choice, Conditional, Float, Int

ROOT = Path(__file__).parents[2]
SPACE = {
    "method.zeta": Float(0.01, 1.0, True),
    "method.top_k": Int(4, 8),
    "method.capacity": Choice((12.0, 24.0)),
    "method.barrier": Choice((3.0,)),
    "method.eta": Conditional(Float(0.0, 2.0, False), (("method.capacity", (24.0,)),)),
}


def test_settings_are_places_in_their_ranges() -> None:
    known = {"method.zeta": 0.1, "method.top_k": 5, "method.capacity": 24.0, "method.barrier": 3.0, "method.eta": 0.5}
    assert coordinates(SPACE, known) == pytest.approx((0.5, 0.25, 0.0, 1.0, 0.25))
    # What is not active lies in the middle.
    known = {"method.zeta": 1.0, "method.top_k": 8, "method.capacity": 12.0, "method.barrier": 3.0}
    assert coordinates(SPACE, known) == pytest.approx((1.0, 1.0, 1.0, 0.0, 0.5))


def test_a_forecast_finds_a_parabola_and_leaves_constants_alone() -> None:
    draw = random.Random(0)
    early = [(draw.uniform(-1, 1), draw.uniform(-1, 1)) for _ in range(400)]
    late = {i: (3 + x - 2 * x * x, 7.0) for i, (x, _) in enumerate(early[:300])}
    for (x, _), (found, constant) in zip(early, foretell(early, late), strict=True):
        assert found == pytest.approx(3 + x - 2 * x * x, abs=0.05)
        assert constant == 7.0


def test_a_forecast_of_settings_that_say_nothing_is_the_mean() -> None:
    assert foretell([(1.0,), (1.0,), (1.0,)], {0: (2.0,), 1: (4.0,)}) == [(3.0,)] * 3


def test_contributions_are_differences_of_volumes() -> None:
    draw = random.Random(1)
    for axes in (1, 2, 3):
        corner = (1.0,) * axes
        for _ in range(60):
            points = [tuple(draw.uniform(0, 1.1) for _ in range(axes)) for _ in range(8)]
            grown = dominated_volume(points, corner) - dominated_volume(points[1:], corner)
            assert contribution(points[0], points[1:], corner) == pytest.approx(grown, abs=1e-12)


def test_contributions_to_many_points_are_differences_of_volumes_too() -> None:
    draw = random.Random(6)
    for axes in (1, 2, 3):
        corner = (1.1,) * axes
        for _ in range(20):
            points = [tuple(draw.choice((draw.random(), 0.5)) for _ in range(axes)) for _ in range(3 * MANY)]
            grown = dominated_volume(points, corner) - dominated_volume(points[1:], corner)
            assert contribution(points[0], points[1:], corner) == pytest.approx(grown, abs=1e-12)
            assert contribution(points[1], points, corner) == 0.0, "exactly: ties are decided otherwise"


@pytest.mark.parametrize("share", [0.25, 0.35, 0.5, 0.8])
@pytest.mark.parametrize(("search", "finetune"), [(6, 8), (4, 14), (0, 10), (1, 2), (5, 30)])
def test_the_rates_come_to_the_share(share: float, search: int, finetune: int) -> None:
    whole = search + finetune
    if share * whole <= 1:
        with pytest.raises(ValueError, match="is used up by the first one; give more"):
            rates(share, search=search, finetune=finetune)
        return
    found = rates(share, search=search, finetune=finetune)
    assert 0 < found.search <= 1
    assert 0 < found.finetune <= 1
    after_search = found.search * (1 + found.finetune * (finetune - 1))
    spent = 1 + found.search * (search + found.finetune * (finetune - 1)) if search else after_search
    assert spent == pytest.approx(share * whole)


def test_rates_need_a_finetune_that_can_be_cut() -> None:
    with pytest.raises(ValueError, match="after 1 epoch of the finetune there is nothing left to save"):
        rates(0.5, search=4, finetune=1)
    assert rates(0.99999, search=4, finetune=4) == Rates(search=1.0, finetune=pytest.approx(1.0, abs=1e-4))


def finetuned(rule: ContributionRule, name: str, *values: float) -> bool:
    return rule.report(name, "finetune", values, settings={}, epochs=(0, 11)).goes_on


def test_by_hand_of_what_comes_to_the_same_one_goes_on() -> None:
    """(0.5·11 − 1) / 10 = 0.45 of the trials go on. Volumes are within (1.1, 1.1)."""
    rule = ContributionRule(share=0.5, space={})
    told = [
        ((0.0, 1.0), True),  # the first
        ((1.0, 0.0), False),  # adds 0.10, the first 0.11: place 2 of 2
        ((0.2, 0.2), True),  # adds 0.72, the others 0.11 and 0.10
        ((0.2, 0.2), False),  # the same again adds nothing
        ((0.0, 0.0), True),  # beats all
    ]
    answers = [finetuned(rule, f"t{i}", *values) for i, (values, _) in enumerate(told)]
    assert answers == [goes_on for _, goes_on in told]
    assert rule.standing("t3").reason == "3 of the last 3 trials add at least as much to the front as it would"
    assert not finetuned(rule, "t3", -9.0, -9.0), "the first report counts"
    stopped = rule.report("t3", "search", (-9.0, -9.0), settings={}, epochs=(4, 11))
    assert stopped == rule.standing("t3"), "what was stopped stays stopped"


def test_the_ends_and_the_knee_go_on_and_what_is_beaten_does_not() -> None:
    rule = ContributionRule(share=0.5, space={})
    draw = random.Random(0)
    for i in range(30):
        finetuned(rule, f"a{i}", *(x := draw.random(), 1 - x + draw.random()))
    assert finetuned(rule, "better than all", -1.0, -1.0)
    assert not finetuned(rule, "worse than all", 3.0, 3.0)


def test_a_better_trial_is_never_stopped_where_a_worse_one_goes_on() -> None:
    draw = random.Random(2)
    for seed in range(40):
        history = [(draw.random(), draw.random(), draw.random()) for _ in range(draw.randrange(25))]
        # Both lie within the spans of those before them, so that the scale is one.
        history += [(0.0, 0.0, 1.0), (1.0, 1.0, 0.0)]
        last = (draw.random(), draw.random(), draw.random())
        better = tuple(x * draw.random() for x in last)
        answers = []
        for value in (last, better):
            rule = ContributionRule(share=0.4, space={})
            for i, values in enumerate(history):
                finetuned(rule, f"t{i}", *values)
            answers.append(finetuned(rule, "last", *value))
        assert answers[1] >= answers[0], seed


def test_what_is_spent_comes_to_the_share() -> None:
    for share in (0.25, 0.35, 0.6):
        draw, rule, spent = random.Random(3), ContributionRule(share=share, space=SPACE), 0
        for i in range(100):
            settings = {"method.zeta": draw.uniform(0.01, 1), "method.top_k": 5, "method.capacity": 12.0}
            cost = settings["method.zeta"]
            early = (draw.random(), cost)
            spent += 1
            if not rule.report(f"t{i}", "search", early, settings=settings, epochs=(5, 10)).goes_on:
                continue
            late = (-90 * cost - draw.random(), cost, draw.random())
            spent += 5
            spent += 9 * rule.report(f"t{i}", "finetune", late, settings=settings, epochs=(5, 10)).goes_on
        assert spent / (100 * 15) == pytest.approx(share, abs=0.03)


def test_a_value_that_is_not_finite_ends_a_trial_and_counts_for_nothing() -> None:
    rule = ContributionRule(share=0.5, space={})
    assert not finetuned(rule, "nan", math.nan, 0.0)
    assert rule.standing("nan").reason == "a value is not finite"
    assert not rule.report("inf", "search", (math.inf,), settings={}, epochs=(4, 8)).goes_on
    assert all(finetuned(rule, f"tells nothing {i}") for i in range(4))


def test_replaying_the_reports_gives_the_same_answers() -> None:
    draw, log = random.Random(4), []
    first = ContributionRule(share=0.35, space=SPACE)
    for i in range(80):
        settings = {"method.zeta": draw.uniform(0.01, 1), "method.top_k": draw.randint(4, 8), "method.capacity": 12.0}
        for stage, values in (("search", (draw.random(), draw.random())), ("finetune", (draw.random(), 1.0))):
            answer = first.report(f"t{i}", stage, values, settings=settings, epochs=(4, 8))
            log.append((f"t{i}", stage, values, settings, answer))
            if not answer.goes_on:
                break
    again = ContributionRule(share=0.35, space=SPACE)
    for _ in range(2):
        for trial, stage, values, settings, answer in log:
            assert again.report(trial, stage, values, settings=settings, epochs=(4, 8)) == answer
    assert {answer.goes_on for *_, answer in log} == {True, False}


def searched(rule: ContributionRule, name: str, risk: float | None, cost: float = 1.0) -> Answer:
    return rule.report(name, "search", (1.0, cost), settings={}, epochs=(4, 8), risk=risk)


def test_until_something_can_be_foretold_the_lower_task_risk_goes_on() -> None:
    for seed in range(5):
        draw, rule, gone, stopped = random.Random(seed), ContributionRule(share=0.4, space={}), [], []
        for i in range(40):
            risk = draw.random()
            answer = searched(rule, f"t{i}", risk)
            (gone if answer.goes_on else stopped).append(risk)
            assert answer.goes_on or answer.reason.endswith("trials had a task risk as low or lower"), answer
        assert sum(gone) / len(gone) < sum(stopped) / len(stopped) - 0.2


def test_what_tells_nothing_at_all_goes_on_by_its_turn() -> None:
    rule = ContributionRule(share=0.4, space={})
    answers = [searched(rule, f"t{i}", None) for i in range(40)]
    aimed = rates(0.4, search=4, finetune=8).search
    assert sum(answer.goes_on for answer in answers) == pytest.approx(40 * aimed, abs=1)
    assert {answer.reason for answer in answers} == {"", "nothing is known to compare it by"}


@pytest.mark.parametrize("stage", ["search", "finetune"])
def test_what_trials_that_come_to_nothing_leave_is_spent_by_others(stage: str) -> None:
    """Where half of the settings diverge after 2 of 6, or 2 of 8 epochs, the share is held all the same."""
    space, shares = {"lr": Float(0.0, 1.0, False)}, []
    for seed in range(6):
        draw, rule, spent = random.Random(seed), ContributionRule(share=0.35, space=space), 0
        for i in range(64):
            settings = {"lr": draw.random()}
            name, lr, epochs = f"t{i}", settings["lr"], (6, 8)
            spent += 1
            early = (draw.random(), draw.random())
            if not rule.report(name, "search", early, settings=settings, epochs=epochs, risk=draw.random()).goes_on:
                continue
            if stage == "search" and lr < 0.5:
                spent += 1
                rule.ended(name, after=2, epochs=epochs)
                continue
            spent += 6
            late = (draw.random(), lr + draw.random(), draw.random())
            if rule.report(name, "finetune", late, settings=settings, epochs=epochs).goes_on:
                dies = stage == "finetune" and draw.random() < 0.5
                spent += 1 if dies else 7
                if dies:
                    rule.ended(name, after=8, epochs=epochs)
        shares.append(spent / (64 * 14))
    assert sum(shares) / len(shares) == pytest.approx(0.335, abs=0.02)


def test_what_has_ended_covers_nothing_any_more() -> None:
    answers = []
    for is_lost in (False, True):
        rule = ContributionRule(share=0.5, space={})
        assert finetuned(rule, "best", 0.0, 0.0)
        for i, values in enumerate([(1.0, 1.0), *[(0.05, 0.9)] * 6]):
            stopped = Answer(goes_on=False)
            rule.report(f"t{i}", "finetune", values, settings={}, epochs=(0, 11), noted=stopped)
        if is_lost:
            rule.ended("best", after=2, epochs=(0, 11))
        # It and the others add nothing to the best, and most are nearer to it; without the best it adds more.
        answers.append(finetuned(rule, "last", 0.5, 0.5))
    assert answers == [False, True]


def test_a_trial_that_violates_a_constraint_adds_nothing_and_less_violation_is_better() -> None:
    constraints = [parse_constraint("bops_g <= 2"), parse_constraint("top1 >= 80"), parse_constraint("storage_mb <= 1")]
    assert excesses({"bops_g": 3.0, "top1": 84.0}, constraints) == pytest.approx((0.5, -0.05))

    def told(rule: ContributionRule, name: str, bops: float) -> bool:
        excess = excesses({"bops_g": bops}, constraints)
        return rule.report(name, "finetune", (-50 - bops, bops), settings={}, epochs=(0, 11), excess=excess).goes_on

    rule = ContributionRule(share=0.5, space={})
    for i, bops in enumerate([5.0, 6.0, 7.0, 6.0, 7.0]):
        assert told(rule, f"t{i}", bops) == (i == 0), "the first goes on; the others violate it more"
    assert told(rule, "less", 4.0)
    assert told(rule, "none", 1.5)
    assert not told(rule, "the end of the front, were it allowed", 9.0)


def test_at_the_search_a_violation_is_foretold() -> None:
    space, draw = {"x": Float(0.0, 1.0, False)}, random.Random(0)
    rule = ContributionRule(share=0.5, space=space)
    answers: list[tuple[float, bool]] = []
    for i in range(80):
        x = draw.random()
        settings = {"x": x}
        searched_on = rule.report(f"t{i}", "search", (1.0,), settings=settings, epochs=(4, 8), risk=draw.random())
        answers.append((x, searched_on.goes_on))
        if searched_on.goes_on:
            late = (-x, draw.random())  # better, but for the constraint, where x is large
            rule.report(f"t{i}", "finetune", late, settings=settings, epochs=(4, 8), excess=(x - 0.5,))
    last = answers[40:]
    allowed, not_allowed = ([on for x, on in last if (x <= 0.5) == kept] for kept in (True, False))
    assert sum(allowed) / len(allowed) > sum(not_allowed) / len(not_allowed) + 0.5


def test_what_was_noted_is_not_decided_again() -> None:
    draw = random.Random(7)
    told = [(f"t{i}", tuple(draw.random() for _ in range(2)), draw.random() < 0.5) for i in range(30)]
    rule, plain = ContributionRule(share=0.5, space={}), ContributionRule(share=0.5, space={})
    for name, values, on in told:
        noted = Answer(goes_on=on, reason="" if on else "as noted")
        answer = rule.report(name, "finetune", values, settings={}, epochs=(0, 11), noted=noted)
        assert answer == noted == rule.standing(name)
    assert [finetuned(plain, name, *values) for name, values, _ in told] != [on for *_, on in told]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """benchmarks/early_stopping.py, which replays recorded sweeps."""
    spec = util.spec_from_file_location("early_stopping_contribution", ROOT / "benchmarks" / "early_stopping.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_third_of_the_epochs_of_recorded_sweeps_keep_what_fewer_trials_keep_or_more(bench: ModuleType) -> None:
    found = {}
    for name in bench.SWEEPS:
        path = ROOT / "tests" / "golden" / name
        space = bench.space_of(path)
        assert set(space) == set(json.loads(path.read_text())["made"]["spec"]["space"])
        rule = bench.partial(bench.by_contribution, share=0.35, space=space)
        found[name] = bench.compare(bench.load(path, ard=True), rule, at_once=4, orders=8)
    for row in found.values():
        assert row.epochs == pytest.approx(0.35, abs=0.025)
        assert row.volume > row.volume_by_chance + 0.02
    tuning, trade_off = found["recorded_tuning.json"], found["recorded_sweep.json"]
    assert tuning.volume >= 0.965
    assert tuning.volume > tuning.volume_of_fewer
    assert found["recorded_wide.json"].volume > found["recorded_wide.json"].volume_of_fewer + 0.02
    assert trade_off.volume == pytest.approx(trade_off.volume_of_fewer, abs=0.015)


def test_a_choice_in_hindsight_is_greedy(bench: ModuleType) -> None:
    points = [{"top1": float(a), "bops_g": float(b), "ard": 1.0} for a, b in itertools.product((50, 90), (1, 2))]
    assert bench.greedy(points, 1) == [2]
