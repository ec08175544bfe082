"""Colours of the pages, on light paper and on dark: told apart by colour-blind readers, 3:1 at least on their paper.

Figures name them, as "$ink" or "$series-1"; the page's style has them as `--ink`, `--series-1`.
"""

from __future__ import annotations

from typing import Literal

Paper = Literal["light", "dark"]
TONES: dict[Paper, dict[str, str]] = {
    "light": {
        "ink": "#1d2733",
        "paper": "#ffffff",
        "faint": "#5a6674",
        "line": "#d5dbe2",
        "accent": "#0062a3",
        "shade": "#f3f5f8",
    },
    "dark": {
        "ink": "#e6ebf1",
        "paper": "#14191f",
        "faint": "#a3afbc",
        "line": "#37414d",
        "accent": "#6cb8f0",
        "shade": "#1c232b",
    },
}
"""`line` and `shade` are for what divides and lies behind: nothing is read from them."""
SERIES: dict[Paper, tuple[str, ...]] = {
    "light": ("#164cb6", "#bc8900", "#00a65a", "#b050a8", "#5385ec", "#aa5116", "#484216", "#818181"),
    "dark": ("#4579e6", "#ee9500", "#00b45d", "#b663a8", "#a3d0ff", "#c44811", "#fffa3c", "#b0b0b0"),
}
"""Blue, orange, green, pink, sky, vermilion, yellow and grey as Okabe and Ito's, moved away from the paper and from
each other: 20 apart at least in CIELAB, with each kind of colour blindness as without."""
RAMPS: dict[Paper, tuple[str, ...]] = {
    "light": ("#440154", "#482878", "#433e85", "#38588c", "#2d708e", "#25858e", "#1e9b8a"),
    "dark": ("#2d708e", "#25858e", "#1e9b8a", "#35b779", "#6ece58", "#b5de2b", "#fde725"),
}
"""Viridis (van der Walt and Smith 2015) without the end that the paper swallows."""


def series(place: int) -> str:
    """The name of a series' colour; after the last one the first follows."""
    return f"$series-{place % len(SERIES['light']) + 1}"


def style() -> str:
    """The variables of both papers. Prints are light."""
    light, dark = (_variables(paper) for paper in ("light", "dark"))
    return (
        f":root{{{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]):not([data-printing]){{{dark}}}}}\n"
        f":root[data-theme=dark]:not([data-printing]){{{dark}}}\n"
    )


def _variables(paper: Paper) -> str:
    named = dict(TONES[paper])
    named |= {f"series-{place}": colour for place, colour in enumerate(SERIES[paper], start=1)}
    named["ramp"] = f"linear-gradient(90deg,{','.join(RAMPS[paper])})"
    return f"color-scheme:{paper};" + "".join(f"--{name}:{value};" for name, value in named.items())
