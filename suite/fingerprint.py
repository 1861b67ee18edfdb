"""Digests of what decides an outcome beside the words of an experiment: sources, and files that it names."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel

import baselines
import suite

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
    package = Path(suite.__file__).parent
    roots = [Path(next(iter(baselines.__path__))), package / "backends"]
    found = sorted(path for root in roots for path in root.rglob("*") if path.suffix in (".py", ".yaml"))
    sha = sha256()
    for path in [*(package / name for name in _DECISIVE), *found]:
        sha.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()
