"""What stands in a page, and what it must not hold. How it behaves in a browser: test_page_in_browser."""

import base64
import dataclasses
import gzip
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dashboards.front_picture import draw_front
from dashboards.page import compare_page, linked_as, links_of, sweep_page, with_links
from dashboards.page_colours import RAMPS, SERIES, TONES, Paper
from dashboards.page_compare import look
from dashboards.page_shell import embedded, trimmed
from dashboards.plots_bits import bits_section
from dashboards.plots_front import KINDS, axes_of
from dashboards.plots_space import importance_section, linear_ticks, lines_scales, log_ticks, short_texts, space_section
from dashboards.plots_spend import ard_section, spend_section
from dashboards.sweep_facts import sweep_facts
from dashboards.trial_data import by_kind
from service.pareto import check_objectives
from service.space import Choice
from service.view import SweepView
from trainables.errors import ConfigError

MakeView = Callable[..., SweepView]
HOSTILE = "</script><script>alert(1)</script> \"'&<b>ü\u2028\ud800"
VOID = {"meta", "input", "br", "link", "img"}


def script(page: str, key: str) -> str:
    found = re.findall(rf'<script type="[^"]+" id="{key}">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return found[0]


def content(page: str) -> dict[str, Any]:
    return json.loads(script(page, "content"))


class Outline(HTMLParser):
    """Elements as they are nested, ids, and what would be loaded from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.places: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [found["id"]] if found.get("id") else []
        self.loaded += [str(found[name]) for name in ("src", "srcset", "data", "action") if name in found]
        self.loaded += [str(found["href"])] if "href" in found and not str(found["href"]).startswith("#") else []
        self.handlers += [name for name in found if name.startswith("on")]
        self.places += [str(found["data-figure"])] if "data-figure" in found else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def every_kind(view_of: MakeView) -> list[SweepView]:
    return [
        view_of(num_trials=30, total_trials=31, last=["failed"]),
        view_of(num_trials=0, total_trials=3, last=["pending", "failed"], ended_ms=0),
        view_of(num_trials=1, total_trials=3, last=["running"]),
        view_of(num_trials=12, total_trials=12, networks=("resnet8", "my:net_small_a", "my:net_small_b")),
        view_of(num_trials=12, total_trials=12, objectives=("storage_mb",)),
        view_of(num_trials=12, total_trials=12, constraints=("bops_g <= 0.0001", "mean_act_bits <= 4")),
    ]


def test_pages_are_well_formed_and_load_nothing(view_of: MakeView) -> None:
    views = every_kind(view_of)
    pages = [*(sweep_page(view) for view in views), compare_page(views[:3])]
    for page in pages:
        outline = Outline(page)
        assert outline.open == []
        assert len(outline.ids) == len(set(outline.ids))
        assert (outline.loaded, outline.handlers) == ([], [])
        assert "@import" not in page
        assert set(outline.places) - {"front"} == set(content(page)["figures"])
        assert ("front" in outline.places) == (content(page)["front"] is not None)


def test_every_section_is_there_and_says_why_where_it_has_nothing_to_show(view_of: MakeView) -> None:
    page = sweep_page(view_of(num_trials=0, total_trials=3))
    keys = ["front", "hypervolume", "space", "importance", "bits", "ard", "spend", "gallery"]
    for key in keys:
        assert f'<section id="{key}"' in page
        assert f'<a href="#{key}">' in page
    assert "there is no front" in page
    assert "nothing is spent" in page
    assert "0 of at least 10 trials" in page
    assert "No policy keeps the constraints" in sweep_page(
        view_of(num_trials=3, total_trials=3, constraints=("top1 >= 100",))
    )


def test_what_users_wrote_is_text_and_nothing_else(view_of: MakeView) -> None:
    view = view_of(
        num_trials=12, total_trials=12, networks=("resnet8", HOSTILE), owner=HOSTILE, description=HOSTILE,
        facts={HOSTILE: HOSTILE}, tags={HOSTILE: HOSTILE},
    )  # fmt: skip
    ours = sweep_page(view_of(num_trials=12, total_trials=12, networks=("resnet8", "other"))).count("<script")
    for page in (sweep_page(view), compare_page([view, view], labels=[HOSTILE, "b"])):
        assert page.count("<script") == ours
        assert "<b>ü" not in page
        assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
        assert HOSTILE.replace("\ud800", "?") in content(page)["trials"]["settings"]["network.name"]
        assert page.encode().decode() == page
        assert Outline(page).open == []


def test_the_data_hold_every_trial_that_is_done_with_numbers_trimmed(view_of: MakeView) -> None:
    view = view_of(num_trials=40, total_trials=42, last=["failed", "running"], constraints=("bops_g <= 0.05",))
    data = content(sweep_page(view))
    trials, front = data["trials"], data["front"]
    assert trials["id"] == [trial.trial_id for trial in view.found.done]
    assert trials["metrics"]["top1"] == [float(f"{t.metrics['top1']:.6g}") for t in view.found.done]
    assert trials["settings"]["method.weight_lr"].count(None) == sum(
        "method.weight_lr" not in t.settings for t in view.found.done
    )
    groups = {group["kind"]: {trials["id"][i] for i in group["members"]} for group in front["groups"]}
    members = {trial.trial_id for trial in view.found.members}
    assert groups["front"] | groups["knee"] == members
    assert groups["knee"] == {view.found.knee.trial_id}
    assert groups["beyond"] == {trial.trial_id for trial in view.found.infeasible}
    assert sum(len(group["members"]) for group in front["groups"]) == 40
    assert front["constraints"] == [{"metric": "bops_g", "relation": "<=", "bound": 0.05}]
    assert {trials["id"][int(i)] for i in trials["bits"]} == members
    place = next(iter(trials["bits"]))
    group, weights, acts = trials["bits"][place]
    bits = view.policies[trials["id"][int(place)]].policy.bits
    assert trials["layers"][group]["names"] == list(bits)
    assert list(zip(weights, acts, strict=True)) == [tuple(pair) for pair in bits.values()]


def test_links_are_put_in_and_replaced(view_of: MakeView) -> None:
    page = sweep_page(view_of(num_trials=2, total_trials=2))
    assert json.loads(script(page, "runs")) == {"base": "", "runs": {}}
    first = with_links(page, base="http://a:1", runs={"t0000": "#/experiments/1/runs/</script>\\1"})
    assert json.loads(script(first, "runs")) == {
        "base": "http://a:1",
        "runs": {"t0000": "#/experiments/1/runs/</script>\\1"},
    }
    again = with_links(first, base="http://b:2", runs={"t0001": "#/x"})
    assert again == with_links(page, base="http://b:2", runs={"t0001": "#/x"})
    assert with_links(again, base="", runs={}) == page


def test_the_page_is_the_same_each_time(view_of: MakeView) -> None:
    view = view_of(num_trials=20, total_trials=20)
    assert sweep_page(view) == sweep_page(view)


def test_plotly_comes_out_as_it_went_in(view_of: MakeView) -> None:
    packed = script(sweep_page(view_of(num_trials=1, total_trials=1)), "plotly")
    ours = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    assert gzip.decompress(base64.b64decode(packed)) == ours


def test_a_thousand_trials_of_which_many_are_on_the_front_take_less_than_five_megabytes(view_of: MakeView) -> None:
    view = view_of(num_trials=1000, total_trials=1000, num_layers=54, shell=0.25)
    assert len(view.found.members) >= 200
    page = sweep_page(view)
    assert len(page.encode()) < 5_000_000
    assert len(content(page)["trials"]["id"]) == 1000


def test_numbers_are_trimmed_and_nothing_else() -> None:
    assert trimmed([0.123456789, 12345678.9, 3.0, 7, "0.123456789", True, None, 1e-12]) == [
        0.123457, 12345700.0, 3, 7, "0.123456789", True, None, 1e-12,
    ]  # fmt: skip
    assert embedded({"a<": "</script>&\u2028"}) == '{"a\\u003c":"\\u003c/script\\u003e\\u0026\\u2028"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded([float("nan")])


@pytest.mark.parametrize(
    ("objectives", "axes"),
    [
        (("top1", "bops_g", "ard"), ("bops_g", "top1", "ard")),
        (("ard", "bops_g", "top1"), ("bops_g", "top1", "ard")),
        (("storage_mb",), ("bops_g", "storage_mb", "ard")),
        (("top1", "storage_mb"), ("storage_mb", "top1", "ard")),
        (("entropy", "storage_mb", "compression"), ("storage_mb", "entropy", "compression")),
        (("bops_g",), ("bops_g", "top1", "ard")),
        (("ard",), ("bops_g", "top1", "ard")),
    ],
)
def test_the_front_is_drawn_by_its_objectives(objectives: tuple[str, ...], axes: tuple[str, ...]) -> None:
    found = axes_of(check_objectives(objectives))
    assert (found["x"], found["y"], found["colour"]) == axes


def dimensions(view: SweepView) -> dict[str, dict[str, Any]]:
    _, figures = space_section(view)
    (trace,) = figures["space"]["data"]
    return {one["label"]: one for one in trace["dimensions"]}


def written(dimension: dict[str, Any]) -> dict[float, str]:
    """Ticks with a text that is seen."""
    texts = [re.sub("[\u200b\u200c]", "", text) for text in dimension["ticktext"]]
    return {place: text for place, text in zip(dimension["tickvals"], texts, strict=True) if text}


def test_the_space_has_an_axis_for_each_setting_and_objective_on_the_scale_of_its_range(
    view_of: MakeView,
) -> None:
    view = view_of(num_trials=50, total_trials=50)
    found = dimensions(view)
    assert list(found) == [
        "zeta (log)", "eta", "capacity", "top_k", "start", "weight_lr (log)", "top-1 (%) ↑", "BOPs (G) ↓ (log)",
        "ARD (ranks) ↓",
    ]  # fmt: skip
    zeta = found["zeta (log)"]
    assert [10**value for value in zeta["values"]] == pytest.approx(
        [t.settings["method.zeta"] for t in view.found.done]
    )
    assert (10 ** zeta["range"][0], 10 ** zeta["range"][1]) == pytest.approx((0.03, 1.5))
    assert {text: 10**place for place, text in written(zeta).items()} == pytest.approx(
        {"0.05": 0.05, "0.1": 0.1, "0.2": 0.2, "0.5": 0.5, "1": 1.0}
    )
    assert list(written(found["capacity"]).values()) == ["12", "24", "36"]
    assert found["top_k"]["range"] == [6, 16]


def test_a_setting_that_a_trial_lacks_is_shown_as_such(view_of: MakeView) -> None:
    view = view_of(num_trials=50, total_trials=50)
    axis = dimensions(view)["weight_lr (log)"]
    (below,) = (place for place, text in written(axis).items() if text == "not set")
    assert axis["range"][0] == below < -2 == pytest.approx(min(v for v in axis["tickvals"] if v > below))
    lacking = [trial.settings["method.start"] == "reference" for trial in view.found.done]
    assert [value == below for value in axis["values"]] == lacking


def test_whole_numbers_of_a_setting_that_takes_fractions_have_the_places_of_the_list(view_of: MakeView) -> None:
    """A list of 12 and 24 for a setting whose trials have 12.0 and 24.0."""
    view = view_of(num_trials=50, total_trials=50)
    for trial in view.found.done:
        assert isinstance(trial.settings, dict)
        trial.settings["method.capacity"] = float(trial.settings["method.capacity"])
    listed = {**view.space, "method.capacity": Choice((12, 24, 36))}
    axis = dimensions(dataclasses.replace(view, space=listed))["capacity"]
    found = [float(written(axis)[place]) for place in axis["values"]]
    assert found == [trial.settings["method.capacity"] for trial in view.found.done]


def test_words_that_begin_alike_stay_apart(view_of: MakeView) -> None:
    networks = ("my_networks:small_wide_network_a", "my_networks:small_deep_network_a", "resnet8")
    view = view_of(num_trials=50, total_trials=50, networks=networks, space={})
    axis = dimensions(view)["name"]
    assert len(set(axis["ticktext"])) == len(axis["tickvals"]) == 3
    assert sorted(written(axis).values()) == sorted(networks)
    assert [written(axis)[value] for value in axis["values"]] == [t.settings["network.name"] for t in view.found.done]
    assert short_texts(["a" * 40 + "b", "a" * 40 + "c"]) == ["aaaaaaa…aaaaaaab", "aaaaaaa…aaaaaaac"]


def test_no_two_ticks_of_an_axis_have_one_text(view_of: MakeView) -> None:
    """Plotly would take them for one."""
    for axis in dimensions(view_of(num_trials=50, total_trials=50)).values():
        assert len(set(axis["ticktext"])) == len(axis["ticktext"])
        assert all(axis["range"][0] <= value <= axis["range"][1] for value in axis["values"])


def test_lines_of_the_front_are_drawn_above_all_others(view_of: MakeView) -> None:
    view = view_of(num_trials=50, total_trials=50)
    _, figures = space_section(view)
    colour = figures["space"]["data"][0]["line"]["color"]
    members = {trial.trial_id for trial in view.found.members}
    on_front = [trial.trial_id in members for trial in view.found.done]
    assert [value > 1 for value in colour] == on_front
    assert all(0 <= value <= 2 for value in colour)


def test_equal_values_have_an_axis_too(view_of: MakeView) -> None:
    view = view_of(num_trials=5, total_trials=5)
    for trial in view.found.done:
        trial.metrics["ard"] = 1.0
    axis = dimensions(view)["ARD (ranks) ↓"]
    assert axis["range"][0] < 1.0 < axis["range"][1]
    assert "top-1 (%) and ARD: no correlation can be given, as all trials have the same ARD." in sweep_page(view)


def test_so_few_trials_that_no_correlation_is_known_are_not_said_to_be_equal(view_of: MakeView) -> None:
    for count in (2, 3):
        page = sweep_page(view_of(num_trials=count, total_trials=count))
        assert "fewer than 4 trials say nothing of a correlation." in page
        assert "all trials have the same" not in page
    assert "say nothing of a correlation" not in sweep_page(view_of(num_trials=4, total_trials=4))


def test_hours_of_trials_that_have_not_ended_are_not_booked_as_bought_a_policy(view_of: MakeView) -> None:
    view = view_of(num_trials=3, total_trials=6, last=["running", "failed"])
    section, figures = spend_section(view)
    bars = {trace["name"]: trace["y"] for trace in figures["spend"]["data"]}
    assert bars == {
        "search": [0.01] * 3 + [0, 0],
        "finetune": [0.02] * 3 + [0, 0],
        "not ended yet": pytest.approx([0, 0, 0, 0.03, 0]),
        "without a policy": pytest.approx([0, 0, 0, 0, 0.03]),
    }
    for name, hours in (("search, with a policy", 0.03), ("in trials that have not ended", 0.03)):
        assert f"<dt>{name}</dt><dd>{hours:.4g} device-h</dd>" in section.body


def test_trials_beyond_a_constraint_are_not_called_dominated(view_of: MakeView, tmp_path: Path) -> None:
    view = view_of(num_trials=40, total_trials=40, constraints=("bops_g <= 0.05",))
    kinds = by_kind(view.found)
    assert all(kinds.values())
    assert {t.trial_id for t in kinds["beyond"]} == {t.trial_id for t in view.found.infeasible}
    _, figures = ard_section(view)
    for metric in ("top1", "bops_g"):
        drawn = {trace["name"]: trace["y"] for trace in figures[f"ard-{metric}"]["data"]}
        assert drawn == {KINDS[kind]: [t.metrics[metric] for t in trials] for kind, trials in kinds.items()}
    names = [group["name"] for group in content(sweep_page(view))["front"]["groups"]]
    assert names == list(KINDS.values())
    alone = view_of(num_trials=40, total_trials=40, constraints=("bops_g <= 0.05",), objectives=("top1",))
    draw_front(alone, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000


def test_the_end_of_a_sweep_without_a_word_has_no_comma(view_of: MakeView) -> None:
    facts = dict(sweep_facts(view_of(num_trials=1, total_trials=1, end="")))
    assert facts["ended"] == "2023-11-14 23:13 UTC"
    assert dict(sweep_facts(view_of(num_trials=1, total_trials=1)))["ended"] == "2023-11-14 23:13 UTC, finished"


def test_links_of_a_page_are_those_that_were_put_in(view_of: MakeView, tmp_path: Path) -> None:
    page = sweep_page(view_of(num_trials=2, total_trials=2))
    given = {"t0000": "#/experiments/1/runs/<a>\\1"}
    linked = with_links(page, base="http://a:1", runs=given)
    assert links_of(linked) == ("http://a:1", given)
    assert links_of(page) == ("", {})
    for text in ("", "<html>", '<script type="application/json" id="runs">{torn</script>',
                 '<script type="application/json" id="runs">[]</script>'):  # fmt: skip
        assert links_of(text) == ("", {})
    (tmp_path / "front.html").write_text(linked)
    assert linked_as(page, tmp_path / "front.html") == linked
    assert linked_as(page, tmp_path / "none.html") == page


def test_importance_says_what_it_is_a_share_of_and_why_there_is_none(view_of: MakeView) -> None:
    view = view_of(num_trials=60, total_trials=60, spread=0.02)
    section, figures = importance_section(view)
    assert "share of what the settings explain one by one" in section.intro
    assert "share of what single settings explain, %" in str(figures["importance-top1"]["layout"]["xaxis"])
    # Noise alone in one objective, and one that is always the same.
    draw = random.Random(1)
    for trial in view.found.done:
        trial.metrics.update(ard=draw.random(), bops_g=1.0)
    section, figures = importance_section(view)
    assert set(figures) == {"importance-top1"}
    assert (
        "ARD (ranks): nothing can be said, as the settings foretell nothing of trials which the forest" in section.body
    )
    assert "BOPs (G): all trials have the same." in section.body
    for trial in view.found.done:
        trial.metrics["top1"] = draw.random()
    section, figures = importance_section(view)
    assert (section.body, figures) == ("", {})
    assert "top-1 (%): nothing can be said, as the settings foretell nothing" in section.intro


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(colour: str, paper: str) -> float:
    low, high = sorted((luminance(colour), luminance(paper)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("paper", ["light", "dark"])
def test_what_is_drawn_stands_out_from_its_paper(paper: Paper) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    background = TONES[paper]["paper"]
    for colour in (*SERIES[paper], *RAMPS[paper], TONES[paper]["faint"], TONES[paper]["accent"]):
        assert contrast(colour, background) >= 3, colour
    scale = lines_scales()[paper]
    assert [colour for _, colour in scale[-len(RAMPS[paper]) :]] == list(RAMPS[paper])


def colours_in(value: Any, key: str = "") -> Iterator[str]:
    match value:
        case dict():
            for name, inner in value.items():
                yield from colours_in(inner, name)
        case list() if key != "colorscale":
            for inner in value:
                yield from colours_in(inner, key)
        case str() if "color" in key:
            yield value


def test_figures_name_colours_of_the_page_and_have_none_of_their_own(view_of: MakeView) -> None:
    views = [
        view_of(num_trials=30, total_trials=32, name=n, seed=i, last=["failed", "running"]) for i, n in enumerate("ab")
    ]
    for page in (sweep_page(views[0]), compare_page(views)):
        data = content(page)
        used = set(colours_in(data["figures"])) | {g["colour"] for g in data["front"]["groups"] if "colour" in g}
        names = {f"${name}" for name in (*TONES["light"], "lines", *(f"series-{i + 1}" for i in range(8)))}
        assert used - names <= {"rgba(0,0,0,0)"}
        assert len(used) >= 2
        assert all(f"--{name[1:]}:" in page for name in used & names - {"$lines"})


BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""


def lab(colour: str, matrix: Any) -> Any:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("paper", ["light", "dark"])
@pytest.mark.parametrize("kind", list(BLINDNESS))
def test_series_are_told_apart_with_each_kind_of_colour_blindness(paper: Paper, kind: str) -> None:
    seen = [lab(colour, BLINDNESS[kind]) for colour in SERIES[paper]]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 19


def test_fifty_six_sweeps_look_different(view_of: MakeView) -> None:
    assert len({tuple(look(place).values()) for place in range(56)}) == 56
    views = [view_of(num_trials=3, total_trials=3, name=f"s{seed}", seed=seed) for seed in range(9)]
    page = compare_page(views)
    lines = content(page)["figures"]["growth-trials"]["data"]
    assert len({(line["line"]["color"], line["line"]["dash"]) for line in lines}) == 9
    signs = re.findall(r'<span style="(color:[^"]+)" aria-hidden="true">(.)</span>', page)
    assert len(set(signs)) == 9


def test_ticks_are_round_and_between_the_ends() -> None:
    assert linear_ticks(0, 2) == [0, 0.5, 1, 1.5, 2]
    assert linear_ticks(91.3, 96.9) == [92, 93, 94, 95, 96]
    assert log_ticks(0.01, 1) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    assert log_ticks(1e-8, 1) == pytest.approx([10.0**d for d in range(-8, 1)])
    assert len(log_ticks(1e-30, 1)) <= 9
    assert log_ticks(2.1, 2.4) == linear_ticks(2.1, 2.4)


def test_bits_are_drawn_for_each_network_in_order_of_cost_with_pinned_layers_marked(view_of: MakeView) -> None:
    view = view_of(num_trials=60, total_trials=60, networks=("resnet8", "my:net"))
    _, figures = bits_section(view)
    assert set(figures) == {"bits-0-weights", "bits-0-activations", "bits-1-weights", "bits-1-activations"}
    network = view.policies[view.found.members[0].trial_id].policy.network
    rows = [t for t in view.found.members if view.policies[t.trial_id].policy.network == network]
    for side in ("weight", "act"):
        heat, marks = figures[f"bits-0-{'weights' if side == 'weight' else 'activations'}"]["data"]
        assert heat["z"] == [[getattr(b, side) for b in view.policies[t.trial_id].policy.bits.values()] for t in rows]
        assert marks["x"] == [0, 9]
        assert heat["meta"]["columns"][:2] == ["<b>stem</b>, pinned", "<b>layer1.0.conv</b>"]
        assert [text.split(",")[0] for text in heat["meta"]["rows"]] == [f"trial {t.number}" for t in rows]


def test_several_sweeps_have_a_look_each_and_one_corner(view_of: MakeView) -> None:
    views = [view_of(num_trials=30, total_trials=30, name=name, seed=seed) for seed, name in enumerate("abc")]
    page = compare_page(views)
    data = content(page)
    looks = {group["sweep"]: (group["symbol"], group["colour"]) for group in data["front"]["groups"]}
    assert len(looks) == len(set(looks.values())) == 3
    assert sum(len(group["members"]) for group in data["front"]["groups"]) == 90
    assert data["trials"]["sweep"] == ["a"] * 30 + ["b"] * 30 + ["c"] * 30
    ends = [trace["y"][-1] for trace in data["figures"]["growth-trials"]["data"]]
    shown = re.findall(r"<td data-value=\"[^\"]+\">(0\.\d{4})</td>", page)
    assert [f"{end:.4f}" for end in ends] == shown[:3]
    assert data["front"]["references"] == [{"name": "full precision 97.50 %", "top1": 97.5}]


def test_sweeps_without_a_common_objective_are_refused(view_of: MakeView) -> None:
    views = [view_of(num_trials=3, total_trials=3, objectives=(name,)) for name in ("top1", "ard")]
    with pytest.raises(ConfigError, match="no objective in common"):
        compare_page(views)
