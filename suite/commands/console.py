"""Where commands print: results to standard output, progress and problems to standard error.

Names of clients, files and schedulers are data: they are printed without markup, and control characters in
them are spelled out.
"""

from __future__ import annotations

import shutil
import sys

from rich.console import Console
from rich.table import Table

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""

WIDE = 160
"""Columns of a table that goes to a file or a pipe."""


def results() -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else max(WIDE, shutil.get_terminal_size().columns))


def progress() -> Console:
    """Standard error."""
    return Console(stderr=True)


def say(line: str) -> None:
    """Print a plain line of results, never wrapped."""
    print(plain(line))


def complain(line: str) -> None:
    """Print one plain line on standard error, never wrapped."""
    print(plain(line), file=sys.stderr)


def show(*tables: Table) -> None:
    """Print tables."""
    console = results()
    for table in tables:
        console.print(table)


def plain(text: str) -> str:
    """The text with control characters spelled out, so that foreign names cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
