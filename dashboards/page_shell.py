"""What every page is made of: head, style, navigation, sections, data and figures as JSON, scripts. No network.

A page is read before it is drawn: text and tables are HTML, figures are JSON, and Plotly, which is packed at the end of
the page, is unpacked once these are on the screen.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboards.page_colours import style
from dashboards.plotly_bundle import packed_bundle

Figure = dict[str, Any]
"""Plotly's data and layout, as JSON has them."""
ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("page.js", "page_runs.js", "page_front.js", "page_start.js")
"""In this order: each uses what the ones before it define."""
DIGITS = 6
"""Significant digits of the numbers in a page."""
_RUNS = re.compile(r'(<script type="application/json" id="runs">).*?(</script>)', re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of a page that the navigation leads to."""

    key: str
    """Its id."""
    title: str
    intro: str
    """What is seen, and how it is read; HTML."""
    body: str
    """HTML; empty where the section has nothing to say and `intro` says why."""


def document(
    *, title: str, header: str, sections: Sequence[Section | str], figures: Mapping[str, Figure], content: Any
) -> str:
    """The whole page. A section that is a string is HTML with a `<section id=…>` of its own, or empty."""
    bodies = [_section(part) if isinstance(part, Section) else part for part in sections]
    links = [(part.key, part.title) if isinstance(part, Section) else _own_name(part) for part in sections if part]
    data = {"figures": figures, **content}
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{style()}{_asset("page.css")}</style></head><body>
{header}
<nav aria-label="Sections"><div>{"".join(f'<a href="#{key}">{html.escape(name)}</a>' for key, name in links)}</div>
<button type="button" id="theme" aria-pressed="false">Dark</button></nav>
<main>
{"".join(bodies)}</main>
<script type="application/json" id="runs">{embedded({"base": "", "runs": {}})}</script>
<script type="application/json" id="content">{embedded(data)}</script>
<script type="text/plain" id="plotly">{packed_bundle()}</script>
<script>{"".join(_asset(name) for name in SCRIPTS)}</script>
</body></html>
"""
    # A text from YAML may hold half a character, which no file can.
    return page.encode("utf-8", "replace").decode()


def with_links(page: str, *, base: str, runs: Mapping[str, str]) -> str:
    """The page with the addresses of its trials' runs, instead of those that it may have had.

    Args:
        page: as `sweep_page` or an earlier call has made it.
        base: address of the tracking server, without what comes behind '#'.
        runs: by trial, the rest of the address: '#/experiments/1/runs/0123'.
    """
    content = embedded({"base": base, "runs": dict(runs)})
    return _RUNS.sub(lambda found: f"{found[1]}{content}{found[2]}", page, count=1)


def links_of(page: str) -> tuple[str, dict[str, str]]:
    """What `with_links` has put into a page: `base` and `runs`; none of a text that is no such page."""
    found = _RUNS.search(page)
    try:
        kept = json.loads(page[found.end(1) : found.start(2)]) if found else {}
        return str(kept.get("base", "")), {str(trial): str(run) for trial, run in dict(kept.get("runs", {})).items()}
    except (ValueError, TypeError, AttributeError):
        return "", {}


def embedded(value: Any) -> str:
    """JSON that can stand in a script element, whatever its texts hold, with numbers trimmed."""
    text = json.dumps(trimmed(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def trimmed(value: Any) -> Any:
    """The value with every number in it at `DIGITS` significant digits."""
    match value:
        case float():
            short = float(f"{value:.{DIGITS}g}")
            return int(short) if short.is_integer() and abs(short) < 10**DIGITS else short
        case Mapping():
            return {str(key): trimmed(inner) for key, inner in value.items()}
        case list() | tuple():
            return [trimmed(inner) for inner in value]
    return value


def figure_place(name: str, *, height: int, label: str, min_width: int = 0) -> str:
    """Where the figure `name` is drawn; wider than the screen, it scrolls inside. `label` is for screen readers."""
    width = f";min-width:{min_width}px" if min_width else ""
    return (
        f'<div class="wide"><div class="figure" role="group" aria-label="{html.escape(label)}" '
        f'data-figure="{html.escape(name)}" style="height:{height}px{width}"></div></div>'
    )


def _section(section: Section) -> str:
    return (
        f'<section id="{section.key}" aria-label="{html.escape(section.title)}"><h2>{html.escape(section.title)}</h2>'
        f'<p class="intro">{section.intro}</p>{section.body}</section>\n'
    )


def _own_name(part: str) -> tuple[str, str]:
    """The id of a section that was made elsewhere, and its name: its heading, or its id."""
    key = re.search(r'<section[^>]*\bid="([\w-]+)"', part)
    heading = re.search(r"<h2[^>]*>([^<]+)</h2>", part)
    assert key, "a section without an id"
    return key[1], html.unescape(heading[1]) if heading else key[1].capitalize()


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
