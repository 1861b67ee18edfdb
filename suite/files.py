"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from suite.errors import BadInput

DRAFT = ".suite-draft-"
"""How the names of unfinished files and folders begin; what begins so belongs to the suite."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place in one step.

    An interrupt or an error leaves `path` as it was and no temporary file behind. Raises `BadInput` naming
    `path` if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=DRAFT, suffix=path.suffix)
        os.close(handle)
        draft = Path(name)
        try:
            write(draft)
            draft.chmod(0o644)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def probe(folder: Path) -> None:
    """Make a folder and, for a moment, a draft in it. Raises `BadInput` if that cannot be done."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=DRAFT):
            pass


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `BadInput` that names `path` and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"{path}: cannot be written: {reason}; free the place or choose another") from None
