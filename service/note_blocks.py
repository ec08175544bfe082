"""The part of a run's note that tells of other runs: a heading with a list, kept whoever writes the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Heading = Literal["Promoted by", "Finetuned by", "Searched by", "Found by"]
"""Of a sweep's run and its trials' runs, and of a promotion's run and its trials' runs."""
BLOCK_LENGTH = 1_200
"""Characters of a block at most: notes leave so much room for it."""
_BLOCK = re.compile(r"\n*\*\*(?:Promoted|Finetuned|Searched|Found) by\*\*\n\n(?:- .*(?:\n|\Z))+")


def block(heading: Heading, lines: Sequence[str]) -> str:
    """The heading with a list of as many lines as have room; empty without lines."""
    if not lines:
        return ""
    kept: list[str] = []
    length = len(heading) + 40
    for line in lines:
        length += len(line) + 3
        if length > BLOCK_LENGTH:
            break
        kept.append(f"- {line}")
    if len(kept) < len(lines):
        kept.append(f"- and {len(lines) - len(kept)} more")
    return f"**{heading}**\n\n" + "\n".join(kept)


def block_of(note: str) -> str:
    """The block of a note; empty where it has none."""
    found = _BLOCK.search(note)
    return found[0].strip() if found else ""


def with_block(note: str, text: str) -> str:
    """The note with this block at its end, instead of the one that it may have had; all else stays."""
    rest = _BLOCK.sub("\n", note).strip("\n")
    parts = [part for part in (rest, text) if part]
    return "\n\n".join(parts) + "\n" if parts else ""
