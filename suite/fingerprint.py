"""Digests of what decides an outcome beside the words of an experiment: sources, and files that it names."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

import baselines
import suite
import workloads

_DECISIVE = (
    "trace.py", "content.py", "dialect.py", "client.py", "stream.py", "replay.py", "metrics/sharing.py"
)  # fmt: skip
"""Modules whose change may change what a run leaves behind, besides backends and baselines."""


def named_files(settings: BaseModel) -> list[Path]:
    """The files that the settings name."""
    return [value for _, value in settings if isinstance(value, Path) and value.is_file()]


def files_digest(settings: BaseModel) -> str:
    """SHA-256 over the content of the files that the settings name."""
    digests = (sha256(path.read_bytes()).digest() for path in named_files(settings))
    return sha256(b"".join(digests)).hexdigest()


@cache
def sources_digest() -> str:
    """SHA-256 over the sources whose change may change an outcome."""
    package = _folder(suite)
    found = _found(_folder(baselines), package / "backends")
    return _digest([*(package / name for name in _DECISIVE), *found])


@cache
def suite_digest() -> str:
    """SHA-256 over all sources: what machines that work on one experiment must have in common."""
    return _digest(_found(*map(_folder, (baselines, suite, workloads))))


def _folder(package: ModuleType) -> Path:
    return Path(next(iter(package.__path__)))


def _found(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml"))


def _digest(paths: Iterable[Path]) -> str:
    sha = sha256()
    for path in paths:
        sha.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()
