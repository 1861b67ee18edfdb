"""What a request says of itself, on every engine: foreign data, where nonsense falls back to the default.

Runs in the engine's own environment: imports the standard library only.
"""

from __future__ import annotations

from contextlib import suppress
from math import isfinite
from typing import Any

ANONYMOUS = "anonymous"
"""The client of requests that name none."""

LONGEST_NAME = 512
"""Characters of a client's or request's name that are kept; as in a trace, and so are these bounds:"""
WEIGHTS = (1e-6, 1e6)
PRIORITIES = (-(2**31), 2**31)


def name(said: Any, default: str) -> str:
    """The name said, as text and not too long; the default if none is, or an empty one."""
    return default if said in (None, "") else str(said)[:LONGEST_NAME]


def weight(said: Any) -> float:
    """The weight said, kept within bounds; 1 if it is no positive number."""
    return _number(said, 1.0, *WEIGHTS)


def priority(said: Any, default: int) -> int:
    """The priority said, kept within bounds; the default if it is no number."""
    return int(_number(said, default, *PRIORITIES))


def _number(said: Any, default: float, low: float, high: float) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        number = float(said)
        if isfinite(number) and (number > 0 or low < 0):
            return min(max(number, low), high)
    return default
