"""Public traces, which are no part of this repository: where their files are, what a header says of them."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Sequence
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.random import Generator
from pydantic import model_validator

from workloads.family import Family
from workloads.parts.part import Count, Name

ANONYMOUS = "anonymous"
"""The one client of a trace that names none; `shape.assign` deals its sessions to clients."""
NOTHING_SHARED = "each prompt is a segment of its own; nothing is shared"
"""The rule for traces that say nothing of prefixes."""

_REPOSITORY = Path(__file__).resolve().parents[2]


class Recorded(Family, ABC):
    """A workload that somebody recorded; `file` is found as by `located`.

    A subclass names its public SOURCE and that data's LICENCE; `file` is a folder if it says FOLDER.
    """

    SOURCE: ClassVar[str]
    LICENCE: ClassVar[str]
    FOLDER: ClassVar[bool] = False

    file: Name

    @cached_property
    def path(self) -> Path:
        """Where the file or folder is. Raises `ValueError` if it is nowhere."""
        path = located(self.file)
        if path.is_dir() != self.FOLDER:
            wrong, right = ("a file", "a folder") if self.FOLDER else ("a folder", "a file")
            raise ValueError(f"file: {self.file!r} is {wrong}; this family reads {right}")
        return path

    @model_validator(mode="after")
    def _file_is_there(self) -> Self:
        _ = self.path
        return self

    def part(self) -> str:
        """Which part of the file is read, for the line of provenance."""
        return "all of it"

    def choices(self) -> dict[str, Any]:
        """The parameters, the digest of the file, and one line on where it comes from."""
        return super().choices() | {
            "file": self.path.name,
            "file_sha256": digest(self.path),
            "provenance": f"{self.SOURCE}; licence {self.LICENCE}; {self.path.name}, {self.part()}",
        }


class RecordedRows(Recorded, ABC):
    """A recorded workload with one row for each request; `limit` keeps the first rows only."""

    limit: Count | None = None

    def part(self) -> str:
        """Which rows are read."""
        return "all rows" if self.limit is None else f"the first {self.limit} rows"


class QuantisedRows(RecordedRows, ABC):
    """A recorded workload whose times are ticks, so that the order inside a tick is arbitrary.

    `spread` says where in its tick a request arrives: anywhere (`uniform`, seeded, each request alone) or at
    its beginning (`none`). A tick lasts until the next, but no longer than TICK seconds if that is known.
    """

    TICK: ClassVar[float | None] = None

    spread: Literal["uniform", "none"] = "uniform"

    def choices(self) -> dict[str, Any]:
        """What every recorded workload says, and how times were spread, in words."""
        longest = f" and within {self.TICK:g} s" if self.TICK else ""
        return super().choices() | {
            "arrival_rule": f"each request alone, anywhere before the next distinct timestamp{longest}"
            if self.spread == "uniform"
            else "as in the file",
        }

    def spread_out(self, stamps: Sequence[float], rng: Generator) -> list[float]:
        """The times of rows in seconds, each moved within its tick, to the microsecond."""
        times = np.asarray(stamps, dtype=float)
        if self.spread == "uniform" and len(times):
            ticks, place = np.unique(times, return_inverse=True)
            times = times + rng.random(len(times)) * self._lengths(ticks)[place]
        seconds: list[float] = np.round(times, 6).tolist()
        return seconds

    def _lengths(self, ticks: np.ndarray) -> np.ndarray:
        """How long each tick lasts; the last one, where it is not known, as long as is usual."""
        gaps = np.diff(ticks)
        last = self.TICK or (np.median(gaps) if len(gaps) else 0.0)
        return np.minimum([*gaps, last], self.TICK or np.inf)


def located(file: str) -> Path:
    """The path of a trace file or folder, given from the current folder or from the folder of traces.

    Raises `ValueError` naming the field `file` and both places if it is in neither.
    """
    places = [Path(file), traces_folder() / file]
    for place in places:
        if place.exists():
            return place
    raise ValueError(
        f"file: {file!r} is neither in the current folder nor in {traces_folder()}; set SUITE_TRACES to "
        f"the folder that holds it, or see `suite workload fetch`"
    )


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and digests of its files in order."""
    if path.is_dir():
        lines = (f"{one.relative_to(path).as_posix()} {digest(one)}\n" for one in files_in(path))
        return sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, sorted; hidden ones are left out."""
    there = sorted(folder.rglob("*"))
    return [
        one
        for one in there
        if one.is_file() and not any(part.startswith(".") for part in one.relative_to(folder).parts)
    ]


def traces_folder() -> Path:
    """SUITE_TRACES, seen from the current folder; by default shared/traces beside the repository."""
    given = os.environ.get("SUITE_TRACES")
    return Path(given).resolve() if given else (_REPOSITORY / "../shared/traces").resolve()
