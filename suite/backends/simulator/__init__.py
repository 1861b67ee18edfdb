"""The embedded backend: a deterministic simulator of a serving engine, or several, on a virtual clock.

It schedules, caches and evicts as vLLM V1 or SGLang does, step by step, and takes the duration of a step from
a cost model. It generates no tokens; it knows how long every output is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from math import inf
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from baselines.scheduler import Scheduler
from suite.backends.base import Outcome, Progress
from suite.backends.cost import Cost
from suite.backends.simulator.cluster import Cluster, Delays, Loss, Replica
from suite.backends.simulator.cost import fitted, roofline
from suite.backends.simulator.dispatch import Dispatch
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import lives
from suite.backends.simulator.noise import Noise
from suite.backends.simulator.outcome import outcome
from suite.backends.simulator.presets import GPUS, MODELS
from suite.backends.simulator.sglang import SGLangEngine
from suite.backends.simulator.step import CLIP, Limits
from suite.backends.simulator.vllm import VLLMEngine
from suite.collector import collector_paused
from suite.errors import BadInput, did_you_mean
from suite.policies import SchedulerSpec
from suite.trace import Trace

ENGINES: dict[str, type[VLLMEngine] | type[SGLangEngine]] = {"vllm": VLLMEngine, "sglang": SGLangEngine}

MEMORY_UTILISATION = 0.9
"""Share of the GPU's memory that is used."""
ACTIVATIONS = 1.5e9
"""Bytes of it for activations; what these and the weights leave is KV pool."""


