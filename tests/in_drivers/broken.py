"""A driver whose adapter is broken on purpose, in the way that the file "broken" beside a job's logs names.

Runs in an engine's environment in place of `suite.backends.<engine>_virtual`, of which it is told the engine.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

driver = importlib.import_module(f"suite.backends.{sys.argv[1]}_virtual")


def resumes_without_a_slot(scheduler: Any) -> None:
    """The policy is asked for one more whether there is a slot or not."""
    queue = scheduler.waiting if sys.argv[1] == "vllm" else scheduler.waiting_queue
    queue._room = lambda: True


def tells_of_admissions_late(scheduler: Any) -> None:
    """The policy goes on before it is told that its last offer has been admitted."""
    tell, late = scheduler.host._tell, []

    def later(event: str, *facts: Any) -> None:
        if event == "admitted":
            late.append((event, *facts))
            return
        while late:
            tell(*late.pop(0))
        tell(event, *facts)

    scheduler.host._tell = later


def reports_stale_matches(scheduler: Any) -> None:
    """What a request matched when it came in is what it matches for ever."""
    scheduler.matches.refresh = lambda changed: None


def forgets_the_cache(scheduler: Any) -> None:
    """Every admission is told as one of a request that finds nothing cached."""
    started = scheduler.host.started
    scheduler.host.started = lambda request, cached: started(request, 0)


def counts_twice(scheduler: Any) -> None:
    """Every output token is told as two."""
    generated = scheduler.host.generated

    def doubled(tokens: Mapping[Any, int]) -> None:
        generated({request: 2 * amount for request, amount in tokens.items()})

    scheduler.host.generated = doubled


BREAKAGES: dict[str, Callable[[Any], None]] = {
    breakage.__name__: breakage
    for breakage in (
        resumes_without_a_slot,
        tells_of_admissions_late,
        reports_stale_matches,
        forgets_the_cache,
        counts_twice,
    )
}


class BrokenRun(driver.Run):  # type: ignore[misc,name-defined]
    """One trace under one policy, through the broken adapter."""

    def serve(self) -> None:
        """As the driver does."""
        named = Path(self.job["logs"]) / "broken"
        if named.exists():
            BREAKAGES[named.read_text()](self.scheduler)
        super().serve()


if __name__ == "__main__":
    driver.Run = BrokenRun  # type: ignore[attr-defined]
    driver.main()
