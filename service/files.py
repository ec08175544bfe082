"""A storage's files: written whole or not at all, lines added, what a crash left of them read around, locked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Adds an object of finite numbers, strings and the like as a line of JSON, as `append` does."""
    append(path, f"{json.dumps(content, allow_nan=False)}\n".encode())


def append(path: Path, line: bytes) -> None:
    """Adds a line, whole or not at all: what a full disk took of it is taken away again."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        # A line that a crash cut off must not run into this one.
        torn = size and not _ends_a_line(path)
        content = b"\n" + line if torn else line
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; what is none, as a line that a crash cut off, is left out."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    found = []
    try:
        # At once: histories are read by the thousand.
        found = json.loads(f"[{','.join(lines)}]")
    except (ValueError, RecursionError):
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def printable(text: str) -> str:
    """The text with what no encoding has, such as a file name's undecodable bytes, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all, and survives a power cut."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def write_once(path: Path, content: Mapping[str, Any]) -> None:
    """Writes as `write_json`, unless the file is there: of several writers the first one's is kept."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    write_json(unfinished, content)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object of finite numbers, strings and the like."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether an open file's lock could be taken at once; it is held until all copies of the descriptor are closed."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
