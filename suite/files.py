"""Files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
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


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write into a temporary folder beside `folder`, then put it in the place of what was there.

    An interrupt or an error leaves nothing half-written behind. Raises `BadInput` naming `folder` if it
    cannot be written.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=DRAFT))
        old = draft.with_name(f"{draft.name}.old")
        try:
            draft.chmod(0o755)
            fill(draft)
            if folder.exists():
                folder.replace(old)
            draft.replace(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def unpack(files: Mapping[Path, bytes], folder: Path) -> None:
    """Write files below a folder, by their path there."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


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
