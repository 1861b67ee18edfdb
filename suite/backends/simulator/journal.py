"""The service log while it is being written: plain columns, appended in time order."""

from __future__ import annotations

from array import array
from collections.abc import Mapping


class Journal:
    """Rows (time, client, extend, cached, recomputed, output). Decode steps pile up until `settle`."""

    def __init__(self) -> None:
        self.time = array("d")
        self.client: list[str] = []
        self.extend = array("q")
        self.cached = array("q")
        self.recomputed = array("q")
        self.output = array("q")
        self._decoded = 0
        self._until = 0.0

    def row(
        self, time: float, client: str, extend: int = 0, cached: int = 0, recomputed: int = 0, output: int = 0
    ) -> None:
        """Append one row."""
        self.time.append(time)
        self.client.append(client)
        self.extend.append(extend)
        self.cached.append(cached)
        self.recomputed.append(recomputed)
        self.output.append(output)

    def decoded(self, time: float, steps: int) -> None:
        """`steps` more decode steps ended at `time`; their rows wait for `settle`."""
        self._decoded += steps
        self._until = time

    def settle(self, by_client: Mapping[str, int]) -> None:
        """Write the rows of the decode steps so far, in which each client had this many requests decoding."""
        if self._decoded:
            for client, requests in by_client.items():
                self.row(self._until, client, output=requests * self._decoded)
            self._decoded = 0
