import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from dashboards.bits import draw_bits
from dashboards.front import as_json, as_markdown, as_table
from service.front import find_front
from service.records import SweepRecord, TrialRecord
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

SWEEP = SweepRecord(
    name="<s>",
    spec_hash="h",
    facts={"network": "resnet8"},
    total_trials=5,
    created_ms=1,
    references={"a": {"top1": 99.0}},
)
NAMES = ("compression", "storage_mb", "ard_normalised", "device_hours")


def trial(number: int, top1: float, bops_g: float, ard: float, state: str = "done") -> TrialRecord:
    metrics = {"top1": top1, "bops_g": bops_g, "ard": ard, **dict.fromkeys(NAMES, 1.0)} if state == "done" else {}
    return TrialRecord(
        trial_id=f"t{number}",
        number=number,
        state=state,
        settings={"method.zeta": 0.1 + number},
        started_ms=1,
        ended_ms=2,
        metrics=metrics,
        policy_hash=f"{number:064d}",
    )


TRIALS = [
    trial(0, 90.0, 2.0, 3.0),
    trial(1, 95.0, 4.0, 2.0),
    trial(2, 89.0, 3.0, 3.5),
    trial(3, 80.0, 1.0, 9.0),
    trial(4, 0.0, 0.0, 0.0, state="diverged"),
]


def test_the_front_is_sorted_by_cost_and_leaves_dominated_and_unfinished_trials_out() -> None:
    found = find_front(TRIALS, SWEEP)
    assert [member.number for member in found.members] == [3, 0, 1]
    assert found.knee is TRIALS[0]
    assert found.unfinished == {"diverged": 1}


def test_a_policy_beyond_a_constraint_is_never_on_the_front_whatever_the_objectives() -> None:
    bounded = replace(SWEEP, constraints=("bops_g <= 3.5", "top1 >= 85"))
    found = find_front(TRIALS, bounded)
    assert [member.number for member in found.members] == [0]
    assert [trial.number for trial in found.infeasible] == [1, 3]
    assert "4 done of 5, 2 of them beyond a constraint" in as_markdown(bounded, found)
    assert "Only policies with bops_g <= 3.5 and top1 >= 85." in as_markdown(bounded, found)
    assert as_json(bounded, found)["infeasible"] == ["t1", "t3"]
    alone = find_front(TRIALS, replace(SWEEP, objectives=("top1",)))
    assert [member.number for member in alone.members] == [1]
    assert [o["name"] for o in as_json(SWEEP, alone)["objectives"]] == ["top1"]


def test_the_json_says_everything_about_the_members() -> None:
    content = as_json(SWEEP, find_front(TRIALS, SWEEP))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert [point["trial"] for point in content["front"]] == ["t3", "t0", "t1"]
    assert content["knee"] == "t0"
    assert content["front"][0]["settings"] == {"method.zeta": 3.1}


def test_the_table_fits_a_terminal_of_80_characters_and_marks_the_knee() -> None:
    console = Console(width=80, record=True)
    console.print(as_table(find_front(TRIALS, SWEEP), "front"))
    text = console.export_text()
    assert "0 ◆" in text
    assert "…" not in text
    assert text.index("80.00") < text.index("90.00") < text.index("95.00")


def test_the_summary_is_markdown_with_the_front() -> None:
    text = as_markdown(SWEEP, find_front(TRIALS, SWEEP))
    assert "**trials**: 4 done of 5, 1 diverged" in text
    assert "| 0 ◆ | 90.00 | 2 |" in text
    assert "99.00 % top-1" in text
    assert "there is no front" in as_markdown(SWEEP, find_front([], SWEEP))


def test_settings_of_one_name_keep_their_section_and_a_metric_that_is_missing_a_dash() -> None:
    one = replace(trial(0, 90.0, 2.0, 3.0), settings={"network.name": "a", "data.name": "b", "method.zeta": 0.5})
    del one.metrics["device_hours"]  # type: ignore[attr-defined]
    text = as_markdown(SWEEP, find_front([one, trial(1, 95.0, 3.0, 3.0)], SWEEP))
    heads, _, row, _ = (line.split(" | ") for line in text.splitlines() if line.startswith("|"))
    assert heads[-4:] == ["data.name", "zeta", "network.name", "policy |"]
    assert row[heads.index("device-h")] == "–"


@pytest.mark.parametrize("layers", [3, 54])
def test_the_picture_of_a_policy_has_all_its_layers(tmp_path: Path, layers: int) -> None:
    bits = {f"layer{i}.conv": LayerBits(2 + i % 3, 4) for i in range(layers)}
    policy = BitPolicy(network="net", bits=bits, pinned=frozenset({"layer0.conv"}))
    costs = {"bops_g": 1.0, "compression": 100.0, "storage_mb": 1.0}
    draw_bits(PolicyRecord(policy=policy, method="gmpq", settings={}, costs=costs), tmp_path / "bits.png")
    with Image.open(tmp_path / "bits.png") as picture:
        width, height = picture.size
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert width > max(600, 30 * layers)
    assert height > 400
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= colours
