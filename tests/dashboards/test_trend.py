"""The page of all nights: what its figures and tables say, and how it looks in a browser."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashboards.trend import Nights, read_nights, trend_page, write_trend
from dashboards.trend_figures import trend_figure
from service.nightly_report import (
    BaselineFacts,
    ClaimFinding,
    Commit,
    Finding,
    NightReport,
    Policies,
    SweepReport,
    Verdict,
    save_report,
    worst,
)

CHROMIUM = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), "")
START_MS = 1_763_776_800_000  # 2025-11-22 02:00 UTC
DAY_MS = 86_400_000


def sweep(
    verdict: Verdict = "reproduced",
    *,
    name: str = "digits",
    top1: float | None = 99.0,
    baseline: float | None = 99.0,
    allowed: float = 0.5,
    reason: str = "nothing has left the baseline",
) -> SweepReport:
    found = Finding(what="top1", baseline=baseline, now=top1, allowed=allowed, drifted=verdict == "drifted")
    group = Finding(what="top1", where={"method.name": "gmpq"}, baseline=10.0, now=20.0, allowed=5.0)
    return SweepReport(
        name=name,
        sweep=f"{name}-night",
        verdict=verdict,
        reason=reason,
        baseline=BaselineFacts(night="night0", revision="b" * 40, accepted_ms=START_MS) if baseline else None,
        findings=(group, found) if baseline else (),
        claims=(
            ClaimFinding(claim="GMPQ is better", source="Table 5", holds=verdict != "drifted", left=2.0, right=1.0),
        ),
        policies=Policies(same=4),
        metrics={} if top1 is None else {"top1": top1, "front_distance": 0.01},
        revisions=(Commit(commit="c" * 40, subject="quantizers: another rounding"),) if verdict == "drifted" else (),
        error="OutOfMemoryError: no memory" if verdict == "broken" else "",
    )


def night(number: int, *sweeps: SweepReport, started_ms: int = 0) -> NightReport:
    return NightReport(
        night=f"night{number}",
        folder=f"/s/nightly/night{number}",
        started_ms=started_ms or START_MS + number * DAY_MS,
        ended_ms=(started_ms or START_MS + number * DAY_MS) + 90_000,
        verdict=worst(one.verdict for one in sweeps),
        revision="a" * 40,
        version="1.2",
        sweeps=sweeps,
    )


def course(*sweeps: SweepReport) -> list[tuple[NightReport, SweepReport]]:
    return [(night(number, one), one) for number, one in enumerate(sweeps)]


def shapes(figure: dict[str, Any], kind: str) -> list[tuple[float, float, float, float]]:
    found = [shape for shape in figure["layout"]["shapes"] if shape["type"] == kind]
    return [(shape["x0"], shape["x1"], shape["y0"], shape["y1"]) for shape in found]


def test_a_figure_has_a_point_for_each_night_that_knows_the_number_marked_by_its_verdict() -> None:
    figure = trend_figure(
        course(sweep("new", baseline=None), sweep(top1=98.9), sweep("broken", top1=None), sweep("drifted", top1=96.0)),
        "top1",
    )
    (trace,) = figure["data"]
    assert (trace["x"], trace["y"]) == ([0, 1, 3], [99.0, 98.9, 96.0])
    assert trace["marker"]["symbol"] == ["circle-open", "circle", "diamond"]
    assert len(set(trace["marker"]["color"])) == 2
    assert "2025-11-23 02:00 UTC" in trace["text"][1]
    assert "revision aaaaaaaaaa" in trace["text"][1]
    assert "baseline 99 ± 0.5" in trace["text"][1]


def test_the_band_is_that_of_all_trials_and_moves_with_the_baseline() -> None:
    same = sweep(baseline=99.0, allowed=0.5)
    moved = sweep("drifted", top1=97.0, baseline=98.0, allowed=0.25)
    figure = trend_figure(course(sweep("new", baseline=None), same, same, moved), "top1")
    assert shapes(figure, "rect") == [(0.5, 2.5, 98.5, 99.5), (2.5, 3.5, 97.75, 98.25)]
    assert shapes(figure, "line") == [(0.5, 2.5, 99.0, 99.0), (2.5, 3.5, 98.0, 98.0)]
    low, high = figure["layout"]["yaxis"]["range"]
    # Shapes do not widen an axis by themselves: values and bands are within it.
    assert low < 97.0
    assert high > 99.5


def test_a_band_of_a_number_that_is_never_negative_ends_at_nothing() -> None:
    small = SweepReport(
        name="s",
        sweep="s-1",
        verdict="reproduced",
        reason="",
        findings=(Finding(what="front_distance", baseline=0.01, allowed=0.05),),
        metrics={"front_distance": 0.02},
    )
    assert shapes(trend_figure(course(small), "front_distance"), "rect") == [(-0.5, 0.5, 0.0, pytest.approx(0.06))]


@pytest.mark.parametrize("count", [1, 2, 5, 400])
def test_a_few_nights_are_named_below_a_figure_the_first_and_the_last_among_them(count: int) -> None:
    axis = trend_figure(course(*[sweep()] * count), "top1")["layout"]["xaxis"]
    assert axis["tickvals"][0] == 0
    assert axis["tickvals"][-1] == count - 1
    assert len(axis["tickvals"]) == len(axis["ticktext"]) == min(count, 4)
    assert axis["ticktext"][0] == "Nov 22"


def test_nights_of_one_date_are_told_apart_by_their_time() -> None:
    one = sweep()
    found = [(night(0, one, started_ms=START_MS + minutes * 60_000), one) for minutes in (0, 30)]
    assert trend_figure(found, "top1")["layout"]["xaxis"]["ticktext"] == ["Nov 22<br>02:00", "Nov 22<br>02:30"]


def test_equal_values_have_an_axis_with_room() -> None:
    for value in (99.0, 0.0):
        figure = trend_figure(course(sweep(top1=value, baseline=None)), "top1")
        low, high = figure["layout"]["yaxis"]["range"]
        assert low < value < high


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style).*?</\1>", "", page)))


def test_the_page_tells_verdicts_claims_and_what_lies_between_the_baseline_and_a_drift() -> None:
    nights = (
        night(0, sweep("new", baseline=None), sweep(name="fashion")),
        night(1, sweep(), sweep("broken", name="fashion", top1=None)),
        night(2, sweep("drifted", top1=96.0, reason="top1 has left the baseline")),
    )
    page = trend_page(Nights(reports=nights))
    text = text_of(page)
    assert "Drifted: top1 has left the baseline. Baseline: night0, revision bbbbbbbbbb." in text
    assert "GMPQ is better Table 5 does not hold 2 1 – – 2 of 3 nights" in text
    assert "2025-11-24 02:00 UTC drifted top1 has left the baseline 0 cccccccccc quantizers: another rounding" in text
    assert "OutOfMemoryError: no memory" in text
    # Sweeps of the last night first, one that was left out of it after them; nights the last first.
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Overview", "digits", "fashion", "Nights"]
    last = text.rindex("Each with its verdict and its code")
    assert [*re.findall(r"2025-11-\d\d", text[last:])] == ["2025-11-24", "2025-11-23", "2025-11-22"]
    assert re.findall(r'<li class="(\w+)"', page) == ["new", "reproduced", "drifted", "reproduced", "broken"]


def test_a_night_without_a_verdict_yet_has_none() -> None:
    begun = replace(night(1), left=("digits",), ended_ms=0)
    cut_off = replace(night(2, sweep()), left=("fashion",), ended_ms=0)
    text = text_of(trend_page(Nights(reports=(night(0, sweep()), begun, cut_off))))
    assert "2025-11-23 02:00 UTC nothing judged yet 1 not reached –" in text
    assert "2025-11-24 02:00 UTC reproduced so far 1 reproduced, 1 not reached –" in text
    assert "2025-11-22 02:00 UTC reproduced 1 reproduced 1.5" in text


def test_what_a_report_says_cannot_become_part_of_the_page() -> None:
    bad = "</script><script>alert(1)</script>"
    page = trend_page(Nights(reports=(night(0, sweep("drifted", name=bad, reason=bad)),), unreadable=(bad,)))
    assert "alert(1)</script>" not in page
    assert page.count("<script") == trend_page(Nights(reports=(night(0, sweep()),))).count("<script")


def test_every_night_of_a_storage_is_on_the_page_in_the_order_of_time_and_a_damaged_report_is_told(
    tmp_path: Path,
) -> None:
    for number in (10, 9, 2):
        (tmp_path / f"night{number}").mkdir()
        save_report(tmp_path / f"night{number}" / "report.json", night(number, sweep()))
    (tmp_path / "night3").mkdir()
    (tmp_path / "night3" / "report.json").write_text("{")
    found = read_nights(tmp_path)
    assert [report.night for report in found.reports] == ["night2", "night9", "night10"]
    path = write_trend(tmp_path)
    assert path == tmp_path / "trend.html"
    assert "night3/report.json cannot be read" in text_of(path.read_text())
    before = path.read_bytes()
    assert write_trend(tmp_path).read_bytes() == before


def test_before_the_first_night_there_is_a_page_too(tmp_path: Path) -> None:
    assert "No night has been run yet." in text_of(write_trend(tmp_path).read_text())


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")
@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed")
def test_in_a_browser_every_figure_is_drawn_and_nothing_lies_beside_a_narrow_screen(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    reports = [night(number, sweep("new" if number == 0 else "reproduced")) for number in range(30)]
    page_file = tmp_path / "trend.html"
    page_file.write_text(trend_page(Nights(reports=(*reports, night(30, sweep("drifted", top1=90.0))))))
    troubles: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 3000})
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
        page.on("request", lambda asked: troubles.append(asked.url) if asked.url.startswith("http") else None)
        page.goto(page_file.as_uri())
        for metric in ("top1", "front_distance"):
            page.wait_for_selector(f'[data-figure="sweep-0-{metric}"][data-drawn]')
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        drawn = page.locator('[data-figure="sweep-0-top1"] .scatterlayer .points path').count()
        named = page.locator('[data-figure="sweep-0-top1"] .xtick text').all_text_contents()
        browser.close()
    assert troubles == []
    assert drawn == 31
    assert (named[0], named[-1]) == ("Nov 22", "Dec 22")


def test_the_numbers_of_the_figures_stand_in_the_page_as_json() -> None:
    page = trend_page(Nights(reports=(night(0, sweep(top1=98.75)),)))
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page)
    assert found
    assert json.loads(found[1])["figures"]["sweep-0-top1"]["data"][0]["y"] == [98.75]
