"""What a space may say, and that a sampler stays inside what it says."""

import itertools
import math
import re

import optuna
import pytest

from service.space import (
    MAX_POINTS,
    Choice,
    Conditional,
    Domain,
    Float,
    Int,
    as_written,
    check_condition,
    fit,
    parse_domain,
    points,
    suggest,
    unit_point,
)
from trainables.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "domain", "examples"),
    [
        ({"loguniform": [0.01, 1]}, Float(0.01, 1.0, log=True), (0.01, 1.0)),
        ({"uniform": [-1, 2.5]}, Float(-1.0, 2.5, log=False), (-1.0, 2.5)),
        ({"int": [2, 2**60 + 1]}, Int(2, 2**60 + 1), (2, 2**60 + 1)),
        ({"choice": ["a", 1, 2.0, True]}, Choice(("a", 1, 2.0, True)), ("a", 1, 2.0, True)),
        ({"grid": [3, 1.5, 2]}, Choice((3, 1.5, 2)), (3, 1.5, 2)),
        ({"fixed": "a"}, Choice(("a",)), ("a",)),
        ({"fixed": False}, Choice((False,)), (False,)),
        ({"int": [1, 3], "when": {"a": "x", "b": [1, 2.0]}},
         Conditional(Int(1, 3), (("a", ("x",)), ("b", (1, 2.0)))), (1, 3)),
    ],
)  # fmt: skip
def test_a_domain_is_read_with_the_values_that_stand_for_it(
    written: object, domain: Domain, examples: tuple[object, ...]
) -> None:
    read = parse_domain(written)
    assert read == domain
    assert [(v, type(v)) for v in read.examples()] == [(v, type(v)) for v in examples]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (0.5, r"found 0\.5; expected one of \{choice: "),
        ({}, r"found \{\}; expected one of"),
        ({"int": [1, 2], "uniform": [1, 2]}, "expected one of"),
        ({"log": [1, 2]}, "unknown kind of range 'log'"),
        ({"unifrom": [1, 2]}, "did you mean 'uniform'"),
        ({"uniform": 1}, "uniform: found 1; expected a list in brackets"),
        ({"uniform": [1]}, r"uniform: found \[1\]; expected two numbers"),
        ({"uniform": [1, 2, 3]}, "expected two numbers"),
        ({"uniform": ["1", 2]}, "expected two numbers"),
        ({"int": [False, True]}, "expected two numbers"),
        ({"int": [3, 3]}, "int: low 3 is not below high 3"),
        ({"int": [1, 2.0]}, "expected whole numbers, or use 'uniform'"),
        ({"uniform": [2, 1]}, "uniform: low 2 is not below high 1"),
        ({"uniform": [0, float("nan")]}, "is not below high nan"),
        ({"loguniform": [0, 1]}, "loguniform: low is 0; a log scale needs positive numbers"),
        ({"choice": []}, "choice: the list is empty"),
        ({"choice": [1, [2]]}, r"choice: found \[2\]; expected single numbers"),
        ({"choice": ["a", "b", "a"]}, "choice: 'a' stands twice"),
        ({"choice": [12, 12.0]}, r"choice: 12\.0 stands twice"),
        ({"grid": []}, "grid: the list is empty"),
        ({"grid": [1, 1.0]}, r"grid: 1\.0 stands twice"),
        ({"grid": [1, True]}, "grid: found .* expected numbers, or use 'choice'"),
        ({"grid": 1}, "grid: found 1; expected a list in brackets"),
        ({"fixed": [1]}, r"fixed: found \[1\]; expected a single number"),
        ({"when": {"a": 1}}, r"expected one of \{choice: \[\.\.\.\]\}, \{fixed: value\}"),
        ({"int": [1, 2], "wen": {"a": 1}}, "expected one of"),
        ({"fixed": 1, "when": 1}, "when: found 1; expected an entry and its value"),
        ({"fixed": 1, "when": {}}, "when: found {}; expected an entry and its value"),
        ({"fixed": 1, "when": {"a": []}}, r"when: a: found \[\]; expected a value, or several in brackets"),
        ({"fixed": 1, "when": {"a": [[1]]}}, r"when: a: found \[\[1\]\]; expected a value"),
    ],
)
def test_a_domain_that_cannot_be_drawn_from_says_what_would_be_right(written: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_domain(written)


def test_a_sampler_draws_every_setting_from_its_domain_and_reaches_all_of_it() -> None:
    space: dict[str, Domain] = {
        "log": Float(0.01, 100.0, log=True),
        "even": Float(0.01, 100.0, log=False),
        "whole": Int(3, 5),
        "word": Choice(("a", "b", True)),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draws = [suggest(space, study.ask()) for _ in range(200)]
    assert all(list(draw) == list(space) for draw in draws)
    assert {draw["whole"] for draw in draws} == {3, 4, 5}
    assert {draw["word"] for draw in draws} == {"a", "b", True}
    for name in ("log", "even"):
        assert all(0.01 <= float(draw[name]) <= 100.0 for draw in draws)
    # Half of the log scale lies below 1, a hundredth of the even one.
    below = {name: sum(float(draw[name]) < 1.0 for draw in draws) for name in ("log", "even")}
    assert 70 <= below["log"] <= 130
    assert below["even"] <= 10


def conditional(domain: Choice | Float | Int, **when: object) -> Conditional:
    return Conditional(domain, tuple((name, values) for name, values in when.items()))  # type: ignore[misc]


TREE: dict[str, Domain] = {
    "start": Choice(("warm", "cold")),
    "depth": Int(1, 3),
    "rate": conditional(Choice((0.1, 0.2)), start=("cold",)),
    "decay": conditional(Choice((True, False)), rate=(0.2,), depth=(1, 2)),
}


def test_the_grid_is_every_combination_of_active_values_in_order() -> None:
    expected = []
    for start, depth in itertools.product(("warm", "cold"), (1, 2, 3)):
        base = {"start": start, "depth": depth}
        if start == "warm":
            expected.append(base)
            continue
        expected.append(base | {"rate": 0.1})
        decays = [{"decay": decay} for decay in (True, False)] if depth < 3 else [{}]
        expected += [base | {"rate": 0.2} | decay for decay in decays]
    assert points(TREE) == expected
    assert points({}) == [{}]


def test_a_grid_that_has_no_end_is_refused_before_it_is_made() -> None:
    with pytest.raises(ConfigError, match="rate: a grid tries every value; give choice, grid, int or fixed"):
        points({"depth": Int(1, 3), "rate": Float(0.0, 1.0, log=False)})
    with pytest.raises(ConfigError, match=f"depth: with it the grid has more than {MAX_POINTS} points"):
        points({"start": Choice((1, 2)), "depth": Int(1, 2**60)})


def test_a_sampler_gives_a_value_to_active_entries_alone() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    grid = points(TREE)
    draws = [suggest(TREE, study.ask()) for _ in range(300)]
    assert all(draw in grid for draw in draws)
    assert all(point in draws for point in grid)


def test_points_of_the_unit_cube_fall_into_equal_shares() -> None:
    space: dict[str, Domain] = {
        "log": Float(0.01, 100.0, log=True),
        "even": Float(-1.0, 3.0, log=False),
        "whole": Int(3, 6),
        "word": Choice(("a", "b")),
    }
    first = {"log": pytest.approx(0.01), "even": -1.0, "whole": 3, "word": "a"}
    last = {"log": pytest.approx(100.0), "even": 3.0, "whole": 6, "word": "b"}
    assert unit_point(space, (0, 0, 0, 0)) == first
    assert unit_point(space, (1, 1, 1, 1)) == last
    middle = unit_point(space, (0.5, 0.5, 0.5, 0.5))
    assert math.isclose(float(middle.pop("log")), 1.0)
    assert middle == {"even": 1.0, "whole": 5, "word": "b"}
    steps = [unit_point(space, (0, 0, (i + 0.5) / 40, 0))["whole"] for i in range(40)]
    assert [steps.count(value) for value in (3, 4, 5, 6)] == [10, 10, 10, 10]


def test_points_of_the_unit_cube_leave_out_what_is_not_active() -> None:
    found = [unit_point(TREE, cube) for cube in itertools.product((0.1, 0.4, 0.9), repeat=4)]
    grid = points(TREE)
    assert all(point in grid for point in found)
    assert all(point in found for point in grid)
    with pytest.raises(ValueError, match="2 coordinates for a space of 4 entries"):
        unit_point(TREE, (0.5, 0.5))


@pytest.mark.parametrize(
    ("domain", "value", "own"),
    [
        (Choice((12.0, True)), 12, 12.0),
        (Int(1, 3), 2.0, 2),
        (Float(0.0, 1.0, log=False), 1, 1.0),
        (conditional(Int(1, 3), a=(1,)), 3, 3),
    ],
)
def test_a_value_becomes_the_domains_own(domain: Domain, value: float, own: float) -> None:
    assert (fit(domain, value), type(fit(domain, value))) == (own, type(own))


@pytest.mark.parametrize(
    ("domain", "value", "message"),
    [
        (Choice((12.0, "a")), True, "found True; expected one of 12.0, 'a'"),
        (Choice((True,)), 1, "found 1; expected one of True"),
        (Int(1, 3), 2.5, "found 2.5; expected a whole number from 1 to 3"),
        (Int(1, 3), 4, "found 4; expected a whole number from 1 to 3"),
        (Int(0, 3), False, "found False; expected a whole number from 0 to 3"),
        (Float(0.0, 1.0, log=False), 1.5, "found 1.5; expected a number from 0 to 1"),
        (Float(0.0, 1.0, log=False), "a", "found 'a'; expected a number from 0 to 1"),
    ],
)
def test_a_value_outside_a_domain_says_what_is_inside(domain: Domain, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        fit(domain, value)


def test_a_condition_takes_the_values_of_a_finite_entry() -> None:
    space: dict[str, Domain] = {"a": Choice((12.0, 24.0)), "b": Float(0.0, 1.0, log=False), "c": Int(1, 3)}
    assert repr(check_condition("a", (12, 24.0), space)) == "(12.0, 24.0)"
    assert check_condition("c", (3,), space) == (3,)
    with pytest.raises(ConfigError, match=r"found 13; expected one of 12\.0, 24\.0"):
        check_condition("a", (13,), space)
    with pytest.raises(ConfigError, match="'b' is a range; a condition needs an entry that is a choice"):
        check_condition("b", (0.5,), space)


@pytest.mark.parametrize("domain", [Float(0.1, 1.0, log=True), Float(-1.0, 1.0, log=False), *TREE.values()], ids=repr)
def test_a_domain_is_read_as_it_was_written(domain: Domain) -> None:
    assert parse_domain(as_written(domain)) == domain
