"""Times in logs: numbers of seconds, or dates."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

_TOO_LATE = 1e11
"""Seconds that no clock shows."""


def _unix(value: Any) -> Any:
    """Unix seconds of a date or an ISO 8601 text, UTC unless it says otherwise; a number as it is."""
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value


def _in_seconds(value: float) -> float:
    if value >= _TOO_LATE:
        raise ValueError(f"{value:.3g} seconds are beyond the year 5000; milliseconds, most likely")
    return value


Moment = Annotated[
    float, Field(ge=0, allow_inf_nan=False), AfterValidator(_in_seconds), BeforeValidator(_unix)
]
"""A time as a log has it: Unix seconds, seconds from some beginning, a date, or ISO 8601."""
