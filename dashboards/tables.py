"""Tables of a page: sortable, linked to runs, with numbers that line up."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """What a cell shows, and by what it is sorted."""

    text: str
    value: float | None = None
    """The number that `text` shows; None for words."""
    trial: str = ""
    """Id of the trial that a click selects, and whose run is linked."""
    runs: tuple[str, ...] = ()
    """Keys of further runs that are linked behind the text."""


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str) -> str:
    """A table whose heads sort it. A column is sorted by numbers where a cell has one, those without one last."""
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{_escape(name)}</button></th>' for name in heads
    )
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_escape(caption)}"><table class="sortable">'
        f"<caption>{_escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names with what they are, as a list; those that are empty are left out."""
    items = "".join(f"<div><dt>{_escape(k)}</dt><dd>{_escape(v)}</dd></div>" for k, v in pairs if v)
    return f'<dl class="facts">{items}</dl>'


def short(value: object, digits: int = 4) -> str:
    """A setting as people read it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def short_names(names: Sequence[str]) -> list[str]:
    """Settings without their section, where that leaves them different; the method's name is the method."""
    last = ["method" if name == "method.name" else name.split(".")[-1] for name in names]
    return [one if last.count(one) == 1 else name for one, name in zip(last, names, strict=True)]


def number(value: object, text: str = "") -> Cell:
    """A cell of any setting or metric: numbers are sorted as such."""
    shown = text or short(value)
    return Cell(shown, float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else Cell(shown)


def _cell(cell: Cell) -> str:
    if cell.trial:
        inner = f'<button type="button" class="trial" data-trial="{_escape(cell.trial)}">{_escape(cell.text)}</button>'
        return f'<td data-value="{cell.value}">{inner}<span class="run" data-run="{_escape(cell.trial)}"></span></td>'
    if cell.runs:
        places = " ".join(f'<span class="run" data-run="{_escape(key)}"></span>' for key in cell.runs)
        return f'<td class="words">{_escape(cell.text)} {places}</td>'
    if cell.value is None:
        return f'<td class="words">{_escape(cell.text)}</td>'
    return f'<td data-value="{cell.value:.9g}">{_escape(cell.text)}</td>'


def _escape(text: str) -> str:
    return html.escape(text)
