"""How long a step of an engine takes: the greatest of linear functions of its work. Standard library only.

A step computes `new` tokens, attends over `attended` token pairs (for each new token, the tokens before it
and itself), reads `read` tokens of KV cache and serves `sequences` requests. `attended` and `read` grow by
the batch size with each decode step, so a stretch of them has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

Line = tuple[float, float, float, float, float]
"""Seconds for: the step itself, a new token, an attended pair, a KV token read, a sequence."""

_Growing = tuple[float, float]
"""The duration of the first step of a stretch, and its growth with each further one."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Step durations in seconds, as the greatest of `lines`."""

    lines: tuple[Line, ...]

    def step(self, new: int, attended: int, read: int, sequences: int) -> float:
        """Duration of one step."""
        longest = 0.0
        for base, a, b, c, d in self.lines:
            longest = max(longest, base + new * a + attended * b + read * c + sequences * d)
        return longest

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Duration of `steps` decode steps of `batch` requests that attend `context` tokens in the first."""
        return _total(self._greatest(batch, context, steps), steps)

    def steps_to(self, seconds: float, batch: int, context: int, most: int) -> int:
        """The number of decode steps, at least 1 and at most `most`, that first reaches `seconds`."""
        lines = self._greatest(batch, context, most)
        if _total(lines, most) < seconds:
            return most
        steps = max(1, min(most, *(_steps_on_line(seconds, first, growth) for first, growth in lines)))
        while steps > 1 and _total(lines, steps - 1) >= seconds:
            steps -= 1
        while _total(lines, steps) < seconds:
            steps += 1
        return steps

    def _greatest(self, batch: int, context: int, steps: int) -> tuple[_Growing, ...]:
        """Which lines are the greatest in the course of this many decode steps, in that order."""
        first = last = (0.0, 0.0)
        at_last = 0.0
        for base, a, b, c, d in self.lines:
            growth = batch * (b + c)
            line = (base + batch * (a + d) + context * (b + c), growth)
            ending = line[0] + growth * (steps - 1)
            if line > first:
                first = line
            if ending > at_last:
                at_last, last = ending, line
        return (first,) if first[1] >= last[1] else (first, last)


def _total(lines: tuple[_Growing, ...], steps: int) -> float:
    """Sum over steps of the greatest line; two lines cross once."""
    if len(lines) == 1:
        return _series(*lines[0], 0, steps)
    (low, slow), (high, fast) = lines
    crossing = min(max(ceil((low - high) / (fast - slow)), 0), steps)
    return _series(low, slow, 0, crossing) + _series(high, fast, crossing, steps)


def _series(first: float, growth: float, begin: int, end: int) -> float:
    """Sum of first + growth * i for begin <= i < end."""
    return (end - begin) * (first + growth * (begin + end - 1) / 2)


def _steps_on_line(seconds: float, first: float, growth: float) -> int:
    """How many steps of durations first, first + growth, ... reach `seconds`, give or take rounding."""
    first -= growth / 2
    return ceil(2 * seconds / (first + sqrt(first * first + 2 * growth * seconds)))
