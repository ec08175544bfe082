"""Claims: against margins by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from service.claims import judge
from service.expectations import Claim
from service.nightly_baseline import TrialOutcome
from tests.service.outcomes import outcome

SIDES: dict[str, Any] = {"than": {"method.name": "edmips"}}


def claim(metric: str = "top1", **said: Any) -> Claim:
    return Claim(claim="a", source="Table 1", metric=metric, **said)


def trials(*values: tuple[dict[str, Any], float]) -> list[TrialOutcome]:
    return [
        TrialOutcome(trial=str(n), state="done", settings=settings, metrics={"top1": value})
        for n, (settings, value) in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("said", "holds", "needed"),
    [
        ({"more": {"method.name": "gmpq"}}, True, 0.0),
        ({"more": {"method.name": "gmpq"}, "by": 1.49}, True, 1.49),
        ({"more": {"method.name": "gmpq"}, "by": 1.5}, False, 1.5),
        ({"less": {"method.name": "gmpq"}}, False, 0.0),
        ({"not_less": {"method.name": "gmpq"}}, True, 0.0),
        ({"not_more": {"method.name": "gmpq"}, "by": 1.5}, True, -1.5),
        ({"not_more": {"method.name": "gmpq"}, "by": 1.49}, False, -1.49),
    ],
)
def test_orderings_of_means_over_pairs_of_one_seed_and_one_budget(
    said: dict[str, Any], holds: bool, needed: float
) -> None:
    """92 and 95 against 90 and 94: the margins are 2 and 1 with every seed, whatever the seed does to both."""
    found = judge(claim(**said, **SIDES), outcome(deviation=2.0).trials)
    ahead = 1.5 if {"more", "not_less"} & set(said) else -1.5
    assert (found.holds, found.pairs) == (holds, 6)
    assert found.margin == pytest.approx(ahead)
    assert found.needed == pytest.approx(needed)
    assert (found.left, found.right) == (pytest.approx(93.5), pytest.approx(92.0))


def test_equal_sides_are_neither_less_nor_more_but_not_worse() -> None:
    same = trials(({"seed": 0, "x": 1}, 5.0), ({"seed": 0, "x": 2}, 5.0))
    for said, holds in (("less", False), ("more", False), ("not_less", True), ("not_more", True)):
        assert judge(claim(**{said: {"x": 1}}, than={"x": 2}), same).holds is holds


def test_standard_errors_are_those_of_the_pairs_differences() -> None:
    """Six margins, three times 2 and three times 1: deviation √(6·0.25/5), standard error that over √6."""
    error = math.sqrt(6 * 0.25 / 5) / math.sqrt(6)
    said = {"more": {"method.name": "gmpq"}, **SIDES}
    found = judge(claim(**said, standard_errors=3.0, by=0.5), outcome().trials)
    assert found.needed == pytest.approx(0.5 + 3 * error)
    assert found.holds is True
    assert judge(claim(**said, standard_errors=1.01 * 1.5 / error), outcome().trials).holds is False


def test_at_narrows_both_sides_and_a_list_stands_for_any_of_its_values() -> None:
    said = {"more": {"method.name": "gmpq"}, **SIDES}
    assert judge(claim(**said, at={"budget.bops_g": 0.02}), outcome().trials).margin == pytest.approx(2.0)
    found = judge(claim(**said, at={"seed": (0, 2)}), outcome().trials)
    assert (found.pairs, found.margin) == (4, pytest.approx(1.5))


def test_trials_of_a_side_that_agree_in_all_that_both_have_count_as_one() -> None:
    found = judge(
        claim(more={"m": "b"}, than={"m": "a"}),
        trials(
            ({"seed": 0, "m": "a"}, 1.0),
            ({"seed": 0, "m": "b", "eta": 1}, 2.0),
            ({"seed": 0, "m": "b", "eta": 2}, 6.0),
            ({"seed": 1, "m": "a"}, 1.0),
            ({"seed": 2, "m": "b", "eta": 1}, 99.0),
        ),
    )
    assert (found.pairs, found.left, found.right, found.margin) == (1, 4.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("band", "holds", "margin"), [((90, 95), True, 1.5), ((93.5, 99), True, 0.0), ((94, 99), False, -0.5)]
)
def test_a_band_holds_with_both_ends(band: tuple[float, float], holds: bool, margin: float) -> None:
    found = judge(claim(of={"method.name": "gmpq"}, band=band), outcome().trials)
    assert (found.holds, found.pairs) == (holds, 6)
    assert found.margin == pytest.approx(margin)


MORE = {"more": {"method.name": "gmpq"}, **SIDES}
NOT_DONE = {"band": (0, 1), "of": {"method.name": "gmpq"}, "at": {"seed": (7, 8)}}


@pytest.mark.parametrize(
    ("said", "kept", "why"),
    [
        # Trials are numbered by seed, then EdMIPS and GMPQ at 0.02 G, then both at 0.04 G.
        (MORE, [1, 3, 5], "no trial with method.name edmips is done"),
        (MORE, [1, 4], "no trial of one side has the other settings"),
        ({**MORE, "standard_errors": 1.0}, [0, 1], "a standard error takes two pairs"),
        (NOT_DONE, range(12), "no trial with method.name gmpq, seed 7 or 8 is done"),
        ({**MORE, "metric": "entropy"}, range(12), "no trial has measured entropy"),
    ],
)
def test_a_claim_that_nothing_speaks_for_or_against_is_open(
    said: dict[str, Any], kept: Sequence[int], why: str
) -> None:
    found = judge(claim(**said), [outcome().trials[place] for place in kept])
    assert found.holds is None
    assert why in found.why


def test_failed_trials_do_not_count() -> None:
    broken = [replace(t, state="failed", metrics={}) if t.settings["seed"] == 1 else t for t in outcome().trials]
    assert judge(claim(more={"method.name": "gmpq"}, **SIDES), broken).pairs == 4


def test_a_trial_on_both_sides_is_compared_with_itself_and_tells_nothing() -> None:
    found = judge(claim(not_less={"method.name": ("gmpq", "edmips")}, than={"method.name": "edmips"}), outcome().trials)
    assert found.holds is None
    assert "is on both sides" in found.why
