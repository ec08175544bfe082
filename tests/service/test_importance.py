"""Which settings matter, where the answer is known."""

import math
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.front import find_front
from service.importance import MIN_TRIALS, importances
from service.records import SweepRecord, TrialRecord
from service.view import SweepView

Metric = Callable[[dict[str, Any]], float]


def view_of(settings: list[dict[str, Any]], top1: Metric, bops_g: Metric, *, seed: int = 0) -> SweepView:
    sweep = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=1, created_ms=1, objectives=("top1", "bops_g"))
    trials = [
        TrialRecord(
            trial_id=f"t{number}",
            number=number,
            state="done",
            settings=values,
            metrics={"top1": top1(values), "bops_g": bops_g(values)},
        )
        for number, values in enumerate(settings)
    ]
    return SweepView(
        folder=Path("s"), sweep=sweep, trials=tuple(trials), found=find_front(trials, sweep), policies={}, hours={}
    )


def drawn(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "method.zeta": math.exp(draw.uniform(-7, 0)),
            "method.top_k": draw.randint(6, 16),
            "method.start": draw.choice(["reference", "scratch"]),
            "network.tie_residuals": draw.choice([True, False]),
            "method.eta": 1.0,
        }
        for _ in range(count)
    ]


def test_the_setting_that_an_objective_is_a_function_of_has_nearly_all_and_the_others_nearly_none() -> None:
    found = importances(
        view_of(
            drawn(60),
            top1=lambda s: 90 + math.log(s["method.zeta"]),
            bops_g=lambda s: 1.0 if s["method.start"] == "scratch" else 2.0,
        )
    )
    assert found["top1"]["method.zeta"] > 0.97
    assert found["bops_g"]["method.start"] > 0.97
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)
        assert set(shares) == set(drawn(1)[0])
        assert shares["method.eta"] == 0.0
        assert sorted(shares.values(), reverse=True) == list(shares.values())


def test_two_settings_share_as_the_variances_of_their_terms() -> None:
    # Var(a·U) = a²/12 for U even on 0..1, and c²/4 for a coin of c: 4/12 against 1/4 is 4 to 3.
    draw = random.Random(3)
    settings = [
        {"x.u": draw.random(), "x.coin": draw.choice([True, False]), "x.none": draw.random()} for _ in range(400)
    ]
    shares = importances(view_of(settings, lambda s: 2 * s["x.u"] + s["x.coin"], lambda s: 1 + s["x.u"]))["top1"]
    assert shares["x.u"] == pytest.approx(4 / 7, abs=0.05)
    assert shares["x.coin"] == pytest.approx(3 / 7, abs=0.05)
    assert shares["x.none"] < 0.01


def test_a_logarithmic_range_is_as_good_as_a_linear_one() -> None:
    draw = random.Random(4)
    exponents = [draw.uniform(-4, 4) for _ in range(80)]
    linear = [{"x.a": e, "x.b": draw.random()} for e in exponents]
    logarithmic = [{**s, "x.a": math.exp(s["x.a"])} for s in linear]
    values = iter([])

    def of_view(settings: list[dict[str, Any]]) -> dict[str, float]:
        nonlocal values
        values = iter(exponents)
        return importances(view_of(settings, lambda s: next(values), lambda s: 1.0 + s["x.b"]))["top1"]

    assert of_view(linear) == of_view(logarithmic)


def test_a_conditional_setting_counts_among_the_trials_that_have_it() -> None:
    # A quarter of the trials have `weight_lr`, where it makes a term of variance 36/12 = 3: 3/4 of the whole, as the
    # term of `eta` has, 9/12. `start` itself makes no difference to the mean, and `weight_decay` none at all.
    draw = random.Random(5)
    settings: list[dict[str, Any]] = []
    for _ in range(600):
        start = draw.choice(["reference", "reference", "reference", "scratch"])
        active = {"method.weight_lr": draw.random(), "method.weight_decay": draw.random()} if start == "scratch" else {}
        settings.append({"method.start": start, "method.eta": draw.random(), **active})

    def top1(s: dict[str, Any]) -> float:
        return 3 * s["method.eta"] + (6 * (s["method.weight_lr"] - 0.5) if "method.weight_lr" in s else 0.0)

    shares = importances(view_of(settings, top1, lambda s: 1.0 + s["method.eta"]))["top1"]
    assert shares["method.weight_lr"] == pytest.approx(0.5, abs=0.1)
    assert shares["method.eta"] == pytest.approx(0.5, abs=0.1)
    assert shares["method.start"] < 0.02
    assert shares["method.weight_decay"] < 0.02


