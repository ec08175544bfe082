"""`policy solve --indicators`: a policy from learned indicators and limits alone, through the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dashboards.policies import lost, scale_of
from service.cli import main
from trainables import api
from trainables.bops import CostModel
from trainables.config import NetworkConfig
from trainables.indicators import Indicators
from trainables.method_config import METHOD_CONFIGS, SupernetConfig, WidthsConfig
from trainables.offer import Offer
from trainables.policy_file import PolicyRecord

WIDTHS = (2, 3, 4)
ON = ("--network", "resnet8", "--image-size", "16", "--num-classes", "10", "--bits", "2,3,4")


@pytest.fixture(scope="module")
def offer() -> Offer:
    widths = WidthsConfig(weight_bits=WIDTHS, act_bits=WIDTHS)
    return api.offer(NetworkConfig(name="resnet8"), widths, image_size=16, num_classes=10)


def made(offer: Offer, prefix: str = "") -> Indicators:
    """Halved by every bit, deeper layers smaller."""
    values = {
        f"{prefix}{name}": {width: 2.0**-width / (place + 1) for width in WIDTHS}
        for place, name in enumerate(offer.choices.weights)
    }
    return Indicators(values, values)


@pytest.fixture
def solve(offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    Path("i.json").write_text(made(offer).to_json())
    Path("m.json").write_text(made(offer, "module.").to_json())

    def call(*arguments: str, status: int = 0) -> Result:
        found = CliRunner().invoke(main, ["policy", "solve", *arguments])
        assert found.exit_code == status, (found.output, found.exception)
        return found

    return call


def best_within(offer: Offer, work: CostModel, bops_g: float) -> float:
    """The least sum of indicators, by going through everything that one limit leaves: a plain search over groups."""
    choices = made(offer).choices(offer.choices)
    limit = round(bops_g * 1e9) - work.unsearched({"conv1": _bits(8), list(work.layers)[-1]: _bits(8)}).bops
    states = {0: 0.0}
    for group, acts in choices.acts.items():
        members = [name for name, of in choices.group_of.items() if of == group]
        options: dict[int, float] = {}
        for act in acts.widths:
            parts = {0: acts.of(act)}
            for name in members:
                parts = _joined(
                    parts, {work.work[name].macs * act * w: choices.weights[name].of(w) for w in WIDTHS}, limit
                )
            options = {cost: max(parts.get(cost, -9.0), options.get(cost, -9.0)) for cost in {*parts, *options}}
        states = _joined(states, options, limit)
    return max(states.values())


def _bits(bits: int) -> Any:
    from trainables.policy import LayerBits

    return LayerBits(bits, bits)


def _joined(states: dict[int, float], options: dict[int, float], limit: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for cost, score in states.items():
        for more, gain in options.items():
            if cost + more <= limit:
                found[cost + more] = max(found.get(cost + more, -9.0), score + gain)
    return found


@pytest.mark.parametrize("macs", ["exact", "limpq"])
def test_the_policy_has_the_least_sum_of_indicators_within_the_limit(
    solve: Callable[..., Result], offer: Offer, macs: str
) -> None:
    work = offer.work if macs == "exact" else offer.limpq_work
    limit = 0.5 * (work.bops_g(offer.choices.smallest) + work.bops_g(made(offer).choices(offer.choices).best))
    text = solve("--indicators", "i.json", *ON, "--bops-g", repr(limit), "--macs", macs, "-o", "p.json").output
    record = PolicyRecord.load(Path("p.json"))
    choices = made(offer).choices(offer.choices)
    assert work.bops_g(record.policy) <= limit
    assert choices.score(record.policy) == pytest.approx(best_within(offer, work, limit), rel=1e-9)
    assert record.costs["bops_g"] == offer.work.bops_g(record.policy)
    assert (record.method, record.parent, record.settings["macs"]) == ("limpq", "", macs)
    assert record.settings["budget"] == {"bops_g": limit}
    assert ("Counted as LIMPQ does" in text) == (macs == "limpq")
    assert "nats" not in text
    assert "probable" not in text
    assert "above the least sum of indicators" in text


def test_the_file_that_is_written_is_a_policy_like_any_other(solve: Callable[..., Result]) -> None:
    solve("--indicators", "i.json", *ON, "--compression", "60", "-o", "p.json")
    found = CliRunner().invoke(main, ["policy", "validate", "p.json", "--network", "resnet8", "--compression", "60"])
    assert (found.exit_code, "fine" in found.output) == (0, True), found.output


def test_a_prefix_is_taken_off_and_said(solve: Callable[..., Result]) -> None:
    plain = solve("--indicators", "i.json", *ON, "--compression", "60", "--json")
    found = solve("--indicators", "m.json", *ON, "--compression", "60", "--json")
    assert "Layers' names begin with 'module.' in m.json; that was taken off." in found.stderr
    assert json.loads(found.stdout)[0]["hash"] == json.loads(plain.stdout)[0]["hash"]
    assert plain.stderr == ""


def test_widths_that_are_left_out_are_named(solve: Callable[..., Result], offer: Offer) -> None:
    indicators = made(offer)
    name = next(iter(indicators.weights))
    Path("odd.json").write_text(
        Indicators({**indicators.weights, name: {2: 0.1, 3: 0.2, 4: 0.05}}, indicators.acts).to_json()
    )
    text = solve("--indicators", "odd.json", *ON, "--compression", "60").output
    assert f"{name}: 2-bit weights are not offered: their indicator 0.1 is below 0.2, that of 3 bits." in text


def risen(offer: Offer) -> Indicators:
    """Indicators that exclude 2 and 3 bits of all weights: a floor that is not the network's."""
    indicators = made(offer)
    return Indicators({name: {2: 0.1, 3: 0.2, 4: 0.3} for name in indicators.weights}, indicators.acts)


