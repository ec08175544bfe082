"""Indicators of importance: files read strictly, scores by hand, widths that are left out, names with a prefix."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainables.choices import Choices, Scores
from trainables.errors import ConfigError
from trainables.indicators import Indicators

WIDTHS = (4, 2, 3)
"""Not in order: the order in which widths are offered must not matter."""


def template(widths: tuple[int, ...] = WIDTHS) -> Choices:
    """Stem and head pinned; a and b share an activation, c's has one width, d is alone."""
    offered = Scores(widths, (0.0,) * len(widths))
    return Choices(
        network="net",
        layers=("stem", "a", "b", "c", "d", "head"),
        weights=dict.fromkeys("abcd", offered),
        acts={"a": offered, "c": Scores((8,), (0.0,)), "d": offered},
        group_of={"a": "a", "b": "a", "c": "c", "d": "d"},
        pinned={"stem": 8, "head": 8},
    )


def falling(first: float) -> dict[int, float]:
    """Indicators of 2, 3 and 4 bits, halved by every bit."""
    return {2: first, 3: first / 2, 4: first / 4}


def indicators(**changed: Mapping[int, float]) -> Indicators:
    """`changed`: of weights by a layer's name, of activations by its name after act_."""
    weights: dict[str, Mapping[int, float]] = {name: falling(place) for place, name in enumerate("abcd", start=1)}
    acts: dict[str, Mapping[int, float]] = {name: falling(10.0 * place) for place, name in enumerate("abd", start=1)}
    weights |= {name: values for name, values in changed.items() if not name.startswith("act_")}
    acts |= {name[4:]: values for name, values in changed.items() if name.startswith("act_")}
    return Indicators(weights, acts)


def test_scores_are_minus_alpha_times_the_weights_and_minus_the_sum_of_a_groups_activations() -> None:
    found = indicators().choices(template(), alpha=3.0)
    assert found.weights["b"] == Scores((2, 3, 4), (-6.0, -3.0, -1.5))
    assert found.acts["a"] == Scores((2, 3, 4), (-30.0, -15.0, -7.5))
    assert found.acts["d"] == Scores((2, 3, 4), (-30.0, -15.0, -7.5))
    assert found.acts["c"] == template().acts["c"]
    assert indicators().choices(template()).weights["a"].of(2) == -2.0
    assert indicators().excluded(template()) == ()


def test_one_indicator_of_a_group_counts_for_each_of_its_layers() -> None:
    alone = Indicators(indicators().weights, {"a": falling(8.0), "d": falling(1.0)})
    each = Indicators(indicators().weights, {"a": falling(8.0), "b": falling(8.0), "d": falling(1.0)})
    assert alone.choices(template()).acts["a"].of(3) == -8.0
    assert alone.choices(template()) == each.choices(template())
    other = Indicators(indicators().weights, {"b": falling(8.0), "d": falling(1.0)})
    with pytest.raises(ConfigError, match="act has no layer 'a'"):
        other.choices(template())


def test_a_width_with_a_smaller_indicator_than_the_next_wider_one_is_not_offered() -> None:
    odd = indicators(b={2: 0.1, 3: 0.3, 4: 0.2}, act_a={2: 1.0, 3: 1.0, 4: 9.0}, act_b={2: 2.0, 3: 9.0, 4: 1.0})
    found = odd.choices(template())
    assert found.weights["b"].widths == (3, 4)
    # The sums of the group a, b are 3, 10, 10.
    assert found.acts["a"] == Scores((3, 4), (-10.0, -10.0))
    assert [str(one) for one in odd.excluded(template())] == [
        "b: 2-bit weights are not offered: their indicator 0.1 is below 0.3, that of 3 bits",
        "a: 2-bit activations are not offered: their indicator 3 is below 10, that of 3 bits",
    ]


def test_only_widths_that_are_offered_are_compared() -> None:
    odd = indicators(b={2: 0.3, 3: 0.1, 4: 0.2})
    assert odd.choices(template((2, 4))).weights["b"].widths == (2, 4)
    assert odd.choices(template()).weights["b"].widths == (2, 4)
    assert [one.width for one in odd.excluded(template())] == [3]


def test_neighbours_alone_are_compared_and_a_wider_width_that_is_worth_less_is_never_chosen() -> None:
    odd = indicators(b={2: 0.25, 3: 0.2, 4: 0.3})
    assert odd.choices(template()).weights["b"].widths == (2, 4)
    assert odd.choices(template()).weights["b"].worthwhile == (2,)


def test_the_widest_width_always_stays() -> None:
    rising = indicators(d={2: 1.0, 3: 2.0, 4: 3.0})
    assert rising.choices(template()).weights["d"] == Scores((4,), (-6.0,))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"e": falling(1.0)}, "the network has no layer 'e'.*known: a, b, c, d, head, stem"),
        ({"b": {2: 1.0, 4: 0.5}}, r"weight\.b has none of 3 bits, only of 2, 4; offer those widths alone"),
        ({"act_d": {}}, r"act\.d has none of 2, 3, 4 bits, only of no width"),
    ],
)
def test_layers_and_widths_must_fit_the_network(changed: dict[str, dict[int, float]], message: str) -> None:
    for use in (indicators(**changed).choices, indicators(**changed).excluded):
        with pytest.raises(ConfigError, match=message):
            use(template())


