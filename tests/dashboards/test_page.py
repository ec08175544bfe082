"""What stands in a page, and what it must not hold. How it behaves in a browser: test_page_in_browser."""

import base64
import gzip
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import pytest

from dashboards.page import compare_page, sweep_page, with_links
from dashboards.page_shell import embedded, trimmed
from dashboards.plots_bits import bits_section
from dashboards.plots_front import axes_of
from dashboards.plots_space import linear_ticks, log_ticks, short_texts, space_section
from service.pareto import check_objectives
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
    assert "no correlation can be given" in sweep_page(view)


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
