"""Functions of a user's own, named `module:function`, as a sweep names its network or its data set.

A module is looked for in the current folder first, then wherever Python looks. What fails in it is the user's to see:
type, message and place, without a traceback of ours.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.errors import BitfrontError, ConfigError, did_you_mean

_NOT_THE_USERS = {Path(__file__).parent, Path(importlib.__file__).parent}


def is_import_path(name: str) -> bool:
    """Whether `name` is a `module:function` and no name of a registry."""
    return ":" in name


def check_import_path(name: str) -> None:
    """Raises ConfigError unless `name` could be a `module:function`; nothing is imported."""
    module, _, function = name.partition(":")
    is_path = module.endswith(".py") or "/" in module
    if is_path or not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        hint = "; leave out '.py', and write '.' for '/'" if is_path else ""
        raise ConfigError(f"{name!r} is no import path; give module:function, as in my_networks:small{hint}.")


def load_function(name: str, *, where: str) -> Callable[..., Any]:
    """The function (or class) that `name`, a `module:function`, stands for.

    The current folder is put on Python's path, as servers do that are given an application by its import path.

    Args:
        where: the setting that has the name, such as `network.name`; errors begin with it.

    Raises ConfigError where the module is not found or fails, or has no such function.
    """
    try:
        check_import_path(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109 (a string, as the path has them)
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    # The file may be younger than the last look into its folder.
    importlib.invalidate_caches()
    with user_errors(name, where=where):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"{where}: {name!r}: {error}; looked in {', '.join(_folders())} and among the installed packages. "
                f"Start from the folder that holds the module, or put that folder on PYTHONPATH."
            ) from None
    found = getattr(module, function_name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{where}: {module_name} ({module.__file__}) has no {function_name!r}{did_you_mean(function_name, known)}."
        )
    if not callable(found):
        raise ConfigError(f"{where}: {name!r} is a {type(found).__name__}; give the name of a function.")
    return found


def local_sources(names: Iterable[str]) -> list[Path]:
    """What lies in the current folder of the code that import paths among `names` stand for, to send it elsewhere.

    The named packages, and all modules of the folder, as one may import another; nothing where no name is a path.
    """
    folder = Path.cwd()
    tops = {name.partition(":")[0].partition(".")[0] for name in names if is_import_path(name)}
    packages = [folder / top for top in sorted(tops) if (folder / top).is_dir()]
    return [*packages, *sorted(folder.glob("*.py"))] if tops else []


@contextmanager
def user_errors(name: str, *, where: str) -> Iterator[None]:
    """Turns what a user's code raises, while it is imported or called, into a ConfigError with its file and line."""
    try:
        yield
    except BitfrontError:
        raise
    except (Exception, SystemExit) as error:
        place = _place(error)
        raise ConfigError(
            f"{where}: {name!r} failed{f' at {place}' if place else ''}: {type(error).__name__}: {error}"
        ) from None


def _place(error: BaseException) -> str:
    """file:line of the last of the user's own code that ran, however deep in a library the error came up.

    Where none is known from its folder, of the last code that ran; empty where that is ours, as of a call that fails.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and not set(Path(frame.filename).parents) & _NOT_THE_USERS
    ]
    shown = [(file, line) for file, line in frames if not _is_pythons(file)] or frames
    return f"{shown[-1][0]}:{shown[-1][1]}" if shown else ""


def _folders() -> list[str]:
    """Where a module of the user may lie: the folders of Python's path that are not Python's own."""
    folders = [Path(entry or os.getcwd()) for entry in sys.path]  # noqa: PTH109
    return [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir() and not _is_pythons(folder)]


def _is_pythons(path: Path) -> bool:
    """Whether a file or folder came with Python or was installed."""
    own = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    return bool(own & {path.resolve(), *path.resolve().parents})
