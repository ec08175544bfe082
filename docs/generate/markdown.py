"""Markdown of tables and text, read on forges and in the site alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SIGNS = re.compile(r"([|*<\[\]])")


def text(words: str) -> str:
    """Plain words with code spans in them: signs that Markdown would take for its own are escaped outside of these."""
    parts = re.split(r"(`[^`]*`)", words)
    return "".join(part.replace("|", r"\|") if part[:1] == "`" else _SIGNS.sub(r"\\\1", part) for part in parts)


def code(words: str) -> str:
    """A code span within a table."""
    return "`" + words.replace("|", r"\|") + "`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def page(*parts: str) -> str:
    """Parts with an empty line between them."""
    return "\n\n".join(part for part in parts if part) + "\n"
