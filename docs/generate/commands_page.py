"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
from markdown import code, page, table, text

from service.cli import main

HEAD = ("option", "meaning")


def commands_page() -> str:
    """docs/reference/commands.md."""
    return page(
        "# Reference: commands",
        "Every command with its arguments and options, as `bitfront COMMAND --help` prints them.\n"
        "Made by `make reference` from the commands; a test holds that it is up to date.\n"
        "What they are for, in which order, is told in [Running sweeps](../running.md).",
        *_parts(main, "bitfront", level=1),
    )


def _parts(command: click.Command, path: str, *, level: int) -> Iterator[str]:
    """A section for the command, and one for each below it."""
    context = click.Context(command, info_name=path)
    if level > 1:
        yield f"{'#' * level} {path}"
        yield from _paragraphs(command.help or "")
    if not isinstance(command, click.Group):
        yield _usage(command, context)
        options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
        if options:
            yield table(HEAD, [_row(option, context) for option in options])
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if below and not below.hidden:
            yield from _parts(below, f"{path} {name}", level=level + 1)


def _row(option: click.Option, context: click.Context) -> tuple[str, str]:
    names, meaning = option.get_help_record(context) or ("", "")
    meaning = re.sub(r"\s*\[default: (.*?)\]", r" Default: `\1`.", meaning)
    return code(names), text(f"{meaning} Or the environment's `{option.envvar}`." if option.envvar else meaning)


def _usage(command: click.Command, context: click.Context) -> str:
    pieces = command.collect_usage_pieces(context)
    return f"```\n{' '.join([context.info_name or '', *pieces])}\n```"


def _paragraphs(words: str) -> Iterator[str]:
    r"""Those of a command's help; what begins with \b keeps its lines, as click has it."""
    for paragraph in words.strip().split("\n\n"):
        if paragraph.startswith("\b"):
            yield f"```\n{paragraph.removeprefix(chr(8)).strip(chr(10))}\n```"
        else:
            yield text(" ".join(paragraph.split()))