class Outage(BaseModel):
    """The loss of a replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replica: int = Field(ge=0)
    """Its number, from 0."""
    at: float = Field(ge=0, allow_inf_nan=False)
    """When it is lost, in seconds of the run."""
    back: float | None = Field(default=None, allow_inf_nan=False)
    """When it comes back, with nothing in its cache; never by default."""

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.back is not None and self.back <= self.at:
            raise ValueError(f"back ({self.back:g} s) must be after at ({self.at:g} s)")
        return self


class Simulator(BaseModel):
    """Settings of the simulator, and the `Backend` that serves a trace with them.

    What cannot work is refused when the settings are read: `ValidationError`, or `BadInput` for `cost`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    exclusive: ClassVar[bool] = False

    kind: Literal["simulator"] = "simulator"
    engine: Literal["vllm", "sglang"] = "vllm"
    """Whose scheduling loop, cache and eviction."""
    model: str = "llama-3.1-8b"
    gpu: str = "a10g"
    max_running: int = Field(default=256, ge=1)
    """Requests running at once."""
    token_budget: int = Field(default=2048, ge=1)
    """Tokens computed in one step (vLLM), or in one prefill batch (SGLang's chunk size)."""
    kv_tokens: int | None = Field(default=None, ge=16)
    """Size of the KV pool in tokens; by default what fits on the GPU beside the weights."""
    block_tokens: int = Field(default=16, ge=1)
    """Tokens of a block of vLLM's prefix cache; SGLang's has one."""
    clip_tokens: int = Field(default=CLIP, ge=1)
    """Of a request's coming output, SGLang's admission reserves at most so many tokens
    (its SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)."""
    cost: Path | None = None
    """A file of fitted coefficients to use instead of the roofline of model and GPU."""
    noise: Noise | None = None
    """How much longer or shorter than the cost model's a step takes at random; not at all by default."""
    replicas: int = Field(default=1, ge=1, le=1024)
    """Engines, each with a scheduler of its own, behind a router."""
    dispatch_delay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds from the router to a replica."""
    report_delay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds until a report of what a replica has evicted reaches the router, from the end of the step, or
    stretch of decode steps, that evicted it."""
    losses: tuple[Outage, ...] = ()
    """Replicas that are lost during the run."""

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return _known("model", name, MODELS)

    @field_validator("gpu")
    @classmethod
    def _known_gpu(cls, name: str) -> str:
        return _known("gpu", name, GPUS)

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.engine == "vllm" and self.token_budget < self.max_running:
            raise ValueError(
                f"token_budget ({self.token_budget}) must be at least max_running ({self.max_running}), "
                f"so that every running request can decode in each step"
            )
        if self.kv_tokens is not None and self.kv_tokens < self.block_tokens:
            raise ValueError(f"kv_tokens ({self.kv_tokens}) holds no block of {self.block_tokens} tokens")
        if self.pool_tokens() < self.block_tokens:
            raise ValueError(f"model {self.model!r} leaves no memory for a KV cache on gpu {self.gpu!r}")
        self.cost_model()
        self._check_losses()
        return self

    def _check_losses(self) -> None:
        """Each loss is of a replica that is there."""
        up = dict.fromkeys(range(self.replicas), 0.0)
        for loss in sorted(self.losses, key=lambda loss: loss.at):
            if loss.replica not in up:
                known = f"they are 0 to {self.replicas - 1}" if self.replicas > 1 else "the only one is 0"
                raise ValueError(f"losses: there is no replica {loss.replica}; {known}")
            if loss.at < up[loss.replica]:
                raise ValueError(
                    f"losses: replica {loss.replica} is lost at {loss.at:g} s, while it is not there"
                )
            up[loss.replica] = loss.back if loss.back is not None else inf

    def run(self, trace: Trace, scheduler: SchedulerSpec, logs: Path, progress: Progress) -> Outcome:
        """Serve the trace. It leaves no logs.

        Raises `BadInput` if there are several replicas and no router, or a router that is another project's.
        """
        cluster = self._cluster(trace, scheduler)
        with collector_paused():
            cluster.run(progress)
            return outcome(trace, cluster)

    def engine_for(self, policy: Scheduler, factors: Iterator[float] | None = None) -> Engine:
        """A fresh engine with these settings, each step taking the next of `factors` (or 1) as long as the
        cost model says."""
        limits = Limits(self.max_running, self.token_budget, self.block_tokens, self.clip_tokens)
        make = ENGINES[self.engine]
        return make(policy, self.cost_model(), limits, factors or repeat(1.0), self.pool_tokens())

    def _cluster(self, trace: Trace, scheduler: SchedulerSpec) -> Cluster:
        if self.replicas > 1 and scheduler.router is None:
            raise BadInput(
                f"{self.replicas} replicas need a router; write round-robin+{scheduler.reference} or the like"
            )
        replicas = [self._replica(trace, scheduler, number) for number in range(self.replicas)]
        dispatch = None
        if scheduler.router is not None:
            names = [replica.name for replica in replicas]
            dispatch = Dispatch(scheduler.router.build(), names, self.pool_tokens(), self.block_tokens)
        delays = Delays(self.dispatch_delay, self.report_delay)
        return Cluster(
            lives(trace),
            replicas,
            dispatch,
            delays,
            (Loss(one.replica, one.at, inf if one.back is None else one.back) for one in self.losses),
        )

    def _replica(self, trace: Trace, scheduler: SchedulerSpec, number: int) -> Replica:
        factors = self.noise.factors(trace.digest, number) if self.noise else None
        return Replica(f"replica-{number}", lambda: self.engine_for(scheduler.build(), factors))

    def pool_tokens(self) -> int:
        """Tokens of KV cache that fit."""
        if self.kv_tokens is not None:
            return self.kv_tokens
        model, gpu = MODELS[self.model], GPUS[self.gpu]
        room = gpu.memory * MEMORY_UTILISATION - ACTIVATIONS - model.weight_bytes
        return int(room // model.kv_bytes)

    def cost_model(self) -> Cost:
        """How long its steps take."""
        if self.cost is not None:
            return fitted(self.cost)
        return roofline(MODELS[self.model], GPUS[self.gpu])


def _known(kind: str, name: str, known: Iterable[str]) -> str:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; {did_you_mean(name, known)}")
    return name
