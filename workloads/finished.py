"""A finished trace of this suite: as it stands in its file, or shaped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from suite import trace
from suite.trace import Request, Trace
from workloads.family import Family

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
"""What the names of finished traces end in."""


class Finished(Family):
    """The trace in `file`, seen from the current folder. Without `shape` it is the same under every seed."""

    file: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _file_is_there(self) -> Self:
        if not Path(self.file).is_file():
            raise ValueError(f"file: no such trace file {self.file!r}")
        return self

    @property
    def fixed(self) -> bool:
        """Whether every seed gives the same trace."""
        return self.shape is None or not self.shape.draws

    def unshaped(self, seed: int) -> Trace:
        """The trace as it stands in the file, its own seed in its header. Raises `BadInput`."""
        return trace.read(Path(self.file))

    def requests(self, seed: int) -> tuple[Request, ...]:
        """Its requests, in the order of the file."""
        return self.unshaped(seed).requests
