"""Which code a sweep was begun with."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

REVISION_VARIABLE = "BITFRONT_REVISION"
"""Set for a submitted sweep: the job's own folder is in no repository."""
TIMEOUT_S = 10


def revision(folder: Path) -> str:
    """Git commit of the repository that `folder` is in, with "-dirty" where tracked files differ; "" outside of one."""
    given = os.environ.get(REVISION_VARIABLE)
    if given is not None:
        return given
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def version() -> str:
    """Bitfront's own; "" where its code was sent along without being installed."""
    try:
        return importlib.metadata.version("bitfront")
    except importlib.metadata.PackageNotFoundError:
        return ""
