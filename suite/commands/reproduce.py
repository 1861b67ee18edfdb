"""`suite reproduce`: published figures and tables made again."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suite.commands.console import INTERRUPTED, complain, progress, say, show

if TYPE_CHECKING:
    from suite.reproduce.reproduction import Reproduction


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="What to reproduce, or `all`; nothing lists what there is.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the comparisons; by default results/reference."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Cells run at once.", show_default="one for each core")
    ] = os.cpu_count() or 1,
) -> None:
    """Make a figure or table of a paper again: the paper's values beside ours, and what agrees.

    Cells go to results/runs and are kept when finished, so the same command resumes.

    Example: suite reproduce vtc-table2
    """
    from suite.reproduce import making
    from suite.reproduce.reproduction import chosen

    if name is None:
        _list()
        return
    wanted = chosen(name)
    for one in wanted:
        making.check(one)
    for one in wanted:
        _run(one, jobs)
        with progress().status(f"comparing {one.name} with the paper"):
            folder = making.write(one, out or making.REFERENCE)
        say(f"written: {folder}")


def _list() -> None:
    from rich.table import Table

    from suite.reproduce.reproduction import available

    table = Table("name", "what it makes again", title="suite reproduce NAME, or all", title_justify="left")
    for name, one in available().items():
        table.add_row(name, one.title)
    show(table)


def _run(one: Reproduction, jobs: int) -> None:
    """Run what it needs. Leaves with an exit code if that is interrupted or a cell fails."""
    from suite.reproduce import making

    outcomes = making.run(one, jobs, shlex.join(["suite", *sys.argv[1:]]), progress())
    for outcome in outcomes:
        for slug, reason in outcome.failed.items():
            complain(f"failed: {slug}: {reason}")
        if outcome.interrupted:
            complain("interrupted: finished cells are kept; the same command resumes")
            raise typer.Exit(INTERRUPTED)
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)
