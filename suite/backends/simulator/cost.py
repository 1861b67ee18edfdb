"""Where the simulator's step durations come from: a roofline of presets, or coefficients fitted to a machine.

Both give the greatest of one or two linear functions of a step's work; see `suite.backends.cost`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from suite.backends.cost import Cost
from suite.backends.simulator.presets import GPU, Model
from suite.validation import at, read_yaml, validated

COMPUTE_EFFICIENCY = 0.6
MEMORY_EFFICIENCY = 0.8
STEP_OVERHEAD = 1e-3
"""Stated assumptions of the roofline: shares of the data-sheet peaks that dense 16-bit kernels reach, and
seconds of scheduling and launching a step."""


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
