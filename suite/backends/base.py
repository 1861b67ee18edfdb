"""The backend protocol: one method that serves a trace under a scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from suite.policies import SchedulerSpec
from suite.trace import Trace

Progress = Callable[[float], None]
"""Called now and then with the share of requests that are done, 0 to 1."""


@dataclass(frozen=True)
class Outcome:
    """What serving a trace gave: the frames of `suite.results`, and the backend's word about the run."""

    requests: pd.DataFrame
    service: pd.DataFrame
    engine: dict[str, Any]


class Backend(Protocol):
    """A pydantic model of the backend's settings that can serve a trace."""

    def run(self, trace: Trace, scheduler: SchedulerSpec, progress: Progress) -> Outcome:
        """Serve every request of the trace. Raises `BadInput` for settings that cannot work."""
