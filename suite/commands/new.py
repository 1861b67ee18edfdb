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


_File = Annotated[Path, typer.Argument(help="File to write, such as my_idea.py.")]
_Class = Annotated[
    str | None, typer.Option("--class", help="Name of the class.", show_default="from the file's name")
]


@app.command()
def scheduler(path: _File, cls: _Class = None) -> None:
    """Write a scheduler that works and explains itself: change it into yours, then run it as it says.

    Example: suite new scheduler my_idea.py
    """
    from suite import templates

    found = templates.scheduler(path, cls)
    say(f"written: {path}, the class {found}")
    say(f"try it:  suite run --scheduler {path}:{found} --against standard")


@app.command()
def router(path: _File, cls: _Class = None) -> None:
    """Write a router that works and explains itself: change it into yours, then run it as it says.

    Example: suite new router my_router.py
    """
    from suite import templates

    found = templates.router(path, cls)
    say(f"written: {path}, the class {found}")
    say(f"try it:  suite run -w chat -s {path}:{found}+dlpm -s d2lpm+dlpm --set backend.replicas=4")