def test_a_layer_without_an_indicator_is_named() -> None:
    short = Indicators({name: falling(1.0) for name in "abd"}, indicators().acts)
    with pytest.raises(ConfigError, match=r"weight has no layer 'c'.*Give it indicators, or pin it"):
        short.choices(template())


def test_of_many_layers_the_nearest_are_listed() -> None:
    names = tuple(f"layer{number}" for number in range(60))
    offered = Scores((2, 3, 4), (0.0,) * 3)
    many = Choices(
        network="net",
        layers=names,
        weights=dict.fromkeys(names, offered),
        acts=dict.fromkeys(names, Scores((8,), (0.0,))),
        group_of={name: name for name in names},
        pinned={},
    )
    values = {name: falling(1.0) for name in names}
    del values["layer7"]
    with pytest.raises(
        ConfigError, match=r"weight has no layer .layer7.; did you mean .* and 53 more\. Give it indicators"
    ) as raised:
        Indicators(values, {}).choices(many)
    assert str(raised.value).count("layer") < 12
    with pytest.raises(ConfigError, match=r"no layer 'layer7x'; did you mean 'layer7'\? known: .* and 54 more"):
        Indicators({**values, "layer7x": falling(1.0)}, {}).choices(many)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_indicators_are_positive_and_finite(value: float) -> None:
    with pytest.raises(ConfigError, match=r"act\.d\.3 is .*an indicator is zero or a positive, finite number"):
        indicators(act_d={2: 1.0, 3: value, 4: 0.1})
    with pytest.raises(ConfigError, match=r"weight\.a: 33 is no width; give 1 to 32 bits"):
        indicators(a={33: 1.0})


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    path.write_text(indicators().to_json())
    assert Indicators.load(path) == indicators()
    content = json.loads(path.read_text())
    assert content["layer_name"] == list("abcd")
    assert content["weight"]["a"] == {"2": 1.0, "3": 0.5, "4": 0.25}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {}}, r"i\.json: unknown key 'weights'; did you mean 'weight'"),
        ({"act": None}, r"i\.json: 'act' must map each layer's name to its indicators by width"),
        ({"weight": {"a": [1.0]}}, r"i\.json: weight\.a is '\[1\.0\]'; expected indicators by width"),
        ({"weight": {"a": {}}}, r"i\.json: weight\.a is '\{\}'; expected indicators by width"),
        ({"weight": {"a": {"02": 1.0}}}, r"i\.json: weight\.a: '02' is no width"),
        ({"weight": {"a": {"x": 1.0}}}, r"i\.json: weight\.a: 'x' is no width; give a whole number from 1 to 32"),
        ({"weight": {"a": {"2": "1"}}}, r"i\.json: weight\.a\.2 is '1'; expected a number"),
        ({"weight": {"a": {"2": True}}}, r"i\.json: weight\.a\.2 is 'True'; expected a number"),
        ({"weight": {"a": {"2": 10**400}}}, r"i\.json: weight\.a\.2 has 401 digits; give a finite number"),
        ({"weight": {"a": {"2": -1}}}, r"i\.json: weight\.a\.2 is -1\.0; an indicator is zero or a positive"),
        ({"layer_name": ["a"]}, r"i\.json: 'layer_name' must list the layers of 'weight', each once"),
        ({"layer_name": list("aabcd")}, r"i\.json: 'layer_name' must list the layers of 'weight', each once"),
        ({"layer_name": 3}, r"i\.json: 'layer_name' must list"),
    ],
)
def test_a_file_that_is_wrong_says_where_and_the_fix(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "i.json"
    path.write_text(json.dumps({**indicators().to_content(), **change}))
    with pytest.raises(ConfigError, match=message):
        Indicators.load(path)


def test_what_is_no_json_of_numbers_is_one_message(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.json", '{"weight": {"a": {"2": NaN}}, "act": {}}', r"weight\.a\.2 is nan; expected a finite number"),
        ("b.json", '{"weight": {"a": {"2": 1, "2": 3}}, "act": {}}', r"weight\.a\.2 stands twice"),
        ("c.json", "[1]", "expected a JSON object"),
        ("d.json", '{"weight": {"a": {"2": 1e999}}, "act": {}}', r"weight\.a\.2 is inf"),
        ("e.pkl", "", r"e\.pkl is a pickle, which can run any code.* > .*e\.json"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            Indicators.load(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        Indicators.load(tmp_path / "none.json")


def test_a_prefix_that_all_names_share_is_taken_off_where_that_leaves_the_networks_names() -> None:
    layers = ("conv1", "layer1.0.conv1", "layer1.0.conv2")

    def named(prefix: str, names: tuple[str, ...] = layers[1:]) -> Indicators:
        return Indicators(*({prefix + name: falling(1.0) for name in names} for _ in range(2)))

    for prefix in ("", "module.", "module.net."):
        found, taken = named(prefix).without_prefix(layers)
        assert (found, taken) == (named(""), prefix)
    for unknown in (named("module.", ("layer9.0",)), Indicators({}, {})):
        assert unknown.without_prefix(layers) == (unknown, "")
    mixed = Indicators({"module.conv1": falling(1.0), "layer1.0.conv1": falling(1.0)}, {})
    assert mixed.without_prefix(layers) == (mixed, "")
