"""Where the networks look: the same validation images under full precision, under the front's policies, and under a
random policy of the knee's cost. A part of a sweep's page, without scripts.

What is drawn are ranks, as the attribution rank difference (ARD) compares ranks: each square of a map is a pixel of the
network's own attribution map, its colour the place of that pixel among all, ties sharing the mean of their places.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dashboards.attribution_pictures import colours, data_uri, map_png, thumbnail_png
from service.baseline import Baseline, attribution_of
from service.marks import REFERENCES
from service.view import SweepView
from trainables.errors import StorageError
from trainables.samples import ATTRIBUTION_FILE, SampleImages, SampleMaps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_POLICIES = 11
"""Of the front; the random one comes on top."""
PICTURE_BYTES = 250_000
"""At most, for all thumbnails, and again for all maps: where there are more they are smaller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """A policy with its maps."""

    name: str
    metrics: Mapping[str, float]
    maps: SampleMaps
    trial: str
    is_random: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """Policies of one reference, on the same images."""

    images: SampleImages
    policies: list[_Shown]
    random: _Shown | None = None


def section(view: SweepView) -> str:
    """An HTML fragment; empty where nothing is recorded of the front's policies."""
    shown, missing, notes = _front_maps(view)
    if missing:
        who = f"trial {missing[0]}" if len(missing) == 1 else f"trials {', '.join(map(str, missing))}"
        notes.append(f"No maps of {who}: finished by an earlier version of Bitfront, or without a gallery.")
    groups, lost = _groups(view, shown)
    notes += lost
    if not groups:
        # Without maps there is nothing to tell, unless some were there.
        return _whole("", notes) if lost or len(notes) > bool(missing) else ""
    # A promotion has none: it does not choose policies.
    random, told = (None, "") if view.final else _random(view)
    if random:
        groups = [_with_random(group, random) for group in groups]
    if told or not (view.final or any(group.random for group in groups)):
        notes.append(told or "The random policy was drawn for a trial that is not shown.")
    if len(view.found.members) > MOST_POLICIES:
        notes.append(f"Shown are the knee and others along the front, {len(shown)} of {len(view.found.members)}.")
    body = "".join(_group_html(group, place, groups) for place, group in enumerate(groups))
    return _whole(f"<style>{_style(groups)}</style>", notes, body)


def _whole(style: str, notes: Sequence[str], body: str = "") -> str:
    said = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    return f'<section id="gallery">{style}<h2>Where the networks look</h2>{body}{said}</section>'


def _front_maps(view: SweepView) -> tuple[list[_Shown], list[int], list[str]]:
    """The knee, then others at even distances along the front; the numbers of those without maps; what is damaged."""
    knee = view.found.knee
    others = [trial for trial in view.found.members if knee is None or trial.trial_id != knee.trial_id]
    room = MOST_POLICIES - (knee is not None)
    if len(others) > room:
        others = [others[round(place * (len(others) - 1) / (room - 1))] for place in range(room)]
    shown, missing, damaged = [], [], []
    for trial in [*([knee] if knee else []), *others]:
        path = view.folder / "trials" / trial.trial_id / ATTRIBUTION_FILE
        if not path.exists():
            missing.append(trial.number)
            continue
        try:
            maps = SampleMaps.load(path)
        except StorageError as error:
            damaged.append(f"The maps of trial {trial.number} are damaged: {error}")
            continue
        name = f"trial {trial.number}{' ◆' if trial is knee else ''}"
        shown.append(_Shown(name=name, metrics=trial.metrics, maps=maps, trial=trial.trial_id))
    return shown, missing, damaged


def _groups(view: SweepView, shown: Sequence[_Shown]) -> tuple[list[_Group], list[str]]:
    """The policies by the images that their maps are of; and what is missing of these."""
    groups: dict[str, _Group] = {}
    notes: dict[str, str] = {}
    for policy in shown:
        digest = policy.maps.samples
        path = SampleImages.path(view.folder.parent / REFERENCES, policy.maps.reference, digest)
        try:
            if digest not in groups:
                groups[digest] = _Group(images=SampleImages.load(path), policies=[])
            groups[digest].policies.append(policy)
        except StorageError as error:
            what = "damaged" if path.exists() else "missing"
            notes[digest] = f"The images of the maps are {what}: {error}"
    return list(groups.values()), list(notes.values())