def test_excluded_widths_come_back_for_a_budget_that_needs_them_and_that_is_said(
    solve: Callable[..., Result], offer: Offer
) -> None:
    Path("odd.json").write_text(risen(offer).to_json())
    limit = 1.02 * offer.work.bops_g(offer.choices.smallest)
    assert limit < offer.work.bops_g(risen(offer).choices(offer.choices).smallest)
    text = solve("--indicators", "odd.json", *ON, "--bops-g", repr(limit), "-o", "p.json").output
    assert offer.work.bops_g(PolicyRecord.load(Path("p.json")).policy) <= limit
    excluded = {one.what for one in risen(offer).excluded(offer.choices)}
    back = {line.split(" are on offer")[0] for line in text.splitlines() if "excluded: no policy keeps" in line}
    left_out = {line.split(" are not offered")[0] for line in text.splitlines() if "are not offered: their" in line}
    assert (back | left_out, back & left_out) == (excluded, set())
    assert back
    assert left_out


def test_a_floor_is_the_networks_own_and_what_is_excluded_is_said_before_an_error(
    solve: Callable[..., Result], offer: Offer
) -> None:
    Path("odd.json").write_text(risen(offer).to_json())
    floor = offer.work.bops_g(offer.choices.smallest)
    found = solve("--indicators", "odd.json", *ON, "--bops-g", repr(floor / 2), status=2)
    told = re.search(r"with the smallest widths that are offered it is still ([\d.]+); give at least", found.stderr)
    assert told
    assert floor <= float(told[1]) <= 1.001 * floor
    assert "although excluded" not in found.stdout
    name = next(iter(offer.choices.weights))
    odd = Indicators({**made(offer).weights, name: {2: 0.3, 3: 0.1, 4: 0.2}}, made(offer).acts)
    Path("odd.json").write_text(odd.to_json())
    found = solve("--indicators", "odd.json", *ON, "--bops-g", repr(floor / 2), status=2)
    assert f"{name}: 3-bit weights are not offered: their indicator 0.1 is below 0.2, that of 4 bits." in found.stdout


def test_layers_can_be_pinned_and_then_need_no_indicators(solve: Callable[..., Result], offer: Offer) -> None:
    indicators = made(offer)
    name = "layer2.0.conv2"
    values = {layer: of for layer, of in indicators.weights.items() if layer != name}
    Path("less.json").write_text(Indicators(values, values).to_json())
    missing = solve("--indicators", "less.json", *ON, "--compression", "50", status=2).stderr
    assert "weight has no layer 'layer2.0.conv2'" in missing
    assert "pin it" in missing
    pinned = (*ON, "--pin", "layer2.*.conv2=6", "--pin", "layer1.0.conv2=5")
    solve("--indicators", "less.json", *pinned, "--compression", "50", "-o", "p.json")
    record = PolicyRecord.load(Path("p.json"))
    assert (record.policy.bits[name], record.policy.bits["layer1.0.conv2"]) == (_bits(6), _bits(5))
    assert record.settings["pinned"] == {"layer2.*.conv2": 6, "layer1.0.conv2": 5}


def test_the_count_that_limits_are_kept_in_is_told_to_all(solve: Callable[..., Result], offer: Offer) -> None:
    arguments = ("--indicators", "i.json", *ON, "--points", "3", "--macs", "limpq")
    found = json.loads(solve(*arguments, "--json").stdout)
    counted = [one["counted"]["bops_g"] for one in found]
    assert counted[0] == offer.limpq_work.bops_g(offer.choices.smallest)
    assert all(of >= one["costs"]["bops_g"] for of, one in zip(counted, found, strict=True))
    told = f"Counted as LIMPQ does, sizes not rounded down: {counted[0]:.4g} to {counted[-1]:.4g} G BOPs."
    assert told in solve(*arguments).output
    plain = json.loads(solve(*arguments[:-2], "--json").stdout)
    assert all("counted" not in one for one in plain)


