"""How a page behaves in Chromium, driven by Playwright: what a reader sees, clicks and prints."""

import functools
import http.server
import importlib.util
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.page import compare_page, sweep_page, with_links
from dashboards.page_colours import RAMPS
from dashboards.plots_space import short_texts
from service.view import SweepView

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]
MakeView = Callable[..., SweepView]
Open = Callable[..., Any]
BASE = "http://127.0.0.1:5000"
FRONT = "document.querySelector('[data-figure=front]')"
DRAWN = '[data-figure="front"][data-drawn]'
HOST = """<!doctype html><p>viewer</p><script>
fetch("page.html").then((answer) => answer.text()).then((text) => {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts";
  frame.style = "width: 900px; height: 700px";
  frame.src = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  document.body.append(frame);
});
</script>"""
"""As MLflow shows an artifact: a frame that may run scripts and nothing else."""


def run_of(trial_id: str) -> str:
    return f"#/experiments/1/runs/{trial_id}abc"


def linked(view: SweepView) -> str:
    return with_links(sweep_page(view), base=BASE, runs={t.trial_id: run_of(t.trial_id) for t in view.found.done})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page from a file; at the end, no script may have failed and nothing have been asked for elsewhere."""
    troubles: list[str] = []
    contexts = []

    def show(text: str, **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda asked: troubles.append(asked.url) if asked.url.startswith("http") else None)
        (tmp_path / "page.html").write_text(text)
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def small(view_of: MakeView) -> SweepView:
    return view_of(num_trials=25, total_trials=26, last=["failed"], constraints=("bops_g <= 0.06",))


def points(page: Any) -> list[dict[str, Any]]:
    """What Plotly has drawn of the front: kind, place on the page and hover text of each trial."""
    return page.evaluate(
        """() => {
          const place = document.querySelector('[data-figure="front"]');
          const box = place.getBoundingClientRect(), { xaxis, yaxis } = place._fullLayout;
          return place._fullData.filter((trace) => trace.customdata).flatMap((trace) => trace.x.map((x, k) => ({
            kind: trace.meta, trial: trace.customdata[k], text: trace.text[k],
            left: box.left + xaxis._offset + xaxis.d2p(x), top: box.top + yaxis._offset + yaxis.d2p(trace.y[k]),
          })));
        }"""
    )


def test_a_point_is_drawn_for_each_trial_that_is_done(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small))
    page.wait_for_selector(DRAWN)
    drawn = page.locator('[data-figure="front"] .scatterlayer .points path')
    assert drawn.count() == len(points(page)) == 25
    kinds = [point["kind"] for point in points(page)]
    assert kinds.count("front") + kinds.count("knee") == len(small.found.members)
    assert kinds.count("beyond") == len(small.found.infeasible) > 0
    shapes = page.evaluate("document.querySelector('[data-figure=front]')._fullLayout.shapes.map((one) => one.type)")
    assert shapes == ["rect", "line", "line"]
    assert "full precision 97.50 %" in page.inner_text('[data-figure="front"]')


def test_pointing_at_a_policy_tells_its_settings_and_bits(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small))
    page.wait_for_selector(DRAWN)
    (knee,) = (point for point in points(page) if point["kind"] == "knee")
    page.mouse.move(knee["left"], knee["top"])
    page.wait_for_selector(".hoverlayer .hovertext")
    text = page.text_content(".hoverlayer .hovertext")
    trial = small.found.knee
    bits = small.policies[trial.trial_id].policy.bits
    assert f"trial {trial.number} ◆ knee" in text
    assert f"method.top_k = {trial.settings['method.top_k']}" in text
    assert f"policy {trial.policy_hash[:10]}" in text
    assert f"weights {bits['stem'].weight}" in text
    assert "method.start = reference" in text or "method.weight_lr = " in text


def test_a_click_selects_the_trial_and_opens_its_run(show: Open, small: SweepView) -> None:
    page = show(linked(small))
    page.context.route(f"{BASE}/**", lambda route: route.fulfill(body="the run", content_type="text/html"))
    page.wait_for_selector(DRAWN)
    (knee,) = (point for point in points(page) if point["kind"] == "knee")
    with page.expect_popup() as opened:
        page.mouse.click(knee["left"], knee["top"])
    trial = small.found.knee
    assert opened.value.url == f"{BASE}/{run_of(trial.trial_id)}"
    details = page.locator("#details")
    assert details.locator("a").get_attribute("href") == f"{BASE}/{run_of(trial.trial_id)}"
    text = details.inner_text()
    assert f"trial {trial.number}" in text
    assert trial.policy_hash in text
    assert details.locator(".bits tbody tr, .bits tr").count() == 1 + len(small.policies[trial.trial_id].policy.bits)
    page.uncheck("#opens")
    other = next(point for point in points(page) if point["kind"] == "dominated")
    page.mouse.click(other["left"], other["top"])
    dominated = small.found.done[other["trial"]]
    page.wait_for_function(f"document.querySelector('#details h3').textContent === 'trial {dominated.number}'")
    assert f"trials/{dominated.trial_id}/policy.json" in details.inner_text()
    assert len(page.context.pages) == 2


def test_other_metrics_can_be_chosen_for_the_axes(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small))
    page.wait_for_selector(DRAWN)
    page.select_option("#axis-y", "ard")
    page.select_option("#axis-x", "storage_mb")
    layout = "document.querySelector('[data-figure=front]')._fullLayout"
    page.wait_for_function(f"{layout}.xaxis.title.text.startsWith('weights')")
    found = page.evaluate(
        "document.querySelector('[data-figure=front]')._fullData.flatMap((t) => t.customdata ? t.y : [])"
    )
    assert sorted(found) == pytest.approx(sorted(t.metrics["ard"] for t in small.found.done), rel=1e-5)


def test_heads_sort_the_table_and_members_are_linked(show: Open, small: SweepView) -> None:
    page = show(linked(small))
    column = "[...document.querySelectorAll('#front tbody tr')].map((row) => row.cells[{}].textContent)"
    top1 = [f"{trial.metrics['top1']:.2f}" for trial in small.found.members]
    assert page.evaluate(column.format(1)) == top1
    head = page.get_by_role("button", name="top-1 %")
    head.click()
    assert page.evaluate(column.format(1)) == sorted(top1, key=float)
    assert head.locator("..").get_attribute("aria-sort") == "ascending"
    head.press("Enter")
    assert page.evaluate(column.format(1)) == sorted(top1, key=float, reverse=True)
    links = page.evaluate("[...document.querySelectorAll('#front tbody a')].map((link) => link.href)")
    assert sorted(links) == sorted(f"{BASE}/{run_of(t.trial_id)}" for t in small.found.members)


def test_a_number_in_the_table_selects_its_trial(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small))
    trial = small.found.members[0]
    page.locator(f'button[data-trial="{trial.trial_id}"]').press("Enter")
    assert trial.policy_hash in page.inner_text("#details")
    assert "This page has no link to its run" in page.inner_text("#details")


def test_all_sections_are_drawn_as_they_come_near(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small))
    page.wait_for_selector(DRAWN)
    names = page.evaluate("[...document.querySelectorAll('[data-figure]')].map((place) => place.dataset.figure)")
    assert page.locator("[data-drawn]").count() < len(names)
    for name in names:
        page.locator(f'[data-figure="{name}"]').scroll_into_view_if_needed()
        page.wait_for_selector(f'[data-figure="{name}"][data-drawn] svg')
    labels = page.evaluate("[...document.querySelectorAll('.parcoords .axis-title')].map((one) => one.textContent)")
    assert labels[:2] == ["zeta (log)", "eta"]
    assert page.locator('[data-figure="bits-0-weights"] .scatterlayer .points path').count() == 2, (
        "marks of pinned layers"
    )
    overlaps = page.evaluate(
        """() => [...document.querySelectorAll('.parcoords .axis')].map((axis) => {
          const seen = (one) => /[^\\u200b\\u200c]/.test(one.textContent);
          const texts = [...axis.querySelectorAll('.tick text')].filter(seen);
          const boxes = texts.map((one) => one.getBoundingClientRect()).sort((a, b) => a.top - b.top);
          return boxes.filter((box, k) => k && box.top < boxes[k - 1].bottom - 2).length;
        })"""
    )
    assert overlaps == [0] * 9


def test_a_brush_keeps_the_lines_that_pass_there(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small))
    page.locator('[data-figure="space"]').scroll_into_view_if_needed()
    page.wait_for_selector('[data-figure="space"][data-drawn] .axis-brush')
    box = page.locator(".axis-brush").first.bounding_box()
    middle = box["x"] + box["width"] / 2
    page.mouse.move(middle, box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(middle, box["y"] + 0.5 * box["height"], steps=8)
    page.mouse.up()
    page.wait_for_function("document.querySelector('[data-figure=space]').data[0].dimensions[0].constraintrange")
    low, high = page.evaluate("document.querySelector('[data-figure=space]').data[0].dimensions[0].constraintrange")
    assert -1.6 < low < high < 0.2
    assert 0.2 < (high - low) / 1.7 < 0.45


def drag(page: Any, figure: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
    """Over the figure's plot, in shares of it."""
    box = page.locator(f'[data-figure="{figure}"] .nsewdrag').bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (begin, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=8)
    page.mouse.up()


