"""Public traces that are no part of this repository: where their files are looked for, what a header says."""

from __future__ import annotations

import os
from abc import ABC
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from workloads.family import Family
from workloads.part import Name

_REPOSITORY = Path(__file__).resolve().parents[1]


class Recorded(Family, ABC):
    """A workload that somebody recorded; `file` is found as by `located`."""

    file: Name

    @cached_property
    def path(self) -> Path:
        """Where the file is. Raises `ValueError` if it is nowhere."""
        return located(self.file)

    @model_validator(mode="after")
    def _file_is_there(self) -> Self:
        _ = self.path
        return self

    def choices(self) -> dict[str, Any]:
        """The parameters and the digest of the file."""
        digest = sha256(self.path.read_bytes()).hexdigest()
        return super().choices() | {"file": self.path.name, "file_sha256": digest}


def located(file: str) -> Path:
    """The path of a trace file, given from the current folder or from the folder of traces.

    Raises `ValueError` naming the field `file` and both places if it is in neither.
    """
    places = [Path(file), _traces() / file]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        f"file: {file!r} is neither in the current folder nor in {_traces()}; set SUITE_TRACES to "
        f"the folder that holds it"
    )


def _traces() -> Path:
    """SUITE_TRACES, seen from the current folder; by default shared/traces beside the repository."""
    given = os.environ.get("SUITE_TRACES")
    return Path(given).resolve() if given else (_REPOSITORY / "../shared/traces").resolve()
