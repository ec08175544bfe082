import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dashboards.front_picture import draw_front
from dashboards.note import LIMIT, MAX_ROWS, as_note, chosen
from service.front import find_front
from service.records import SweepRecord, TrialRecord
from service.view import SweepView

SWEEP = SweepRecord(
    name="s",
    spec_hash="h",
    facts={"network": "resnet8"},
    total_trials=500,
    created_ms=1,
    references={"a": {"top1": 99.0, "device_hours": 0.5}},
)


def trials(count: int, *, faded: int = 0) -> list[TrialRecord]:
    """`count` policies that are all on the front, the dearer the better, and `faded` below it."""
    return [
        TrialRecord(
            trial_id=f"t{i:04d}", number=i, state="done", settings={"method.zeta": 0.1}, started_ms=1, ended_ms=2,
            metrics={
                "top1": 50.0 + 0.05 * i - 60 * (i >= count), "bops_g": 0.02 * (i + 1), "ard": 2.0, "compression": 10.0,
            },
            policy_hash=f"{i:064d}",
        )
        for i in range(count + faded)
    ]  # fmt: skip


def note(sweep: SweepRecord, found_in: list[TrialRecord], **given: dict[str, str]) -> str:
    links = {trial.trial_id: f"#/experiments/1/runs/{trial.number:032d}" for trial in found_in}
    found = find_front(found_in, sweep)
    return as_note(sweep, found, device_hours=1.25, links=links, pictures=given.get("pictures", {}))


def test_the_note_tells_the_knee_first_and_links_each_member_to_its_run() -> None:
    text = note(SWEEP, trials(3, faded=1), pictures={"front": "get-artifact?path=front.png&run_uuid=1"})
    assert text.startswith("**4 of 500 trials done**, 3 policies on the front")
    assert re.search(
        r"\*\*knee\*\*: \[trial 1\]\(#/experiments/1/runs/0+1\), 50.05 %, 0.04 G BOPs", text.split("\n\n")[0]
    )
    assert re.findall(r"^\| \[(\d)\]\(#/experiments/1/runs/\d+\)", text, re.MULTILINE) == ["0", "1", "2"]
    assert "![front](get-artifact?path=front.png&run_uuid=1)" in text
    assert "device-hours: 1.25, and 0.5 for full precision" in text
    assert "tags.\"bitfront.front\" = 'true'" in text
    assert "more in the page" not in text


def test_a_long_front_is_the_knee_and_an_even_choice_with_whole_rows() -> None:
    text = note(SWEEP, trials(400))
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == MAX_ROWS
    assert {row.count("|") for row in rows} == {7}
    assert sum("◆" in row for row in rows) == 1
    assert f"… and {400 - MAX_ROWS} more in the page" in text


@pytest.mark.parametrize("letters", [10, 5_000, 100_000])
def test_the_note_keeps_its_limit_and_ends_with_where_the_rest_is(letters: int) -> None:
    wordy = replace(
        SWEEP, description="word " * letters, end="error: " + "x" * letters, facts={"network": "n" * letters}
    )
    text = note(wordy, trials(400))
    assert len(text) <= LIMIT
    assert text.endswith("open the + beside its name.\n")
    assert {line.count("|") for line in text.splitlines() if line.startswith("| [")} == {7}


def test_a_sweep_without_a_front_says_so() -> None:
    text = note(SWEEP, [])
    assert text.startswith("**0 of 500 trials done**; there is no front yet.")
    assert "|" not in text


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100])
def test_an_even_choice_has_the_ends_and_the_knee_and_as_many_as_asked_for(count: int) -> None:
    members = trials(40)
    for knee in (members[0], members[17], members[39]):
        found = chosen(members, knee, count)
        assert len(found) == min(count, 40)
        assert found == sorted(found, key=lambda trial: trial.number)
        assert count == 0 or knee in found
        assert count < 3 or {members[0].number, members[39].number} <= {trial.number for trial in found}


def test_the_picture_of_the_front_shows_members_knee_and_the_others(tmp_path: Path) -> None:
    def colours(found_in: list[TrialRecord]) -> int:
        view = SweepView(
            folder=tmp_path, sweep=SWEEP, trials=tuple(found_in), found=find_front(found_in, SWEEP), policies={},
            hours={}, space={},
        )  # fmt: skip
        draw_front(view, tmp_path / "front.png")
        with Image.open(tmp_path / "front.png") as image:
            assert image.size == (520, 350)
            return len(set(image.convert("RGB").get_flattened_data()))

    assert colours(trials(3, faded=2)) > colours([])