def ranges(page: Any) -> list[list[float]]:
    return page.evaluate(f"(({{ xaxis, yaxis }}) => [xaxis.range, yaxis.range])({FRONT}._fullLayout)")


def visible(page: Any) -> dict[str, bool]:
    """Whether the traces with points are shown, by name."""
    return page.evaluate(
        """Object.fromEntries(document.querySelector('[data-figure=front]')._fullData.filter((t) => t.customdata)
          .map((t) => [t.name, t.visible === true]))"""
    )


def hide(page: Any, name: str) -> None:
    """By a click on the name in the key."""
    entry = page.locator('[data-figure="front"] .legend .traces').filter(has=page.get_by_text(name, exact=True))
    entry.locator(".legendtoggle").click()
    page.wait_for_function(
        f"(name) => {FRONT}._fullData.find((trace) => trace.name === name).visible !== true", arg=name
    )


def test_zoom_and_what_is_hidden_outlive_a_click_and_the_theme(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small))
    page.wait_for_selector(DRAWN)
    first = ranges(page)
    drag(page, "front", (0.05, 0.02), (0.7, 0.8))
    page.wait_for_function(
        f"document.querySelector('[data-figure=front]')._fullLayout.xaxis.range[0] > {first[0][0]} + 0.001"
    )
    zoomed = ranges(page)
    hide(page, "dominated")
    trial = small.found.members[0]
    page.locator(f'button[data-trial="{trial.trial_id}"]').click()
    ring = "document.querySelector('[data-figure=front]').data.at(-1).x[0]"
    page.wait_for_function(f"Math.abs({ring} - {trial.metrics['bops_g']}) < 1e-6")
    assert ranges(page) == zoomed != first
    assert not visible(page)["dominated"]
    page.click("#theme")
    page.wait_for_function("document.querySelector('[data-figure=front]')._fullLayout.font.color === '#e6ebf1'")
    assert ranges(page) == zoomed
    assert not visible(page)["dominated"]
    page.select_option("#axis-x", "storage_mib")
    page.wait_for_function(
        "document.querySelector('[data-figure=front]')._fullLayout.xaxis.title.text.startsWith('weights')"
    )
    assert ranges(page)[1] == zoomed[1]
    values = [trial.metrics["storage_mib"] for trial in small.found.done]
    low, high = ranges(page)[0]
    assert 10**low < min(values) < max(values) < 10**high
    assert not visible(page)["dominated"]


