"""A sweep as one interactive page that needs no network: its front, space, bits, spend, and what they say."""

from __future__ import annotations

import html
from pathlib import Path

from dashboards import gallery
from dashboards.page_compare import compare_page
from dashboards.page_shell import Figure, Section, document, links_of, with_links
from dashboards.plots_bits import bits_section
from dashboards.plots_final import final_section, transfer_section
from dashboards.plots_front import CIVIDIS, front_content, front_section, scale
from dashboards.plots_methods import methods_section
from dashboards.plots_space import importance_section, lines_scales, space_section
from dashboards.plots_spend import ard_section, hypervolume_section, spend_section
from dashboards.sweep_facts import heading
from dashboards.trial_data import columns, done_trials
from service.view import SweepView

__all__ = ["compare_page", "linked_as", "links_of", "sweep_page", "with_links"]

NO_GALLERY = Section(
    key="gallery",
    title="Where the networks look",
    intro="No attribution maps of the front's policies are recorded: there are no pictures.",
    body="",
)


def linked_as(page: str, stored: Path) -> str:
    """The page with the addresses of runs that the sweep's own page has; as it is where that has none."""
    try:
        base, runs = links_of(stored.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return page
    return with_links(page, base=base, runs=runs)


def _search(view: SweepView) -> list[tuple[Section, dict[str, Figure]]]:
    of = (hypervolume_section, space_section, importance_section, bits_section, ard_section, spend_section)
    return [*filter(None, (methods_section(view),)), *(section_of(view) for section_of in of)]


def _promotion(view: SweepView) -> list[tuple[Section, dict[str, Figure]]]:
    """Nothing was searched: there is no space, and no trial more would bring a better front."""
    has_ard = any("ard" in trial.metrics for trial in view.found.done)
    return [
        *filter(None, (final_section(view), transfer_section(view))),
        bits_section(view),
        *([ard_section(view)] if has_ard else []),
        spend_section(view),
    ]


def sweep_page(view: SweepView) -> str:
    """The page of one sweep. `with_links` adds the addresses of its runs."""
    trials = done_trials(view)
    sections: list[Section | str] = [front_section(view, trials)]
    figures: dict[str, Figure] = {}
    for section, drawn in _promotion(view) if view.final else _search(view):
        sections.append(section)
        figures |= drawn
    sections.append(gallery.section(view) or ("" if view.final else NO_GALLERY))
    content = {
        "trials": columns(trials),
        "front": front_content(view.found, view.sweep, trials) if trials else None,
        "scales": {"points": scale(CIVIDIS), "lines": lines_scales()},
    }
    return document(
        title=f"{view.sweep.name} – Pareto front",
        header=f"<header><h1>{html.escape(view.sweep.name)}</h1>{heading(view)}</header>",
        sections=sections,
        figures=figures,
        content=content,
    )
