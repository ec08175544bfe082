"""The gallery: true ranks and colours, the right policies, small, without scripts, and honest of what is missing."""

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dashboards.attribution_pictures import colours, map_png, ranks
from dashboards.gallery import section
from dashboards.page import sweep_page
from service.baseline import Baseline, attribution_of
from service.view import SweepView
from trainables import attribution
from trainables.samples import ATTRIBUTION_FILE, SampleImages, SampleMaps

from .conftest import MakeView


def images_of(view: SweepView, *, count: int = 3, side: int = 8, pixels: int = 4, **changes: object) -> SampleImages:
    """Beside the reference, with noise for pictures, which no PNG makes small."""
    noise = np.random.default_rng(0)
    given = {
        "reference": "resnet8-digits",
        "network": "resnet8",
        "data": "digits",
        "places": np.arange(count),
        "labels": np.arange(count),
        "class_names": tuple(f"class {n}" for n in range(count)),
        "thumbnails": noise.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "maps": noise.random((count, pixels, pixels), dtype=np.float32),
        **changes,
    }
    images = SampleImages(**given)  # type: ignore[arg-type]
    images.save(SampleImages.path(view.folder.parent / "references", images.reference, images.digest))
    return images


def maps_of(images: SampleImages, seed: int = 1) -> SampleMaps:
    noise = np.random.default_rng(seed)
    maps = noise.random(images.maps.shape, dtype=np.float32)
    ard = attribution.rank_difference(torch.from_numpy(maps), torch.from_numpy(images.maps), top_k=500).numpy()
    return SampleMaps(reference=images.reference, samples=images.digest, maps=maps, ard=ard)


def save_maps(view: SweepView, trial: str, images: SampleImages) -> SampleMaps:
    maps = maps_of(images, seed=int(trial[1:]))
    maps.save(view.folder / "trials" / trial / ATTRIBUTION_FILE)
    return maps


def save_random(view: SweepView, images: SampleImages, **changes: object) -> SampleMaps:
    assert view.found.knee is not None
    knee = view.found.knee
    record = Baseline(knee=knee.trial_id, knee_policy=knee.policy_hash, seed=0, metrics={**knee.metrics, "ard": 3.21})
    view.folder.mkdir(parents=True, exist_ok=True)
    dataclasses.replace(record, **changes).save(view.folder)
    maps = maps_of(images, seed=99)
    maps.save(attribution_of(view.folder))
    return maps


