"""What a space may say, and that a sampler stays inside what it says."""

import optuna
import pytest

from service.space import Choice, Domain, Float, Int, parse_domain, suggest
from trainables.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "domain", "examples"),
    [
        ({"loguniform": [0.01, 1]}, Float(0.01, 1.0, log=True), (0.01, 1.0)),
        ({"uniform": [-1, 2.5]}, Float(-1.0, 2.5, log=False), (-1.0, 2.5)),
        ({"int": [2, 2**60 + 1]}, Int(2, 2**60 + 1), (2, 2**60 + 1)),
        ({"choice": ["a", 1, 2.0, True]}, Choice(("a", 1, 2.0, True)), ("a", 1, 2.0, True)),
    ],
)
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
