"""`suite new ...`: files to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.commands.console import say

app = typer.Typer(no_args_is_help=True)


@app.callback()
def new() -> None:
    """Write a file to begin with."""


@app.command()
def scheduler(
    path: Annotated[Path, typer.Argument(help="File to write, such as my_idea.py.")],
    cls: Annotated[
        str | None, typer.Option("--class", help="Name of the class.", show_default="from the file's name")
    ] = None,
) -> None:
    """Write a scheduler that works and explains itself: change it into yours, then run it as it says.

    Example: suite new scheduler my_idea.py
    """
    from suite import templates

    found = templates.scheduler(path, cls)
    say(f"written: {path}, the class {found}")
    say(f"try it:  suite run --scheduler {path}:{found} --against standard")