def _random(view: SweepView) -> tuple[_Shown | None, str]:
    """The sweep's random policy, or why there is none."""
    kept = Baseline.find(view.folder)
    again = f"`bitfront resume {view.sweep.name}` makes one where the sweep has gallery.random"
    if kept is None:
        return None, f"No random policy to compare with: the sweep ended without one; {again}."
    if kept.error:
        return None, f"No random policy to compare with: {kept.error}"
    if (kept.knee, kept.knee_policy) not in [(t.trial_id, t.policy_hash) for t in view.found.members]:
        return None, f"The random policy was drawn for {kept.knee}, which is no longer on the front; {again}."
    try:
        maps = SampleMaps.load(attribution_of(view.folder))
    except StorageError as error:
        return None, f"No maps of the random policy: {error}"
    return _Shown(name="random policy", metrics=kept.metrics, maps=maps, trial=kept.knee, is_random=True), ""


def _with_random(group: _Group, random: _Shown) -> _Group:
    of_group = random.maps.samples == group.policies[0].maps.samples
    return replace(group, random=random) if of_group and any(p.trial == random.trial for p in group.policies) else group


def _group_html(group: _Group, place: int, groups: Sequence[_Group]) -> str:
    images, num_maps = group.images, sum(len(g.images.labels) * (2 + len(g.policies)) for g in groups)
    side = max(4, math.isqrt(max(0, round(PICTURE_BYTES * 0.7 / num_maps) - 300)))
    buttons = "".join(
        f'<input type="radio" name="gallery-{place}" id="gallery-{place}-{n}" class="s{n}"{"" if n else " checked"}>'
        f'<label for="gallery-{place}-{n}">{html.escape(policy.name)}</label>'
        for n, policy in enumerate(group.policies)
    )
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in images.class_names)
    pictures = "".join(f'<td><span class="cell g{place}t{n}"></span></td>' for n in range(len(images.labels)))
    rows = [_row("full precision", "the reference", images.maps, None, group, place, side, kind="")]
    rows += [_policy_row(policy, group, place, side, kind=f"p p{n}") for n, policy in enumerate(group.policies)]
    if group.random:
        rows.append(_policy_row(group.random, group, place, side, kind=""))
    title = f"<h3>{html.escape(f'{images.network} on {images.data}')}</h3>" if len(groups) > 1 else ""
    return (
        f"{title}<p>{html.escape(_how_to_read(group))}</p>{_comparison(group)}"
        f'<fieldset><legend>Policy</legend>{buttons}<div class="maps"><table>'
        f'<thead><tr><th scope="col">validation image</th>{heads}</tr></thead><tbody>'
        f'<tr class="pictures"><th scope="row"></th>{pictures}</tr>{"".join(rows)}</tbody></table></div></fieldset>'
        '<p class="scale"><span>last rank</span><i></i>'
        "<span>first rank: the pixel that speaks most for the class</span></p>"
    )


def _how_to_read(group: _Group) -> str:
    pixels = round(group.policies[0].metrics.get("attribution_pixels", group.images.maps[0].size))
    return (
        "Read a column from top to bottom: the image, then where each network looks for its class, every pixel of the "
        "attribution map coloured by its rank; a policy keeps rank consistency where it repeats the pattern of full "
        "precision. The number below a map is its ARD, by how many ranks the pixels are off on average: 0 for the same "
        f"order, {(pixels**2 - 1) / (3 * pixels):.1f} for a random order of the {pixels} pixels that are compared. "
        "Point at a map to see the image below it."
    )


def _comparison(group: _Group) -> str:
    """In numbers, what the rows show of the random policy and of the one that it was drawn for."""
    if group.random is None:
        return ""
    searched = next(policy for policy in group.policies if policy.trial == group.random.trial)
    ours, theirs = searched.maps.ard, group.random.maps.ard
    nearer, further = int((ours < theirs).sum()), int((ours > theirs).sum())
    on_all = [policy.metrics["ard"] for policy in (searched, group.random)]
    return (
        f"<p>Of these {len(ours)} images {html.escape(searched.name)} is nearer to full precision than one random "
        f"policy of its cost, finetuned alike, on {nearer}, further on {further}; mean ARD {ours.mean():.2f} against "
        f"{theirs.mean():.2f}, and over all validation images {on_all[0]:.2f} against {on_all[1]:.2f}.</p>"
    )


