"""The service log, and when tokens came, while they are being written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from suite.backends.simulator.live import Live

Row: TypeAlias = tuple[float, str, int, int, int, int]
"""Time, client, and tokens: extend, cached, recomputed, output; see `suite.results`."""


class Journal:
    """The rows of the service log in time order. Decode steps pile up until `settle`.

    For the streams (`suite.backends.simulator.streams`): `stretches` of decode steps, each with the time it
    ended at and its steps, and `first_tokens`, those that end a prefill, also one after a preemption.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.stretches: list[tuple[float, int]] = []
        self.first_tokens: list[tuple[float, Live]] = []
        self._decoded = 0
        self._until = 0.0

    def decoded(self, time: float, steps: int) -> None:
        """`steps` more decode steps ended at `time`; their rows wait for `settle`."""
        self.stretches.append((time, steps))
        self._decoded += steps
        self._until = time

    def settle(self, by_client: Mapping[str, int]) -> None:
        """Write the rows of the decode steps so far, in which each client had this many requests decoding."""
        if self._decoded:
            steps, self._decoded = self._decoded, 0
            time = self._until
            self.rows += [(time, client, 0, 0, 0, running * steps) for client, running in by_client.items()]
