"""Plotly's own script, packed so that a page carries 2 MB of it instead of 5; the page unpacks it when it draws."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from importlib import resources


@cache
def packed_bundle() -> str:
    """The script, gzipped, in base64. The same bytes every time."""
    script = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, compresslevel=9, mtime=0)).decode()
