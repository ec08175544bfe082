"""Storages that fail for real: a small one in memory that fills up, that is mounted read-only, that goes away."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrate.conftest import bitfront, local_ray

__all__ = ["bitfront", "local_ray"]


class Volume:
    """A file system of its own at `path`; taken away at the end of the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / ".filler"

    def fill(self, *, leave: int = 0) -> None:
        """Takes all of its space but so many bytes."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
            file.truncate(max(0, file.tell() - leave))

    def free(self) -> None:
        """Gives the space back."""
        self._filler.unlink()

    def read_only(self) -> None:
        """Whoever opens a file in it from now on cannot write."""
        mount("--bind", str(self.path), str(self.path))
        mount("-o", "remount,bind,ro", str(self.path))

    def writable(self) -> None:
        """As before `read_only`."""
        subprocess.run(["umount", str(self.path)], check=True)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    path = tmp_path / "st"
    path.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=24m", "bitfront-test", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield Volume(path)
    while subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True).returncode == 0:
        pass