def test_a_conditional_setting_that_few_trials_have_is_there_with_nothing() -> None:
    settings = drawn(30)
    for values in settings[: MIN_TRIALS - 1]:
        values["method.rare"] = random.Random(str(values)).random()
    shares = importances(view_of(settings, lambda s: s["method.top_k"], lambda s: 1.0 + s["method.zeta"]))["top1"]
    assert shares["method.rare"] == 0.0
    assert shares["method.top_k"] > 0.9


def test_too_few_trials_and_what_never_varies_say_nothing() -> None:
    few = importances(view_of(drawn(MIN_TRIALS - 1), lambda s: s["method.zeta"], lambda s: 1.0))
    assert few == {"top1": {}, "bops_g": {}}
    constant = importances(view_of(drawn(MIN_TRIALS), lambda s: 99.0, lambda s: s["method.zeta"]))
    assert constant["top1"] == {}
    assert constant["bops_g"] != {}
    same = [{"method.eta": 1.0}] * 20
    values = iter(range(100))
    assert importances(view_of(same, lambda s: next(values), lambda s: 1.0)) == {"top1": {}, "bops_g": {}}
    assert importances(view_of([], lambda s: 1.0, lambda s: 1.0)) == {"top1": {}, "bops_g": {}}


def test_what_settings_do_not_foretell_has_no_shares() -> None:
    noise = random.Random(7)
    found = importances(view_of(drawn(200), lambda s: noise.random(), lambda s: s["method.top_k"]))
    assert found["top1"] == {}
    assert found["bops_g"]["method.top_k"] > 0.99


def test_words_of_many_values_do_not_foretell_noise() -> None:
    claimed = 0
    for seed in range(30):
        draw, noise = random.Random(seed), random.Random(1_000 + seed)
        settings = [{"x.word": f"w{draw.getrandbits(40):x}", "x.u": draw.random()} for _ in range(20)]
        claimed += importances(view_of(settings, lambda s: noise.random(), lambda s: 1.0))["top1"] != {}  # noqa: B023
    # One in forty is beyond a 95 % interval on that side by chance.
    assert claimed <= 3


@pytest.mark.parametrize("order", ["abcd", "bdac", "cabd"])
def test_a_word_that_matters_is_found_in_whatever_order_its_values_are_good(order: str) -> None:
    for seed in range(5):
        draw = random.Random(seed)
        settings = [{"x.word": draw.choice("abcd"), "x.many": f"w{draw.getrandbits(40):x}"} for _ in range(60)]
        view = view_of(settings, lambda s: order.index(s["x.word"]) + 0.5 * draw.random(), lambda s: 1.0)  # noqa: B023
        assert importances(view)["top1"]["x.word"] > 0.8


def test_it_is_the_same_every_time_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    view = view_of(drawn(40), lambda s: s["method.top_k"] + s["method.zeta"], lambda s: s["method.zeta"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importances(view) == importances(view)
        importances(view_of(drawn(MIN_TRIALS), lambda s: s["method.top_k"], lambda s: s["method.zeta"]))
    assert capfd.readouterr() == ("", "")


def test_a_thousand_trials_of_eight_settings_take_a_few_seconds() -> None:
    draw = random.Random(6)
    settings = [{f"x.s{place}": draw.random() for place in range(8)} for _ in range(1_000)]
    view = view_of(settings, lambda s: s["x.s0"] ** 2 + draw.random(), lambda s: s["x.s1"] + draw.random())
    begun = time.process_time()
    found = importances(view)
    assert time.process_time() - begun < 8
    assert (next(iter(found["top1"])), next(iter(found["bops_g"]))) == ("x.s0", "x.s1")
