"""Schedulers by name, by `path/to/file.py:Class`, or from entry points; checked parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from baselines.scheduler import Scheduler


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler chosen by a user: how it is shown, where its class lives, its parameters."""

    name: str
    target: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Scheduler:
        """A fresh instance."""
        raise NotImplementedError
