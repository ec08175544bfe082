import json

import pytest

from trainables.bops import CostModel, LayerWork
from trainables.errors import ConfigError
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

POLICY = BitPolicy(
    network="net",
    bits={"stem": LayerBits(8, 8), "a": LayerBits(2, 3), "b": LayerBits(4, 4)},
    pinned=frozenset({"stem"}),
)


def layer(kind: str, macs: int, weights: int, inputs: int, reads: str) -> LayerWork:
    return LayerWork(
        kind=kind, macs=macs, weights=weights, inputs=inputs, reads_negative=False, reads=reads, stream=reads
    )


WORK = CostModel(
    {
        "stem": layer("conv", 700, 70, 30, "stem"),
        "a": layer("conv", 500, 50, 20, "a"),
        "a.product": layer("product", 90, 0, 0, "a.product"),
        "b": layer("linear", 300, 30, 20, "a"),
    },
    11,
)
RECORD = PolicyRecord.measured(
    POLICY,
    WORK,
    method="gmpq",
    settings={"zeta": 0.1, "act_bits": [2, 3]},
    image_size=16,
    num_classes=10,
    parent="0" * 64,
    changes=("a=2/3",),
)
OLD = PolicyRecord(policy=POLICY, method="gmpq", settings={"zeta": 0.1, "act_bits": [2, 3]}, costs={"bops_g": 1.5})


def test_a_policy_file_reads_back_as_it_was_written() -> None:
    assert PolicyRecord.from_json(RECORD.to_json(), origin="p.json") == RECORD


def test_a_file_of_version_1_reads_back_without_the_work() -> None:
    assert json.loads(OLD.to_json())["bitfront_policy"] == 1
    assert PolicyRecord.from_json(OLD.to_json(), origin="p.json") == OLD


def test_costs_are_those_of_the_bits_by_hand() -> None:
    bops = 700 * 64 + 500 * 6 + 90 * 1024 + 300 * 16
    storage = (70 * 8 + 50 * 2 + 30 * 4) / 8
    assert RECORD.costs == pytest.approx(
        {
            "bops_g": bops / 1e9,
            "bops_paper_g": 1590 * (500 * 6 + 300 * 16) / 800 / 1e9,
            "compression": 1590 * 1024 / bops,
            "storage_mb": storage / 1e6,
            "storage_mib": storage / 2**20,
            "mean_weight_bits": (70 * 8 + 50 * 2 + 30 * 4) / 150,
            "mean_act_bits": (30 * 8 + 20 * 3 + 20 * 4) / 70,
            "full_bops_g": 1590 * 1024 / 1e9,
            "float_mb": 44 / 1e6,
        },
        rel=1e-12,
    )


def test_the_hash_is_of_the_bits_alone() -> None:
    reordered = BitPolicy(network="net", bits=dict(reversed(POLICY.bits.items())))
    assert reordered.hash == POLICY.hash
    assert BitPolicy(network="net", bits={**POLICY.bits, "b": LayerBits(4, 3)}).hash != POLICY.hash
    assert BitPolicy(network="other", bits=POLICY.bits).hash != POLICY.hash


