import json

import pytest

from trainables.errors import ConfigError
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

POLICY = BitPolicy(
    network="net",
    bits={"stem": LayerBits(8, 8), "a": LayerBits(2, 3), "b": LayerBits(4, 4)},
    pinned=frozenset({"stem"}),
)
RECORD = PolicyRecord(policy=POLICY, method="gmpq", settings={"zeta": 0.1, "act_bits": [2, 3]}, costs={"bops_g": 1.5})


def test_a_policy_file_reads_back_as_it_was_written() -> None:
    assert PolicyRecord.from_json(RECORD.to_json(), origin="p.json") == RECORD


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
        ({"bitfront_policy": 9}, r"p\.json: not a policy file: expected 'bitfront_policy': 1"),
        ({"layers": {"a": {"weight": 2}}}, r"p\.json: layer 'a': expected 'weight', 'act' and 'pinned'"),
        ({"layers": {"a": {"weight": 0, "act": 2, "pinned": False}}}, r"a: weight bits are 0; give a whole number"),
        ({"layers": {"a": {"weight": True, "act": 2, "pinned": False}}}, r"a: weight bits are True"),
        ({"layers": []}, r"p\.json: layers is '\[\]'; expected an object"),
    ],
)
def test_a_damaged_policy_file_says_what_is_wrong(change: dict[str, object], message: str) -> None:
    text = json.dumps({**json.loads(RECORD.to_json()), **change})
    with pytest.raises(ConfigError, match=message):
        PolicyRecord.from_json(text, origin="p.json")


def test_text_that_is_not_json_is_pointed_at() -> None:
    with pytest.raises(ConfigError, match=r"p\.json:2:3: not JSON"):
        PolicyRecord.from_json("{\n  oops\n}", origin="p.json")


def test_a_missing_key_is_named() -> None:
    content = json.loads(RECORD.to_json())
    del content["costs"]
    with pytest.raises(ConfigError, match="lacks 'costs'"):
        PolicyRecord.from_json(json.dumps(content), origin="p.json")
