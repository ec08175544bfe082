"""Sweeps on common axes: closed forms by hand, the plain definitions, and what keeps numbers from being compared."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from service.comparison import (
    additive_epsilon,
    ahead,
    axes,
    common_objectives,
    compare,
    coverage,
    igd_plus,
    labels_of,
)
from service.front import find_front
from service.hypervolume import Values, hypervolume
from service.pareto import METRICS, OBJECTIVES, front
from service.records import SweepRecord, TrialRecord
from service.view import SweepView
from trainables.errors import ConfigError

COST, QUALITY = METRICS["bops_g"], METRICS["top1"]


def trial(number: int, top1: float, bops_g: float, ard: float = 1.0) -> TrialRecord:
    metrics = {"top1": top1, "bops_g": bops_g, "ard": ard}
    return TrialRecord(trial_id=f"t{number}", number=number, state="done", settings={}, metrics=metrics, attempts=1)


def view_of(points: list[tuple[float, ...]], name: str = "a", **changes: object) -> SweepView:
    plain = SweepRecord(
        name=name,
        spec_hash="h",
        facts={"data": "digits", "network": "resnet8"},
        total_trials=len(points),
        created_ms=1,
        references={"r": {"top1": 99.0, "data_fingerprint": "f" * 64}},
    )
    sweep = replace(plain, **changes)  # type: ignore[arg-type]
    trials = [trial(number, *point) for number, point in enumerate(points)]
    return SweepView(
        folder=Path("/sweeps") / name,
        sweep=sweep,
        trials=tuple(trials),
        found=find_front(trials, sweep),
        policies={},
        hours={},
    )


def drawn(count: int, seed: int) -> list[tuple[float, ...]]:
    draw = random.Random(seed)
    return [(draw.uniform(80, 90), draw.uniform(1, 5), draw.uniform(0, 3)) for _ in range(count)]


def test_the_indicators_of_two_small_fronts_by_hand() -> None:
    ours: list[Values] = [(0.0, 0.6), (0.5, 0.1)]
    theirs: list[Values] = [(0.2, 0.3), (0.6, 0.1)]
    # (0.2, 0.3) is 0.3 better than each of ours in one objective; (0.6, 0.1) is dominated.
    assert additive_epsilon(ours, theirs) == pytest.approx(0.3)
    assert igd_plus(ours, theirs) == pytest.approx(0.3 / 2)
    assert coverage(ours, theirs) == 0.5
    # Against (0, 0.6) theirs lack 0.2, against (0.5, 0.1) the nearest is (0.6, 0.1) or (0.2, 0.3), by 0.1 and by 0.2.
    assert additive_epsilon(theirs, ours) == pytest.approx(0.2)
    assert igd_plus(theirs, ours) == pytest.approx((0.2 + 0.1) / 2)
    assert coverage(theirs, ours) == 0.0
    # Means are over the members of the other front.
    assert igd_plus(theirs[:1], ours) == pytest.approx((0.2 + 0.2) / 2)
    assert igd_plus(ours, theirs[:1]) == pytest.approx(0.3)


def test_a_mean_of_euclidean_distances_can_exceed_the_maximum_norm_and_the_boxs_side() -> None:
    ours: list[Values] = [(0.9, 0.9, 0.9)]
    theirs: list[Values] = [(0.0, 0.0, 0.0)]
    assert additive_epsilon(ours, theirs) == pytest.approx(0.9)
    assert igd_plus(ours, theirs) == pytest.approx(0.9 * 3**0.5)


def test_a_front_that_dominates_has_no_distance_and_a_negative_epsilon() -> None:
    near: list[Values] = [(0.1, 0.4), (0.4, 0.1)]
    far: list[Values] = [(0.2, 0.6), (0.5, 0.2)]
    assert additive_epsilon(near, far) == pytest.approx(-0.1)
    assert (igd_plus(near, far), coverage(near, far), coverage(far, near)) == (0.0, 1.0, 0.0)
    assert additive_epsilon(near, near) == 0.0
    assert (igd_plus(near, []), additive_epsilon([], near), coverage([], [])) == (None, None, None)


def test_a_comparison_is_made_of_the_plain_definitions() -> None:
    views = [view_of(drawn(30, seed), name) for seed, name in enumerate("abc")]
    found = compare(views)
    every = [t.metrics for view in views for t in view.trials]
    corner = {
        o.name: (min if o.direction == "max" else max)(p[o.name] for p in every)
        + (-0.1 if o.direction == "max" else 0.1) * (max(p[o.name] for p in every) - min(p[o.name] for p in every))
        for o in OBJECTIVES
    }
    assert found.box is not None
    assert found.box.reference_point == pytest.approx(corner)
    for view, volume in zip(views, found.hypervolumes, strict=True):
        plain = hypervolume([t.metrics for t in view.trials], corner)
        assert volume * found.box.volume == pytest.approx(plain)
    assert found.joint_hypervolume * found.box.volume == pytest.approx(hypervolume(every, corner))
    owners = [place for place, view in enumerate(views) for _ in view.trials]
    numbers = [t.number for view in views for t in view.trials]
    assert {(p, t.number) for p, t in found.joint} == {(owners[at], numbers[at]) for at in front(every)}
    costs = [t.metrics["bops_g"] for _, t in found.joint]
    assert costs == sorted(costs)
    assert found.knee in found.joint
    assert [found.epsilon[i][i] for i in range(3)] == [0.0] * 3
    assert found.coverage[0][1] == coverage(
        [found.box.scaled(t.metrics) for t in found.fronts[0]], [found.box.scaled(t.metrics) for t in found.fronts[1]]
    )


def test_the_knee_of_a_sweep_is_that_of_the_front_of_it_alone() -> None:
    # Both members are equally near; and of equal points in the objectives the cheaper one is meant.
    two = view_of([(80.0, 1.0), (90.0, 3.0)], objectives=("top1", "bops_g"))
    equal = view_of([(90.0, 3.0, 1.0), (90.0, 2.0, 1.0)], objectives=("top1", "ard"))
    for view, number in ((two, 1), (equal, 1)):
        assert view.found.knee is not None
        assert view.found.knee.number == number
        assert compare([view]).knee == (0, view.found.knee)


def test_who_is_ahead_at_every_cost_is_who_has_the_best_policy_that_costs_no_more() -> None:
    for seed in range(40):
        draw = random.Random(seed)
        sides = [
            [trial(n, float(draw.randint(80, 90)), float(draw.randint(1, 9))) for n in range(draw.randint(0, 5))]
            for _ in range(draw.choice([2, 3]))
        ]
        ranges = ahead(sides, COST, QUALITY)
        for price in [step / 4 for step in range(2, 44)]:
            best = sorted(
                (max(t.metrics["top1"] for t in side if t.metrics["bops_g"] <= price), place)
                for place, side in enumerate(sides)
                if any(t.metrics["bops_g"] <= price for t in side)
            )
            inside = [one for one in ranges if one.low <= price and (one.high is None or price < one.high)]
            if not best:
                assert inside == []
                continue
            (one,) = inside
            if len(best) == 1:
                assert (one.leader, one.least_gap, one.largest_gap) == (best[0][1], None, None)
                continue
            gap = best[-1][0] - best[-2][0]
            assert one.leader == (best[-1][1] if gap else None)
            assert one.least_gap is not None
            assert one.largest_gap is not None
            assert one.least_gap <= gap <= one.largest_gap


def test_ranges_with_one_leader_are_one_range_with_the_span_of_the_gaps() -> None:
    ours = [trial(0, 80.0, 1.0), trial(1, 88.0, 3.0)]
    theirs = [trial(0, 85.0, 2.0), trial(1, 86.0, 4.0), trial(2, 88.0, 6.0)]
    found = [(o.low, o.high, o.leader, o.least_gap, o.largest_gap) for o in ahead([ours, theirs], COST, QUALITY)]
    assert found == [
        (1.0, 2.0, 0, None, None),
        (2.0, 3.0, 1, 5.0, 5.0),
        (3.0, 6.0, 0, 2.0, 3.0),
        (6.0, None, None, 0.0, 0.0),
    ]


def test_axes_are_bops_and_top1_where_they_are_objectives() -> None:
    def names(*objectives: str) -> tuple[str | None, str]:
        cost, quality = axes([METRICS[name] for name in objectives])
        return cost.name if cost else None, quality.name

    assert names("ard", "bops_g", "top1") == ("bops_g", "top1")
    assert names("top1", "storage_mb") == ("storage_mb", "top1")
    assert names("bops_g", "ard") == ("bops_g", "ard")
    assert names("compression", "top1", "bops_g") == ("bops_g", "top1")
    assert names("compression", "top1") == (None, "top1")
    assert names("storage_mb", "compression", "ard") == ("storage_mb", "compression")
    assert names("top1", "compression") == (None, "top1")
    assert names("bops_g") == (None, "bops_g")
    assert compare([view_of([(80.0, 1.0)], objectives=("top1",))]).ahead == ()


def test_sweeps_without_policies_are_compared_as_well() -> None:
    found = compare([view_of([(80.0, 1.0)], "a"), view_of([], "b")])
    assert (found.hypervolumes, found.joint_hypervolume) == ((1.0, 0.0), 1.0)
    assert found.epsilon == ((0.0, None), (None, None))
    assert [(one.leader, one.least_gap) for one in found.ahead] == [(0, None)]
    empty = compare([view_of([], "a"), view_of([], "b")])
    assert (empty.box, empty.joint, empty.knee, empty.ahead) == (None, (), None, ())
    bounded = compare([view_of([(80.0, 1.0), (90.0, 3.0)], constraints=("bops_g <= 2",))])
    assert [t.number for _, t in bounded.joint] == [0]


def test_what_keeps_numbers_from_being_compared_is_said_with_both_sides() -> None:
    a = view_of([(80.0, 1.0)], "a")
    assert compare([a, view_of([(81.0, 1.0)], "b")]).warnings == ()
    other = {"r": {"top1": 70.0, "data_fingerprint": "0123456789" * 6}}
    b = view_of([(81.0, 1.0)], "b", references=other, facts={"data": "cifar10", "network": "resnet20"})
    data, networks = compare([a, b]).warnings
    assert data == (
        "The data differ, so top-1 and ARD do not say which policy is better (a: digits ffffffff; b: cifar10 01234567)."
    )
    assert "(a: resnet8; b: resnet20)" in networks
    bounded = view_of([(81.0, 1.0)], "b", constraints=("top1 >= 80",))
    assert compare([a, bounded]).warnings == (
        "The sweeps have different constraints, and only policies within them count (a: none; b: top1 >= 80).",
    )


def mixed(settings: list[dict[str, object]], pixels: list[float], **changes: object) -> SweepView:
    """A sweep whose trials have these settings and are compared with references of their own."""
    view = view_of([(80.0 + n, 1.0 + n) for n in range(len(settings))], **changes)  # type: ignore[arg-type]
    trials = tuple(
        replace(one, settings=own, reference=str(n), metrics={**one.metrics, "attribution_pixels": count})
        for n, (one, own, count) in enumerate(zip(view.trials, settings, pixels, strict=True))
    )
    return replace(view, trials=trials, found=find_front(trials, view.sweep))


def reference(
    fingerprint: str, data: str = "digits", image_size: int = 16, network: str = "resnet8"
) -> dict[str, object]:
    about = {"name": data, "image_size": image_size}
    return {"top1": 99.0, "data_fingerprint": fingerprint * 64, "network": network, "data": about}


def test_a_sweep_that_mixes_what_does_not_compare_is_warned_of_alone() -> None:
    sizes = mixed([{"data.image_size": 16}, {"data.image_size": 32}], [16, 16])
    assert compare([sizes]).warnings == (
        "The images differ in size, and BOPs with them (a: 16×16 pixels, 32×32 pixels).",
    )
    # The same, where only the references tell it.
    known = {"0": reference("f"), "1": reference("f", image_size=32)}
    assert compare([mixed([{}, {}], [16, 16], references=known)]).warnings == compare([sizes]).warnings
    known = {"0": reference("f"), "1": reference("0", data="cars")}
    assert compare([mixed([{}, {}], [16, 16], references=known)]).warnings == (
        "The data differ, so top-1 and ARD do not say which policy is better (a: digits ffffffff, cars 00000000).",
    )
    networks = [{"network.name": "resnet8"}, {"network.name": "resnet20"}]
    assert compare([mixed(networks, [16, 16])]).warnings == (
        "ARD is counted in ranks of each network's own map, and the networks differ (a: resnet8, resnet20).",
    )
    assert compare([mixed(networks, [16, 16], objectives=("top1", "bops_g"))]).warnings == ()
    (pixels,) = compare([mixed([{}, {}], [49, 16])]).warnings
    assert "their numbers differ (a: 16, 49)" in pixels


def test_only_policies_that_count_are_warned_of() -> None:
    networks = [{"network.name": "resnet8"}, {"network.name": "resnet20"}]
    assert compare([mixed(networks, [16, 16], constraints=("bops_g <= 1",))]).warnings == ()
    (warning,) = compare([mixed(networks, [16, 16]), view_of([(81.0, 1.0)], "b")]).warnings
    assert warning.endswith("the networks differ (a: resnet8, resnet20; b: resnet8).")


def test_sweeps_of_different_objectives_are_compared_in_those_that_they_share() -> None:
    a, b = view_of([(80.0, 1.0)], "a"), view_of([(81.0, 2.0)], "b", objectives=("bops_g", "top1"))
    assert [o.name for o in compare([a, b]).objectives] == ["top1", "bops_g"]
    assert compare([a, b]).warnings == (
        "The sweeps have different objectives; compared are top1, bops_g (a: top1, bops_g, ard; b: bops_g, top1).",
    )
    with pytest.raises(ConfigError, match=r"no objective in common \(a: top1, bops_g, ard; b: storage_mb\)"):
        common_objectives([a, view_of([], "b", objectives=("storage_mb",))])


def test_sweeps_of_one_name_are_told_apart_by_their_folders() -> None:
    a, b = view_of([], "a"), view_of([], "b")
    assert labels_of([a, b]) == ("a", "b")
    assert labels_of([a, replace(a, folder=Path("/elsewhere/a")), b]) == ("/sweeps/a", "/elsewhere/a", "b")
