"""The site of the documentation: `make docs`. Its pages are the repository's Markdown files where they lie.

The source folder is the repository's root, so that a link such as `../benchmarks/README.md` is the same on a forge and
in the site. Whatever leads nowhere, page, section or file, is a warning, and `make docs` ends on warnings. Nothing is
fetched, neither when the site is made nor when it is read.
"""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

project = "Bitfront"
author = "the authors of Bitfront"
project_copyright = author
version = release = installed_version("bitfront")

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "**/README.md"]
exclude_patterns = [
    "docs/_build", ".*", "**/node_modules", "build", "dist", "tests", "bitfront-sweeps", "mlruns", "datasets",
    "service", "trainables", "dashboards", "docker/**/data",
]  # fmt: skip
"""Folders that are not looked into; without them a search through `.venv` takes longer than the pages."""

nitpicky = True
smartquotes = False  # `--set` is two hyphens
highlight_language = "none"
myst_heading_anchors = 4  # sections are named as forges name them

html_theme = "furo"
html_title = "Bitfront"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]

_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+\.md)\)")
_ANY_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)\)")


def navigation(index: str) -> str:
    """The tables of contents that follow from the page's own lists: one for each heading, a page for each item."""
    found = []
    for part in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        caption, _, content = part.partition("\n")
        pages = [f"{title} <{path}>" for title, path in _LINK.findall(content)]
        if pages:
            found.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n\n".join(found)


def without_folders(text: str, folder: Path) -> str:
    """The page with links to folders, which forges show and a site does not have, led to READMEs or taken off."""

    def led(link: re.Match[str]) -> str:
        if not (folder / link[2]).is_dir():
            return link[0]
        return f"[{link[1]}]({link[2].rstrip('/')}/README.md)" if (folder / link[2] / "README.md").exists() else link[1]

    return _ANY_LINK.sub(led, text)


def _adapt(app: Any, page: str, source: list[str]) -> None:
    """The pages are plain Markdown, read on forges too; what Sphinx wants besides is added as they are read."""
    source[0] = without_folders(source[0], Path(app.env.doc2path(page)).parent)
    if page == root_doc:
        source[0] += f"\n\n{navigation(source[0])}\n"


def _add_entrance(app: Any, error: Exception | None) -> None:
    """The root page lies in docs/, as its source does: a browser that opens the folder is led there."""
    if not error and app.builder.name == "html":
        target = f"{root_doc}.html"
        text = f'<!doctype html><meta http-equiv="refresh" content="0; url={target}"><a href="{target}">{project}</a>\n'
        (Path(app.outdir) / "index.html").write_text(text)


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("source-read", _adapt)
    app.connect("build-finished", _add_entrance)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