def _policy_row(policy: _Shown, group: _Group, place: int, side: int, *, kind: str) -> str:
    metrics = policy.metrics
    about = (
        f"top-1 {metrics['top1']:.2f} %, {metrics['bops_g']:.4g} G BOPs; ARD {policy.maps.ard.mean():.2f} here, "
        f"{metrics['ard']:.2f} on all"
    )
    return _row(policy.name, about, policy.maps.maps, policy.maps.ard, group, place, side, kind=kind)


def _row(
    name: str,
    about: str,
    maps: NDArray[np.float32],
    ard: NDArray[np.float64] | None,
    group: _Group,
    place: int,
    side: int,
    *,
    kind: str,
) -> str:
    cells = []
    for n, values in enumerate(maps):
        number = "" if ard is None else f"{ard[n]:.2f}"
        alt = html.escape(f"{group.images.class_names[n]}, {name}" + (f", ARD {number}" if number else ""))
        source = data_uri(map_png(values, side=side))
        cells.append(
            f'<td><span class="cell g{place}t{n}"><img src="{source}" alt="{alt}"></span><small>{number}</small></td>'
        )
    return (
        f'<tr class="{kind}"><th scope="row">{html.escape(name)}<small>{html.escape(about)}</small></th>'
        f"{''.join(cells)}</tr>"
    )


def _style(groups: Sequence[_Group]) -> str:
    num_images = sum(len(group.images.labels) for group in groups)
    # Three bytes a pixel, and a third more as text.
    side = max(8, math.isqrt(PICTURE_BYTES // (4 * num_images)))
    thumbnails = [
        f"#gallery .g{place}t{n}{{background-image:url({data_uri(thumbnail_png(pixels, side=side))})}}"
        for place, group in enumerate(groups)
        for n, pixels in enumerate(group.images.thumbnails)
    ]
    most = max(len(group.policies) for group in groups)
    chosen = ",".join(f"#gallery .s{n}:checked~.maps .p{n}" for n in range(most))
    ramp = ",".join(f"rgb({red} {green} {blue})" for red, green, blue in colours(9))
    return (
        _STYLE
        + f"#gallery .p{{display:none}}{chosen}{{display:table-row}}"
        + f"#gallery .scale i{{background:linear-gradient(to right,{ramp})}}"
        + "@media print{#gallery .p{display:table-row}#gallery input,#gallery label,#gallery legend{display:none}}"
        + "".join(thumbnails)
    )


_STYLE = """
#gallery>p{max-width:75ch}#gallery .note{color:var(--faint)}
#gallery fieldset{border:0;padding:0;margin:.6rem 0;min-width:0}
#gallery legend{color:var(--faint);padding:0;margin-bottom:.25rem}
#gallery input{position:absolute;opacity:0;width:1px;height:1px}
#gallery label{display:inline-block;border:1px solid var(--line);border-radius:.3rem;padding:.15rem .6rem;
margin:0 .3rem .3rem 0;cursor:pointer}
#gallery input:checked+label{border-color:var(--accent);box-shadow:inset 0 0 0 1px var(--accent)}
#gallery input:focus-visible+label{outline:2px solid var(--accent);outline-offset:2px}
#gallery .maps{overflow-x:auto}
#gallery table{border-collapse:collapse;background:none}
#gallery tr,#gallery tr:hover{background:none}
#gallery th,#gallery td{border:0;padding:.2rem .25rem;text-align:center;vertical-align:top;font-weight:normal;
white-space:normal;position:static;box-shadow:none}
#gallery th[scope=row]{text-align:left;width:11rem;min-width:8rem;padding-left:0}
#gallery thead th{vertical-align:bottom;max-width:6rem;overflow-wrap:anywhere}
#gallery thead th:first-child{text-align:left;padding-left:0}
#gallery small{display:block;color:var(--faint);font-size:.8em;line-height:1.35;font-variant-numeric:tabular-nums}
#gallery .cell{display:block;width:5.5rem;height:5.5rem;background-size:cover;image-rendering:auto;
border:1px solid var(--line);print-color-adjust:exact;-webkit-print-color-adjust:exact}
#gallery .cell img{display:block;width:100%;height:100%;image-rendering:pixelated}
#gallery .cell:hover img{opacity:.35}
#gallery .scale{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;color:var(--faint);font-size:.85em}
#gallery .scale i{width:9rem;height:.8rem;border:1px solid var(--line);print-color-adjust:exact;
-webkit-print-color-adjust:exact}
"""
