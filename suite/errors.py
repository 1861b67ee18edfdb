"""The one error a user is meant to see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """Input the suite cannot use. The message names the file, line or field, and the mend.

    The command line prints it on one line and exits with code 2; a traceback is never shown for it.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known name, or lists them all when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
