"""The command `shardfeed`: its sub-commands, and what becomes of their errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from shardfeed_cli.advise import advise
from shardfeed_cli.bench import bench
from shardfeed_cli.digest import digest
from shardfeed_cli.index import index
from shardfeed_cli.info import info
from shardfeed_cli.keygen import keygen
from shardfeed_cli.pack import pack
from shardfeed_cli.preview import preview
from shardfeed_cli.push import push
from shardfeed_cli.ray import commands as ray_commands
from shardfeed_cli.serve import serve
from shardfeed_cli.versions import software
from shardfeed_wire.errors import ShardfeedError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Prints what shardfeed raises on purpose as one message; anything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ShardfeedError as error:
            if ctx.params["debug"]:
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except EOFError as error:  # which typer would take for the end of a prompt, and say no more than "Aborted!"
            raise RuntimeError(f"something ended too early: {error}") from error


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (serve, index, pack, info, preview, digest, bench, keygen, push, advise):
    app.command()(_command)
app.add_typer(ray_commands, name="ray")


def main() -> None:
    """Run the command line and exit: with 0, with 1 after an error, with 2 where the command was not understood."""
    app(prog_name="shardfeed")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(software())
        raise typer.Exit


@app.callback()
def _shardfeed(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Feed trainers from WebDataset shards: loader servers, and what they need."""