def test_brushes_and_the_order_of_axes_outlive_the_theme(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small))
    page.locator('[data-figure="space"]').scroll_into_view_if_needed()
    page.wait_for_selector('[data-figure="space"][data-drawn] .axis-brush')
    heading = page.locator(".parcoords .axis-title").first.bounding_box()
    page.mouse.move(heading["x"] + heading["width"] / 2, heading["y"] + 5)
    page.mouse.down()
    page.mouse.move(heading["x"] + heading["width"] / 2 + 190, heading["y"] + 5, steps=12)
    page.mouse.up()
    labels = "document.querySelector('[data-figure=space]').data[0].dimensions.map((one) => one.label)"
    page.wait_for_function(f"{labels}[0] === 'eta'")
    box = page.locator(".axis-brush").first.bounding_box()
    middle = box["x"] + box["width"] / 2
    page.mouse.move(middle, box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(middle, box["y"] + 0.5 * box["height"], steps=8)
    page.mouse.up()
    kept = "document.querySelector('[data-figure=space]').data[0].dimensions.map((one) => one.constraintrange ?? null)"
    page.wait_for_function(f"{kept}.some((one) => one)")
    before = page.evaluate(kept), page.evaluate(labels)
    assert sum(one is not None for one in before[0]) == 1
    page.click("#theme")
    axis = "getComputedStyle(document.querySelector('.parcoords .domain'))"
    page.wait_for_function(f"{axis}.stroke === 'rgb(163, 175, 188)' && {axis}.strokeOpacity === '1'")
    page.wait_for_function("document.querySelector('[data-figure=space]')._fullLayout.font.color === '#e6ebf1'")
    assert (page.evaluate(kept), page.evaluate(labels)) == before


def test_a_name_in_the_key_hides_what_it_stands_for_and_nothing_else(
    show: Open, small: SweepView, view_of: MakeView
) -> None:
    page = show(sweep_page(small))
    page.wait_for_selector(DRAWN)
    names = list(visible(page))
    assert names == ["beyond a constraint", "dominated", "front", "knee of the front"]
    for name in reversed(names):
        hide(page, name)
        assert [one for one, is_shown in visible(page).items() if is_shown] == names[: names.index(name)]
        assert page.locator('[data-figure="front"] .infolayer .cbaxis').count() == 1
    views = [view_of(num_trials=20, total_trials=20, name=name, seed=seed) for seed, name in enumerate("ab")]
    page = show(compare_page(views))
    page.wait_for_selector(DRAWN)
    hide(page, "a, dominated")
    assert visible(page) == {"a, dominated": False, "b, dominated": True, "a": True, "b": True}


def test_every_trial_can_be_chosen_by_keyboard(show: Open, small: SweepView, view_of: MakeView) -> None:
    page = show(sweep_page(small))
    members = {trial.trial_id for trial in small.found.members}
    place, dominated = next((i, t) for i, t in enumerate(small.found.done) if t.trial_id not in members)
    page.focus("#axis-colour")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "trial"
    for _ in range(place + 1):
        page.keyboard.press("ArrowDown")
    page.wait_for_function(f"document.querySelector('#details h3')?.textContent === 'trial {dominated.number}'")
    assert dominated.policy_hash in page.inner_text("#details")
    assert page.locator("#trial option").count() == 26
    assert page.locator('[role="img"]').count() == 0
    assert page.locator('[data-figure="front"]').get_attribute("role") == "group"
    views = [view_of(num_trials=4, total_trials=4, name=name, seed=seed) for seed, name in enumerate("ab")]
    page = show(compare_page(views))
    page.select_option("#trial", index=5)
    page.wait_for_function("document.querySelector('#details h3').textContent === 'b, trial 0'")


def test_a_column_that_some_cells_lack_is_sorted_by_number_with_these_last(show: Open, view_of: MakeView) -> None:
    view = view_of(num_trials=60, total_trials=60, shell=0.5)
    rates = [trial.settings.get("method.weight_lr") for trial in view.found.members]
    present = sorted(rate for rate in rates if rate is not None)
    assert None in rates
    # As texts these would stand in another order.
    assert present[0] < 0.1 < present[-1]
    view.found.members[0].settings["method.weight_lr"] = 12.0
    view.found.members[1].settings["method.weight_lr"] = 2.5e-05
    expected = sorted(t.settings["method.weight_lr"] for t in view.found.members if "method.weight_lr" in t.settings)
    page = show(sweep_page(view))
    head = page.get_by_role("button", name="weight_lr")
    place = head.evaluate("(button) => button.closest('th').cellIndex")
    column = f"[...document.querySelectorAll('#front tbody tr')].map((row) => row.cells[{place}].textContent)"
    missing = ["–"] * (len(view.found.members) - len(expected))
    head.click()
    assert page.evaluate(column) == [f"{rate:.4g}" for rate in expected] + missing
    head.click()
    assert page.evaluate(column) == [f"{rate:.4g}" for rate in reversed(expected)] + missing


def test_a_member_without_a_policy_file_is_not_said_to_be_off_the_front(show: Open, view_of: MakeView) -> None:
    views = [view_of(num_trials=20, total_trials=20, name=name, seed=seed) for seed, name in enumerate("ab")]
    member = views[0].found.members[0]
    views[0].policies.pop(member.trial_id)  # type: ignore[attr-defined]
    page = show(compare_page(views))
    page.select_option("#trial", str(views[0].found.done.index(member)))
    text = page.inner_text("#details")
    assert f"This page does not hold its bits: they are in trials/{member.trial_id}/policy.json of a." in text
    members = {trial.trial_id for trial in views[0].found.members}
    other = next(i for i, trial in enumerate(views[0].found.done) if trial.trial_id not in members)
    page.select_option("#trial", str(other))
    assert "Not on the front" in page.inner_text("#details")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_readers_scheme_and_the_toggle(show: Open, small: SweepView, scheme: str) -> None:
    papers = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 25, 31)"}
    other = "dark" if scheme == "light" else "light"
    page = show(sweep_page(small), color_scheme=scheme)
    page.wait_for_selector(DRAWN)
    paper = "getComputedStyle(document.body).backgroundColor"
    font = "document.querySelector('[data-figure=front]')._fullLayout.font.color"
    before = page.evaluate(font)
    assert page.evaluate(paper) == papers[scheme]
    page.click("#theme")
    assert page.evaluate(paper) == papers[other]
    page.wait_for_function(f"{font} !== '{before}'")
    page.reload()
    assert page.evaluate(paper) == papers[other]


