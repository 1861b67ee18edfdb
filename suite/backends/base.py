"""The backend protocol: one method that serves a trace under a scheduler."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pandas as pd

from suite.policies import SchedulerSpec
from suite.trace import Trace


class Progress(Protocol):
    """Called now and then with the share of requests that are done, 0 to 1, and a word about the run."""

    def __call__(self, share: float, note: str = "") -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What serving a trace gave: the frames of `suite.results`, and the backend's word about the run.

    `invalid` are the reasons, if any, why this must not be shown as a result; what was measured is kept.
    """

    requests: pd.DataFrame
    service: pd.DataFrame
    engine: dict[str, Any]
    streams: pd.DataFrame | None = None
    invalid: tuple[str, ...] = ()


KEPT = ExitStack()
"""What backends keep running between the cells of an experiment; whoever runs cells closes it in the end.
At the latest it is closed with the process."""
atexit.register(KEPT.close)


class Incomplete(Exception):
    """A run that broke off. The message says why and names the log; `outcome` is what was measured."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


class Backend(Protocol):
    """A pydantic model of the backend's settings that can serve a trace."""

    exclusive: ClassVar[bool]
    """True if it measures real time and so needs the machine to itself: its cells run one by one."""

    def run(self, trace: Trace, scheduler: SchedulerSpec, logs: Path, progress: Progress) -> Outcome:
        """Serve every request of the trace; logs go into the folder `logs`, made when needed.

        Raises `BadInput` for settings that cannot work, `Incomplete` if the run broke off.
        """
        ...