class Parsed(HTMLParser):
    """Tags by name, all closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_ranks_are_those_that_ard_compares() -> None:
    values = torch.tensor([[0.0, 3.0, 1.0, 0.0], [1.0, 0.0, 2.0, 5.0]])
    expected = attribution.ranks(values.reshape(1, -1)).reshape(2, 4)
    assert ranks(values.numpy()).tolist() == expected.tolist()
    assert ranks(np.zeros((2, 2), dtype=np.float32)).tolist() == [[2.5, 2.5], [2.5, 2.5]]


def test_a_map_is_drawn_by_rank_whatever_its_values() -> None:
    values = np.array([[0.9, 0.0], [0.01, 0.02]], dtype=np.float32)
    drawn = [np.asarray(Image.open(io.BytesIO(map_png(v, side=9))).convert("RGB")) for v in (values, values**3)]
    assert (drawn[0] == drawn[1]).all()
    scale = colours(4)
    assert (drawn[0] == scale[[[3, 0], [1, 2]]]).all()
    # Brighter is nearer to the first rank.
    assert (np.diff(scale.astype(int) @ [2126, 7152, 722]) > 0).all()
    large = Image.open(io.BytesIO(map_png(np.arange(900, dtype=np.float32).reshape(30, 30), side=10)))
    assert large.size == (10, 10)


def test_the_knee_comes_first_and_each_map_has_its_number(view_of: MakeView) -> None:
    view = view_of(num_trials=12, spread=0.5)
    images = images_of(view)
    maps = {trial.trial_id: save_maps(view, trial.trial_id, images) for trial in view.found.members}
    random = save_random(view, images)
    text = section(view)
    page = Parsed(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.tags[0] == ("section", {"id": "gallery"})
    knee = view.found.knee
    assert knee is not None
    labels = re.findall(r"<label [^>]*>(.*?)</label>", text)
    assert labels[0] == f"trial {knee.number} ◆"
    assert sorted(labels[1:]) == sorted(f"trial {t.number}" for t in view.found.members if t is not knee)
    checked = [attributes["class"] for attributes in page.all("input") if "checked" in attributes]
    assert checked == ["s0"]
    # Every picture is in the page, and says what it is.
    pictures = page.all("img")
    assert len(pictures) == 3 * (len(view.found.members) + 2)
    assert all(str(picture["src"]).startswith("data:image/png;base64,") for picture in pictures)
    assert f"class 1, trial {knee.number} ◆, ARD {maps[knee.trial_id].ard[1]:.2f}" in {p["alt"] for p in pictures}
    assert f"class 2, random policy, ARD {random.ard[2]:.2f}" in {p["alt"] for p in pictures}
    ours, theirs = maps[knee.trial_id].ard, random.ard
    assert (
        f"trial {knee.number} ◆ is nearer to full precision than one random policy of its cost, finetuned alike, on "
        f"{(ours < theirs).sum()}, further on {(ours > theirs).sum()}; mean ARD {ours.mean():.2f} against "
        f"{theirs.mean():.2f}, and over all validation images {knee.metrics['ard']:.2f} against 3.21."
    ) in text
    # What its style says is of the gallery alone.
    (style,) = re.findall("<style>(.*?)</style>", text, flags=re.DOTALL)
    selectors = [s for part in re.findall(r"(?:^|[{}])([^{}]+)\{", style) for s in part.strip().split(",")]
    assert all(s.strip().startswith(("#gallery", "@media print")) for s in selectors)


def test_the_largest_gallery_is_small(view_of: MakeView) -> None:
    view = view_of(num_trials=400, spread=0.5)
    assert len(view.found.members) > 12
    images = images_of(view, count=32, side=96, pixels=56)
    for trial in view.found.members:
        save_maps(view, trial.trial_id, images)
    save_random(view, images)
    text = section(view)
    assert len(text) < 600_000
    labels = re.findall(r"<label [^>]*>trial (\d+)", text)
    assert len(labels) == len(set(labels)) == 11
    # Both ends of the front are among them.
    assert {str(view.found.members[0].number), str(view.found.members[-1].number)} <= set(labels)
    assert f"11 of {len(view.found.members)}" in text


def test_policies_of_several_references_are_shown_apart_with_names_escaped(view_of: MakeView) -> None:
    view = view_of(num_trials=12, spread=0.5)
    digits = images_of(view)
    odd = images_of(view, reference="net-odd", network="a:b", data="<odd>", class_names=("<b>", "&", '"x"'))
    members = view.found.members
    for number, trial in enumerate(members):
        save_maps(view, trial.trial_id, odd if number % 2 else digits)
    page = Parsed(section(view))
    assert len(page.all("fieldset")) == 2
    assert len({attributes["name"] for attributes in page.all("input")}) == 2
    text = section(view)
    assert "<h3>a:b on &lt;odd&gt;</h3>" in text
    assert '<th scope="col">&lt;b&gt;</th>' in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"error": "diverged: a loss"}, "No random policy to compare with: diverged: a loss"),
        ({"knee_policy": "another"}, "which is no longer on the front"),
    ],
)
def test_a_random_policy_that_cannot_be_shown_is_told(view_of: MakeView, changes: dict[str, str], told: str) -> None:
    view = view_of(num_trials=3)
    images = images_of(view)
    for trial in view.found.members:
        save_maps(view, trial.trial_id, images)
    save_random(view, images, **changes)
    assert told in section(view)
    attribution_of(view.folder).write_bytes(b"torn")
    assert "random policy, ARD" not in section(view)


def test_what_earlier_versions_left_is_nothing_or_said_to_be_missing(view_of: MakeView, tmp_path: Path) -> None:
    view = view_of(num_trials=30, spread=0.5)
    assert section(view) == ""
    assert section(view_of(num_trials=0)) == ""
    images = images_of(view)
    first, *others = view.found.members
    assert others
    save_maps(view, first.trial_id, images)
    text = section(view)
    assert "No maps of trial" in text
    assert "the sweep ended without one; `bitfront resume many` makes one" in text
    (images_path,) = (tmp_path / "references").rglob("*.npz")
    images_path.write_bytes(b"torn")
    assert "The images of the maps are damaged: " in section(view)
    images_path.unlink()
    text = section(view)
    assert f"The images of the maps are missing: {images_path} does not exist." in text
    assert "No attribution maps" not in sweep_page(view)
    assert Parsed(text).all("img") == []


def test_damaged_maps_are_told_from_missing_ones(view_of: MakeView) -> None:
    view = view_of(num_trials=30, spread=0.5)
    torn, missing = view.found.members[:2]
    path = view.folder / "trials" / torn.trial_id / ATTRIBUTION_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    text = section(view)
    assert f"The maps of trial {torn.number} are damaged: {path} cannot be read" in text
    (told,) = re.findall("No maps of trials? ([^:]+):", text)
    assert str(missing.number) in told.split(", ")
    assert str(torn.number) not in told.split(", ")
