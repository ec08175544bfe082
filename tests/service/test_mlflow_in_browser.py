"""A real sweep in a real MLflow server, as people see it in Chromium: list, search, parent, page, from point to run."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]
SPEC = """\
name: seen
description: What people see of a sweep.
network: {name: resnet8}
data: {name: digits, image_size: 8, fraction: 0.3}
reference: {epochs: 2, batch_size: 64}
method: {name: gmpq, epochs: 1, batch_size: 64, eta: 0.0}
finetune: {epochs: 1, batch_size: 64}
space: {method.zeta: {choice: [0.1, 2.0]}, method.weight_lr: {choice: [0.01, 1.0e+30]}}   # the second one diverges
sampler: {name: grid}
trials: 4
resources: {concurrency: 2}
storage: {path: sweeps}
tracking: {uri: "URI"}
"""
DRAWN = '[data-figure="front"][data-drawn]'
KNEE = """(place) => {
  const { xaxis, yaxis } = place._fullLayout;
  const trace = place._fullData.find((one) => one.meta === "knee");
  return [xaxis._offset + xaxis.d2p(trace.x[0]), yaxis._offset + yaxis.d2p(trace.y[0])];
}"""


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def run_sweep(folder: Path, uri: str) -> Mapping[str, Any]:
    """The sweep's front, as its storage has it."""
    (folder / "seen.yaml").write_text(SPEC.replace("URI", uri))
    command = [sys.executable, "-m", "service.cli", "run", "seen.yaml"]
    told = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400
    )
    assert told.returncode == 0, told.stdout + told.stderr
    found: dict[str, Any] = json.loads((folder / "sweeps" / "seen" / "front.json").read_text())
    return found


def click_knee(page: Any, drawn: Any) -> None:
    """Points at the knee in the drawn front, as a hand does, and clicks it. What is around it may still be moving."""
    told = drawn.locator(".hoverlayer .hovertext")
    for _ in range(20):
        left, top = drawn.evaluate(KNEE)
        page.mouse.move(1, 1)
        drawn.hover(position={"x": left, "y": top})
        page.wait_for_timeout(500)
        if told.count():
            break
    drawn.click(position={"x": left, "y": top})


def test_a_team_finds_its_front_and_goes_from_a_point_to_the_run(
    tmp_path: Path, empty_database: Path, serve: Callable[[Path], str], browser: Any
) -> None:
    (tmp_path / "server").mkdir()
    shutil.copy(empty_database, tmp_path / "server" / "mlflow.db")
    uri = serve(tmp_path / "server")
    front = run_sweep(tmp_path, uri)
    members = {f"seen-{one['number']}" for one in front["front"]}
    others = {f"seen-{number}" for number in range(4)} - members
    assert members
    assert len(others) >= 2
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    found = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    knee = f"seen-{next(one['number'] for one in front['front'] if one['trial'] == front['knee'])}"
    page = browser.new_page(viewport={"width": 1600, "height": 1000})

    page.goto(f"{uri}/#/experiments")
    page.get_by_role("link", name="bitfront").first.wait_for()

    # The search in the list of runs: the front, below its sweep.
    page.goto(f"{uri}/#/experiments/{experiment}/runs")
    page.get_by_role("link", name="seen", exact=True).wait_for()
    search = page.get_by_placeholder("metrics.rmse < 1", exact=False)
    search.fill("tags.\"bitfront.front\" = 'true'")
    search.press("Enter")
    page.wait_for_url("**searchFilter=**")
    page.locator("[role=row]", has=page.get_by_role("link", name="seen", exact=True)).locator("button").first.click()
    for name in members:
        page.get_by_role("link", name=name, exact=True).wait_for()
    for name in others:
        assert page.get_by_role("link", name=name, exact=True).count() == 0

    # The sweep's own page: the note has the front, its pictures are loaded, and a link leads to a member's run.
    page.goto(f"{uri}/#/experiments/{experiment}/runs/{found['seen']}")
    page.get_by_text("What people see of a sweep.").wait_for()
    pictures = page.locator("img[src*='get-artifact']")
    assert pictures.count() == 2
    for place in range(2):
        pictures.nth(place).scroll_into_view_if_needed()
        page.wait_for_function(f"document.querySelectorAll('img[src*=get-artifact]')[{place}].naturalWidth > 100")
    address = f"{uri}/#/experiments/{experiment}/runs/{found[knee]}"
    with page.expect_popup() as opened:
        page.locator(f"td a[href$='{found[knee]}']").click()
    assert opened.value.url == address
    opened.value.get_by_role("heading", name=knee).wait_for()

    # The page in MLflow's viewer of artifacts, which lets nothing be opened: the address of the run is shown.
    page.goto(f"{uri}/#/experiments/{experiment}/runs/{found['seen']}/artifacts/front.html")
    page.wait_for_selector("iframe.mlflow-html-iframe")
    frame = page.frame_locator("iframe.mlflow-html-iframe")
    frame.locator(DRAWN).wait_for()
    click_knee(page, frame.locator('[data-figure="front"]'))
    assert frame.locator("#details .address").inner_text() == address

    # The same page from the sweep's storage: a click on the point opens the run.
    page.goto((tmp_path / "sweeps" / "seen" / "front.html").as_uri())
    page.wait_for_selector(DRAWN)
    with page.expect_popup() as opened:
        click_knee(page, page.locator('[data-figure="front"]'))
    assert opened.value.url == address
    opened.value.get_by_role("heading", name=knee).wait_for()
