"""What the commands share: how errors end them, and arguments that several have."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from trainables.errors import BitfrontError

if TYPE_CHECKING:
    from rich.console import Console

USAGE_ERROR, RUN_ERROR, INTERRUPT_STATUS = 2, 1, 130
RECORD_BEHIND = 4
"""All is done that a status of 0 tells of, but not recorded in MLflow yet."""
DEFAULT_STORAGE = "bitfront-sweeps"
PIPE_WIDTH = 160
"""Characters of a line where there is no terminal."""


class Commands(click.Group):
    """Turns our errors into one message on standard error."""

    def invoke(self, ctx: click.Context) -> Any:
        """As the group does; status 1 for errors of a sweep that has begun, 2 for all others, 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except BitfrontError as error:
            click.echo(f"bitfront: {error}", err=True)
            ctx.exit(USAGE_ERROR if not ctx.obj else RUN_ERROR)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads any more
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"bitfront: {where}{error.strerror or error}", err=True)
            ctx.exit(USAGE_ERROR if not ctx.obj else RUN_ERROR)
        except KeyboardInterrupt:
            click.echo("bitfront: interrupted", err=True)
            ctx.exit(INTERRUPT_STATUS)


def sweep_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of a sweep in the storage."""
    from service.sweeps import list_sweeps

    with contextlib.suppress(BitfrontError):
        storage = StoragePath().convert(ctx.params.get("storage") or DEFAULT_STORAGE, None, None)
        names = [store.folder.name for store in list_sweeps(storage)]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return []


def new_console() -> Console:
    """For tables: as wide as the terminal, or PIPE_WIDTH where there is none."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=PIPE_WIDTH)


class StoragePath(click.ParamType[Path]):
    """A storage's folder; of an address this machine's working copy."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The folder, relative where it was given so."""
        from service.object_store import is_url
        from service.working_copy import located

        return located(str(value)) if is_url(str(value)) else Path(value)


sweep_argument = click.argument("name", metavar="SWEEP", shell_complete=sweep_names)
storage_option = click.option(
    "--storage",
    default=DEFAULT_STORAGE,
    show_default=True,
    envvar="BITFRONT_STORAGE",
    type=StoragePath(),
    help="The sweeps' storage: a folder, or s3://BUCKET/FOLDER.",
)
address_option = click.option(
    "--address", default="", help="A Ray cluster: 'auto' on one of its machines, or host:port of its head."
)
overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value for a key of the YAML, such as method.eta=0.1; again for more.",
)
smoke_option = click.option(
    "--smoke", is_flag=True, help="The short run that the YAML describes under 'smoke', as a sweep of its own."
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
force_option = click.option("--force", is_flag=True, help="Replace the output file where it exists.")