def test_nothing_is_wider_than_a_narrow_screen(show: Open, small: SweepView) -> None:
    for text in (linked(small), compare_page([small, small], labels=["a" * 60, "b"])):
        page = show(text, viewport={"width": 360, "height": 740})
        page.wait_for_selector(DRAWN)
        for name in page.evaluate(
            "[...document.querySelectorAll('[data-figure]')].map((place) => place.dataset.figure)"
        ):
            page.locator(f'[data-figure="{name}"]').scroll_into_view_if_needed()
            page.wait_for_selector(f'[data-figure="{name}"][data-drawn] svg')
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_print_has_all_figures_in_light(show: Open, small: SweepView) -> None:
    page = show(sweep_page(small), color_scheme="dark")
    page.wait_for_selector(DRAWN)
    ink = "document.querySelector('[data-figure=front]')._fullLayout.font.color"
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = {"ink": page.evaluate(ink), "paper": page.evaluate(paper)}
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"{ink} === '#1d2733'")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    lines = page.evaluate("document.querySelector('[data-figure=space]')._fullData[0].line.colorscale")
    assert [colour.lower() for _, colour in lines[-7:]] == list(RAMPS["light"])
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"{ink} === '{dark['ink']}'")
    assert page.evaluate(paper) == dark["paper"] == "rgb(20, 25, 31)"
    page.emulate_media(media="screen")
    written = page.pdf()
    assert written.startswith(b"%PDF")
    undrawn = page.evaluate("document.querySelectorAll('[data-figure]:not([data-drawn])').length")
    assert undrawn == 0
    page.wait_for_function("getComputedStyle(document.body).backgroundColor === 'rgb(20, 25, 31)'")
    # A page at least for each two sections: nothing was left out or cut off at the window's height.
    assert written.count(b"/Type /Page\n") + written.count(b"/Type /Page ") >= 3


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


