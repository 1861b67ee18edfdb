"""How long a step takes: a roofline from presets, or coefficients fitted to a real machine.

A step computes `new` tokens, attends over `attended` token pairs (for each new token, the tokens before it
and itself), reads `read` tokens of KV cache and serves `sequences` requests. Both models give its duration as
the greatest of one or two linear functions of these four, so a stretch of decode steps, in which `attended`
and `read` grow by the batch size each step, has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from suite.backends.simulator.presets import GPU, Model
from suite.validation import at, read_yaml, validated

Line = tuple[float, float, float, float, float]
"""Seconds for: the step itself, a new token, an attended pair, a KV token read, a sequence."""

COMPUTE_EFFICIENCY = 0.6
MEMORY_EFFICIENCY = 0.8
STEP_OVERHEAD = 1e-3
"""Stated assumptions of the roofline: shares of the data-sheet peaks that dense 16-bit kernels reach, and
seconds of scheduling and launching a step."""

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


def roofline(model: Model, gpu: GPU) -> Cost:
    """A step takes as long as its arithmetic or its memory traffic, whichever is longer, plus an overhead.

    Arithmetic: 2 FLOPs a layer parameter and new token, 4 * layers * heads * head_dim an attended pair,
    2 * vocabulary * hidden a sequence (its logits), at `COMPUTE_EFFICIENCY` of peak. Traffic: layers and
    output head once a step and the KV cache read, at `MEMORY_EFFICIENCY` of bandwidth.
    """
    flop = 1 / (gpu.flops * COMPUTE_EFFICIENCY)
    byte = 1 / (gpu.bandwidth * MEMORY_EFFICIENCY)
    pair = 4 * model.layers * model.heads * model.head_dim
    logits = 2 * model.vocabulary * model.hidden
    compute = (STEP_OVERHEAD, 2 * model.layer_parameters * flop, pair * flop, 0.0, logits * flop)
    traffic = (STEP_OVERHEAD + model.streamed_bytes * byte, 0.0, 0.0, model.kv_bytes * byte, 0.0)
    return Cost((compute, traffic))


class Coefficients(BaseModel):
    """A file of fitted coefficients: seconds for each unit of work, as YAML or JSON."""

    model_config = ConfigDict(extra="forbid")

    step: float = Field(gt=0, allow_inf_nan=False)
    token: float = Field(ge=0, allow_inf_nan=False)
    attended: float = Field(ge=0, allow_inf_nan=False)
    read: float = Field(ge=0, allow_inf_nan=False)
    sequence: float = Field(ge=0, allow_inf_nan=False)


def fitted(path: Path) -> Cost:
    """The cost of fitted coefficients. Raises `BadInput` naming file and field."""
    data = read_yaml(path)
    with at(str(path)):
        loaded = validated(Coefficients, data)
    return Cost(((loaded.step, loaded.token, loaded.attended, loaded.read, loaded.sequence),))