def test_the_difference_lists_layers_with_other_bits_and_layers_of_one_side() -> None:
    other = BitPolicy(network="net", bits={"a": LayerBits(2, 3), "b": LayerBits(2, 4), "c": LayerBits(2, 2)})
    assert POLICY.diff(other) == {
        "stem": (LayerBits(8, 8), None),
        "b": (LayerBits(4, 4), LayerBits(2, 4)),
        "c": (None, LayerBits(2, 2)),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hash": "0" * 64}, r"p\.json: the hash in the file \(000000000000…\) is not that of its bits"),
        ({"hash": 5}, r"p\.json: hash is '5'; expected text"),
        ({"bitfront_policy": 9}, r"p\.json: not a policy file: expected 'bitfront_policy': 1 or 2, found 9"),
        ({"bitfront_policy": True}, r"p\.json: not a policy file: .* found True"),
        ({"bitfront_policy": 1}, r"p\.json: unknown key 'image_size'"),
        ({"layers": {"a": {"weight": 2}}}, r"p\.json: layer 'a': expected 'weight', 'act' and 'pinned'"),
        ({"layers": {"a": {"weight": 0, "act": 2, "pinned": False}}}, r"p\.json: .*a: weight bits are 0; give a whole"),
        ({"layers": {"a": {"weight": True, "act": 2, "pinned": False}}}, r"p\.json: .*a: weight bits are True"),
        ({"layers": {"a": {"weight": 2, "act": 2, "pinned": 1}}}, r"layer 'a': 'pinned' is 1; expected true or false"),
        ({"layers": []}, r"p\.json: layers is '\[\]'; expected an object"),
        ({"costs": {"bops_g": "1"}}, r"p\.json: costs\.bops_g is '1'; expected a number"),
        ({"method": None}, r"p\.json: method is 'None'; expected text"),
        ({"image_size": 1.5}, r"p\.json: image_size is '1.5'; expected a whole number"),
        ({"changes": [1]}, r"p\.json: changes is \[1\]; expected a list of texts"),
        ({"chages": []}, r"p\.json: unknown key 'chages'; did you mean 'changes'"),
        ({"work": {}}, r"p\.json: work: expected an object of 'layers' and 'float_entries'"),
        ({"work": {**WORK.to_content(), "float_entries": -1}}, r"p\.json: work: float_entries is -1"),
        ({"work": {"layers": {}, "float_entries": 1}}, r"p\.json: work: .*does not have: a, b, stem"),
    ],
)
def test_a_damaged_policy_file_says_what_is_wrong(change: dict[str, object], message: str) -> None:
    text = json.dumps({**json.loads(RECORD.to_json()), **change})
    with pytest.raises(ConfigError, match=message):
        PolicyRecord.from_json(text, origin="p.json")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"zeta": 0.1', '"zeta": NaN', r"p\.json: settings\.zeta is nan; expected a finite number"),
        ('"zeta": 0.1', '"zeta": 1e999', r"p\.json: settings\.zeta is inf; expected a finite number"),
        ('"zeta": 0.1', '"zeta": 0.1, "zeta": 0.1', r"p\.json: settings\.zeta stands twice; keep one"),
        ('"method"', '"hash": "", "method"', r"p\.json: hash stands twice; keep one"),
    ],
)
def test_numbers_that_are_none_and_keys_that_stand_twice_are_named(old: str, new: str, message: str) -> None:
    text = RECORD.to_json()
    assert old in text
    with pytest.raises(ConfigError, match=message):
        PolicyRecord.from_json(text.replace(old, new, 1), origin="p.json")


def test_a_network_that_does_nothing_is_an_error_and_no_division_by_zero() -> None:
    content = json.loads(RECORD.to_json())
    for layer in content["work"]["layers"].values():
        layer["macs"] = 0
    with pytest.raises(ConfigError, match=r"p\.json: work: no layer multiplies anything"):
        PolicyRecord.from_json(json.dumps(content), origin="p.json")


def test_text_that_is_not_json_is_pointed_at() -> None:
    with pytest.raises(ConfigError, match=r"p\.json:2:3: not JSON"):
        PolicyRecord.from_json("{\n  oops\n}", origin="p.json")


def test_a_missing_key_is_named() -> None:
    content = json.loads(RECORD.to_json())
    del content["costs"]
    with pytest.raises(ConfigError, match="lacks 'costs'"):
        PolicyRecord.from_json(json.dumps(content), origin="p.json")


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5_000])
def test_what_python_cannot_hold_is_one_message(value: str) -> None:
    with pytest.raises(ConfigError, match=r"p\.json: not JSON that can be read"):
        PolicyRecord.from_json(f'{{"bitfront_policy": {value}', origin="p.json")