def test_in_a_viewers_sandbox_the_page_works_and_shows_the_address_to_copy(
    browser: Any, tmp_path: Path, server: str, small: SweepView
) -> None:
    (tmp_path / "page.html").write_text(linked(small))
    (tmp_path / "host.html").write_text(HOST)
    page = browser.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(f"{server}/host.html")
    page.wait_for_selector("iframe")
    frame = next(frame for frame in page.frames if frame is not page.main_frame)
    frame.wait_for_selector(DRAWN)
    assert frame.evaluate("self.origin") == "null"
    frame.click(f'button[data-trial="{small.found.knee.trial_id}"]')
    address = f"{server}/{run_of(small.found.knee.trial_id)}"
    assert frame.inner_text("#details .address") == address
    assert frame.get_attribute("#details a", "href") == address
    assert "copy the address" in frame.inner_text("#details")
    assert frame.is_hidden("#opens")
    frame.click("#theme")
    assert frame.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 25, 31)"
    frame.click('nav a[href="#spend"]')
    frame.wait_for_selector('[data-figure="spend"][data-drawn] svg')
    assert troubles == []
    page.close()


def test_what_users_wrote_is_shown_as_they_wrote_it(show: Open, view_of: MakeView) -> None:
    hostile = '</script><img src=x onerror=alert(1)> &lt; "ü"'
    view = view_of(num_trials=14, total_trials=14, networks=("resnet8", hostile), description=hostile)
    page = show(linked(view))
    page.on("dialog", lambda dialog: pytest.fail("a script of the user's ran"))
    page.wait_for_selector(DRAWN)
    assert page.inner_text("header .intro") == hostile
    trial = next(t for t in view.found.members if t.settings["network.name"] == hostile)
    page.locator(f'button[data-trial="{trial.trial_id}"]').click()
    assert hostile in page.inner_text("#details")
    place = next(p for p in points(page) if view.found.done[p["trial"]].trial_id == trial.trial_id)
    page.mouse.move(place["left"], place["top"])
    page.wait_for_selector(".hoverlayer .hovertext")
    assert "<img" in page.text_content(".hoverlayer .hovertext")
    page.locator('[data-figure="space"]').scroll_into_view_if_needed()
    page.wait_for_selector('[data-figure="space"][data-drawn] svg')
    ticks = page.locator(".parcoords .tick text").all_text_contents()
    assert short_texts([hostile])[0] in [re.sub("[\u200b\u200c]", "", tick) for tick in ticks]
    assert page.locator("img").count() == 0


def test_several_sweeps_are_drawn_together(show: Open, view_of: MakeView) -> None:
    views = [view_of(num_trials=20, total_trials=20, name=name, seed=seed) for seed, name in enumerate("ab")]
    page = show(compare_page(views))
    page.wait_for_selector(DRAWN)
    assert len(points(page)) == 40
    other = next(point for point in points(page)[::-1] if point["kind"] == "front")
    page.mouse.click(other["left"], other["top"])
    page.wait_for_function("document.querySelector('#details h3')?.textContent.startsWith('b, trial ')")


def test_a_thousand_trials_are_there_at_once(show: Open, view_of: MakeView) -> None:
    view = view_of(num_trials=1000, total_trials=1000, num_layers=54, shell=0.25)
    page = show(linked(view))
    page.wait_for_selector(DRAWN)
    assert len(points(page)) == 1000
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 3000, "milliseconds to the first text"
