"""The tutorial does what it says: its files are written, its commands run in turn, their output is looked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
EXPONENT = re.compile(r"(?<=\d)e[+-]\d+")
HASH = re.compile(r"\bp?[0-9a-f]{10,}\b")
"""Of a policy, and the name that a promotion gives its run."""
RANGE = re.compile(r"(from [\d.]+|[\d.]+ to [\d.]+) ")
"""Who is ahead from one measured number to the next is another one on another processor."""
STATUS = re.compile(r"  # ends with status (\d)$")


def words(line: str) -> list[str]:
    """What of a line is the same on every machine: words, without numbers, hashes and the frames of tables."""
    line = EXPONENT.sub("", HASH.sub(" ", line))
    return [word for word in re.findall(r"[A-Za-z][A-Za-z-]+", line) if not re.fullmatch(r"[a-f]+", word)]


def missing(told: str, documented: list[str]) -> list[str]:
    """Documented lines whose words stand, in this order, in no line of the output."""
    lines = [" ".join(words(line)) for line in told.splitlines()]
    lines.append(" ".join(words(told)))  # a sentence may be broken elsewhere
    wanted = [" ".join(words(line.replace("…", ""))) for line in documented]
    return [line for line in wanted if not any(line in found for found in lines)]


def commands(block: str) -> list[tuple[str, list[str]]]:
    """Each command of a console block, with the lines of its output that have words and are the same everywhere."""
    parts = [part.split("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(lines[0], [line for line in lines[1:] if words(line) and not RANGE.match(line)]) for lines in parts]


def test_what_a_page_says_is_missed_where_it_is_not_printed() -> None:
    assert (
        missing("quickstart: finished\n  trials 11 done of 12", ["quickstart: finished", "  trials   12 done of 12"])
        == []
    )
    assert missing("quickstart: finished", ["quickstart: stopped"]) == ["quickstart stopped"]
    assert missing("1/3 done | pb720ae435181 top-1 56.55 %", ["2/3 done | p5a967d37a3b1 top-1 56.69 %"]) == []
    assert missing("by 3.6e-05 on average and 0.015 at most", ["by 1.1e-07 on average and 1.9e-06 at most"]) == []


@pytest.mark.long
def test_the_commands_of_the_tutorial_print_what_it_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ran = 0
    for language, content in BLOCK.findall(PAGE):
        first, _, rest = content.partition("\n")
        if language in ("yaml", "python"):
            (tmp_path / first.removeprefix("# ")).write_text(rest, encoding="utf-8")
        if language != "console":
            continue
        for command, documented in commands(content):
            status = STATUS.search(command)
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            told = done.stdout + done.stderr
            assert done.returncode == (int(status[1]) if status else 0), f"$ {command}\n{told}"
            assert missing(told, documented) == [], f"$ {command}\n{told}"
            ran += 1
    assert ran >= 15
