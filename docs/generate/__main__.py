"""Writes the pages of docs/ that follow from the code: `python docs/generate`; `--check` says which are not up to date.

Reads registries, settings' classes and commands; imports neither torch nor ray nor mlflow.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path

from architecture_picture import architecture_picture
from commands_page import commands_page
from settings_pages import sweep_page, template_page
from support_page import support_page

DOCS = Path(__file__).parents[1]
PAGES: dict[str, Callable[[], str]] = {
    "reference/sweep.md": sweep_page,
    "reference/finetune.md": template_page,
    "reference/commands.md": commands_page,
    "support.md": support_page,
    "pictures/architecture.svg": architecture_picture,
}


def main() -> int:
    """Status 1 where a page is not what it would be made now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; show what differs.")
    is_check = parser.parse_args().check
    stale = 0
    for name, make in PAGES.items():
        path, made = DOCS / name, make()
        kept = path.read_text(encoding="utf-8") if path.exists() else ""
        if kept != made:
            stale += 1
            if is_check:
                there, here = f"docs/{name}", f"docs/{name} as make reference writes it"
                sys.stdout.writelines(
                    difflib.unified_diff(kept.splitlines(True), made.splitlines(True), there, here, n=1)
                )
            else:
                path.write_text(made, encoding="utf-8")
                print(f"docs/{name}: written")
    return int(is_check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
