"""What numbers may depend on besides the code and the settings: machine, device, packages, threads."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "ray", "optuna")
"""Those whose versions may change a result."""


def environment(*, device: str, threads: int, workers: int) -> dict[str, str]:
    """Of this process: equal where equal code and settings are to give equal bits."""
    return {
        "machine": f"{platform.machine()} {_processor()}".rstrip(),
        "device": device,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "threads": str(threads),
        "workers": str(workers),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    """Its model, as Linux knows it: libraries choose their loops by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
