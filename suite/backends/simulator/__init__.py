"""The embedded backend: a deterministic simulator of one serving engine, on a virtual clock.

It schedules, caches and evicts as vLLM V1 or SGLang does, step by step, and takes the duration of a step from
a cost model. It generates no tokens; it knows how long every output is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from baselines.scheduler import Scheduler
from suite.backends.base import Outcome, Progress
from suite.backends.cost import Cost
from suite.backends.simulator.cost import fitted, roofline
from suite.backends.simulator.engine import CLIP, Engine, Limits, collector_paused
from suite.backends.simulator.journal import Journal
from suite.backends.simulator.live import Live, lives
from suite.backends.simulator.noise import Durations, Noise, Noisy
from suite.backends.simulator.presets import GPUS, MODELS
from suite.backends.simulator.sglang import SGLangEngine
from suite.backends.simulator.streams import chunks
from suite.backends.simulator.vllm import VLLMEngine
from suite.errors import did_you_mean
from suite.policies import SchedulerSpec
from suite.results import REQUEST_COLUMNS, SERVICE_COLUMNS
from suite.trace import Trace

ENGINES: dict[str, type[VLLMEngine] | type[SGLangEngine]] = {"vllm": VLLMEngine, "sglang": SGLangEngine}

MEMORY_UTILISATION = 0.9
"""Share of the GPU's memory that is used."""
ACTIVATIONS = 1.5e9
"""Bytes of it for activations; what these and the weights leave is KV pool."""


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
        return self

    def run(self, trace: Trace, scheduler: SchedulerSpec, logs: Path, progress: Progress) -> Outcome:
        """Serve the trace. It leaves no logs."""
        requests = lives(trace)
        engine = self.engine_for(requests, scheduler.build(), self._durations(trace))
        with collector_paused():
            engine.run(progress)
            streams = chunks(requests, engine.batch, engine.journal)
            return Outcome(_requests(trace, requests), _service(engine.journal), _word(engine), streams)

    def engine_for(
        self, requests: list[Live], policy: Scheduler, durations: Durations | None = None
    ) -> Engine:
        """A fresh engine with these settings, whose steps take as long as the cost model says by default."""
        limits = Limits(self.max_running, self.token_budget, self.block_tokens, self.clip_tokens)
        cost = durations or self.cost_model()
        return ENGINES[self.engine](requests, policy, cost, limits, self.pool_tokens())

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

    def _durations(self, trace: Trace) -> Durations:
        cost = self.cost_model()
        return Noisy(cost, self.noise.factors(trace.digest)) if self.noise else cost


def _known(kind: str, name: str, known: Iterable[str]) -> str:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; {did_you_mean(name, known)}")
    return name


def _requests(trace: Trace, requests: list[Live]) -> pd.DataFrame:
    rows = [
        (
            live.id, live.client, request.session, live.arrival, live.admitted, live.first_token, live.finish,
            live.prompt_tokens, live.generated, live.cached, live.recomputed, live.preemptions, live.weight,
            live.status, 0.0, None,
        )
        for request, live in zip(trace.requests, requests, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(REQUEST_COLUMNS))


def _service(journal: Journal) -> pd.DataFrame:
    return pd.DataFrame(journal.rows, columns=list(SERVICE_COLUMNS))


def _word(engine: Engine) -> dict[str, Any]:
    return {
        "kv_tokens": engine.pool.capacity * engine.pool.block,
        "block_tokens": engine.pool.block,
        "steps": engine.steps,
        "decisions": engine.decisions,
        "starved": sum(live.status == "starved" for live in engine.requests),
        "evicted_tokens": engine.pool.evicted * engine.pool.block,
        "virtual_seconds": engine.now,
    }