def test_a_ratio_of_weights_has_stem_and_head_in_it(solve: Callable[..., Result], offer: Offer) -> None:
    options = (*ON, "--stem-bits", "8", "--head-bits", "8")
    found = json.loads(solve("--indicators", "i.json", *options, "--weight-compression", "10", "--json").stdout)[0]
    size = sum(offer.work.work[name].weights * bits["weight"] for name, bits in found["layers"].items())
    assert 10 <= 32 * offer.work.weights / size < 10.5
    tighter = solve("--indicators", "i.json", *ON, "--weight-compression", "10", "--mean-weight-bits", "3", "--json")
    assert json.loads(tighter.stdout)[0]["costs"]["mean_weight_bits"] <= 3


def test_the_whole_trade_off_is_shown_in_sums_of_indicators(solve: Callable[..., Result]) -> None:
    text = solve("--indicators", "i.json", *ON, "--points", "4").output
    assert "indicators added" in text.splitlines()[0] or "indicators added" in text
    found = json.loads(solve("--indicators", "i.json", *ON, "--points", "4", "--json").stdout)
    lost = [one["score_lost"] for one in found]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] == 0
    assert "nats_lost" not in found[0]


def test_what_is_given_up_is_told_in_nats_for_supernets_alone() -> None:
    supernets = {name for name, config in METHOD_CONFIGS.items() if issubclass(config, SupernetConfig)}
    assert {"gmpq", "rgmpq", "edmips", "bpnas"} <= supernets
    for name in (*METHOD_CONFIGS, "unknown"):
        told = [lost(name, 0.5), lost(name, 0.0), scale_of(name).head]
        assert ["nats" in told[0], "probable" in told[1], "nats" in told[2]] == [name in supernets] * 3, name
    assert lost("mpqco", 0.5) == "0.5 more estimated loss than the search's best bits"
    assert lost("limpq", 0.0) == "the bits of the least sum"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bops-g", "1"), "give SWEEP/TRIAL, such as quickstart/t0003, or --indicators"),
        (("s/1", "--indicators", "i.json", *ON, "--bops-g", "1"), "s/1 and --indicators: give one of them"),
        (("s/1", "--bits", "2,3", "--bops-g", "1"), "go with --indicators; a trial has its own"),
        (("s/1", "--macs", "exact", "--bops-g", "1"), "go with --indicators; a trial has its own"),
        (("--indicators", "i.json", "--bops-g", "1"), "--network resnet50 --bits 2,3,4,5,6"),
        (("--indicators", "i.json", *ON[:-1], "2;3", "--bops-g", "1"), "--bits is '2;3'; give whole numbers between"),
        (("--indicators", "i.json", *ON[:-1], "2,9", "--bops-g", "1"), "give different widths from 1 to 8 bits"),
        (("--indicators", "i.json", *ON[:-1], "2,3,5", "--bops-g", "1"), "i.json: indicators: weight."),
        (("s/1", "--pin", "fc=8", "--bops-g", "1"), "go with --indicators; a trial has its own"),
        (("--indicators", "i.json", *ON, "--pin", "fc", "--bops-g", "1"), "--pin 'fc' pins nothing; give PATTERN=BITS"),
        (("--indicators", "i.json", *ON, "--pin", "layer1*=1", "--bops-g", "1"), "'layer1*' is 1; give 2 to 16 bits"),
        (("--indicators", "i.json", *ON, "--alpha", "0", "--bops-g", "1"), "--alpha is 0; give a positive, finite"),
        (("--indicators", "i.json", *ON, "--stem-bits", "1", "--bops-g", "1"), "network.stem_bits is 1; give 2 to 16"),
        (("--indicators", "none.json", *ON, "--bops-g", "1"), "none.json: no such file"),
        (("--indicators", "i.pkl", *ON, "--bops-g", "1"), "i.pkl is a pickle"),
        (("--indicators", "i.json", *ON), "give a limit such as --bops-g 0.9"),
        (("--indicators", "i.json", *ON, "--bops-g", "1e-6"), "bops_g: the limit is 1e-06, but with the smallest"),
        (("--indicators", "i.json", *ON, "--weight-compression", "0"), "--weight-compression is 0; give a positive"),
        (("--indicators", "i.json", "--network", "resnet9", *ON[-2:], "--bops-g", "1"), "unknown network 'resnet9'"),
        (("--indicators", "i.json", "--network", "resnet18", *ON[-2:], "--bops-g", "9"), "weight has no layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_solved_is_one_message(
    solve: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    found = solve(*arguments, status=2)
    assert message in found.stderr
    assert "Traceback" not in found.stderr
